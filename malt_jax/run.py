"""A whole run: rounds of sampling and training, then the evaluation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from upath import UPath

from malt_jax.config import Config, leaves, plain
from malt_jax.distributed.processes import broadcast, is_coordinator
from malt_jax.evaluation.results import RESULTS_FILE, evaluate
from malt_jax.evaluation.sampling import Team
from malt_jax.evaluation.store import FOLDER, Store
from malt_jax.evaluation.systems import MALT, STAR, run_names
from malt_jax.malt.experiment import Experiment, prepare, select_questions
from malt_jax.malt.inputs import require_same_inputs, run_inputs
from malt_jax.malt.reuse import TREES, reuse_trees
from malt_jax.malt.round import Trained, lineage, run_round, stage_names
from malt_jax.malt.rows import row_counts
from malt_jax.malt.stage import Records
from malt_jax.malt.uncertainty import value_uncertainty
from malt_jax.runs.agreement import require_fit
from malt_jax.runs.copying import stage_source
from malt_jax.runs.directory import RunDirectory, versions
from malt_jax.runs.metrics import Metrics, last_values, read_metrics
from malt_jax.tasks.base import Question
from malt_jax.tracking.trackers import require_trackers


class Training(NamedTuple):
    """The policies that the rounds of a run left."""

    trained: Trained
    counts: list[dict[str, Any]]
    """Rows and pairs per role of every round."""
    rewards: Float[np.ndarray, "Q *n"]
    """Of all leaves of the last round's trees."""


def run(
    config: Config,
    directory: RunDirectory,
    trees: UPath | None = None,
    *,
    accept_changes: bool = False,
) -> dict[str, Any]:
    """Runs all stages that have not finished, and returns the results (docs/results-schema.md).

    Every stage is a function of the configuration and of the stages before it. A finished stage is
    read, so an interrupted run ends in the same numbers.

    trees: another run, whose trees of round 0 are copied instead of sampled.
    accept_changes: goes on when files or versions are not those that the run was begun with.

    Raises UserError for unusable or changed input, and Stopped after SIGTERM; finished stages stay.
    """
    broadcast(lambda: require_trackers(config.tracking, directory.path))
    experiment = prepare(config)
    task, pipeline = experiment.task, experiment.pipeline
    train = select_questions(task, "train", config.task.train_questions, config.seed)
    test = select_questions(task, "test", config.test_limit, config.seed)
    check_questions(experiment, config, train, test)
    inputs = run_inputs(experiment, train, test)
    accepted = require_same_inputs(directory, inputs, accept=accept_changes)
    reuse_trees(experiment, config, directory, train, trees)
    store, seeds = Store(directory), config.evaluation.seeds
    with metrics_of(directory) as metrics:
        trained, counts, rewards = _rounds(experiment, config, directory, train, metrics)
        with experiment.sampling_weights() as weights:
            team = Team.of(experiment, config, weights, {STAR: trained.sft, MALT: trained.final})
            names = run_names(pipeline.names, config.evaluation.votes)
            judged = evaluate(team, task, names, test, seeds, store)
        accuracies = {f"accuracy/{name}": judged["systems"][name]["accuracy"] for name in names}
        metrics.show("evaluation", config.rounds, accuracies)
    thresholds = [config.of_role(role).credit.threshold for role in pipeline.names]
    uncertain = value_uncertainty(rewards, thresholds)
    finished = filter(directory.is_done, stage_names(config))
    seconds = {name: round(directory.seconds(name), 3) for name in finished}
    for seed in range(seeds):
        seconds[f"{FOLDER}/seed-{seed}"] = round(store.seconds(seed), 3)
    stages = lineage(directory, config)
    results = {
        "model": experiment.name,
        "task": task.name,
        **judged,
        **({"trees_from": source} if (source := stage_source(directory, TREES)) else {}),
        "rounds": counts,
        "policies": {STAR: stages.sft, MALT: stages.final},
        "training": last_values(read_metrics(directory.path)),
        "values": {
            role: values._asdict() for role, values in zip(pipeline.names, uncertain, strict=False)
        },
        "seconds": seconds,
        **({"accepted_changes": accepted} if accepted else {}),
        "config": plain(config),
        "versions": versions(),
    }
    directory.write(RESULTS_FILE, json.dumps(results, indent=2) + "\n")
    return results


def check_questions(
    experiment: Experiment, config: Config, train: Sequence[Question], asked: Sequence[Question]
) -> None:
    """Raises UserError when a prompt could exceed the model's positions, or the processes do not
    have the same questions, and enough of them.

    asked: the questions of the evaluation.
    """
    texts = [question.text for question in (*train, *asked)]
    max_positions = experiment.policy.model.config.max_positions
    experiment.pipeline.check_lengths(texts, config.sampling.max_tokens, max_positions)
    require_fit(config, train, asked)


def metrics_of(directory: RunDirectory) -> Metrics:
    """The metrics of a run, with its trackers, in process 0; in others what is logged goes nowhere.

    Raises UserError when a tracker is not installed.
    """
    config = directory.config
    return Metrics(
        directory.path,
        writes=is_coordinator(),
        tracking=config.tracking,
        options=leaves(config),
    )


def train_roles(
    experiment: Experiment,
    config: Config,
    directory: RunDirectory,
    questions: Sequence[Question],
    trees: UPath | None = None,
) -> Training:
    """Runs all rounds, as far as they have not finished, without an evaluation.

    trees: another run, whose trees of round 0 are copied instead of sampled.
    """
    reuse_trees(experiment, config, directory, questions, trees)
    with metrics_of(directory) as metrics:
        return _rounds(experiment, config, directory, questions, metrics)


def _rounds(
    experiment: Experiment,
    config: Config,
    directory: RunDirectory,
    questions: Sequence[Question],
    metrics: Metrics,
) -> Training:
    trained, counts = Trained({}, {}), []
    records = Records(directory, metrics, config.training.save_every)
    for number in range(config.rounds):
        trained, rewards = run_round(experiment, config, records, number, questions, trained)
        counts.append(row_counts(directory, number))
    return Training(trained, counts, rewards)
