"""A sweep: each setting trains on the trees of one run and answers questions of no tree.

The questions are those of the training split after the ones that the trees were sampled for, in the
order that the run's seed gives them. The test split is not asked.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from malt_jax.config import leaves, plain
from malt_jax.errors import UserError
from malt_jax.evaluation.finished import Asked
from malt_jax.evaluation.results import Judge
from malt_jax.evaluation.sampling import Team, sample
from malt_jax.evaluation.statistics import mean_interval
from malt_jax.evaluation.store import Store
from malt_jax.evaluation.systems import MALT, STAR, system
from malt_jax.malt.experiment import prepare, select_questions
from malt_jax.malt.reuse import TREES, tree_differences
from malt_jax.run import check_questions, train_roles
from malt_jax.runs.directory import RunDirectory, open_run, versions
from malt_jax.runs.metrics import last_values, read_metrics
from malt_jax.sweeps.settings import Setting, varied
from malt_jax.sweeps.sharing import share_sft, shared_store

logger = logging.getLogger(__name__)

SWEEP_FILE = "sweep.json"

Scores = Mapping[str, Float[np.ndarray, " Q"]]
"""The share of correct answers to every question, by system."""


class Judging(NamedTuple):
    """The evaluation of every setting."""

    names: Sequence[str]
    """Systems; the first one decides which setting is best."""
    questions: int
    seeds: int


class _Trained(NamedTuple):
    """A setting that has been trained and judged."""

    setting: Setting
    scores: Scores
    training: dict[str, dict[str, float | None]]
    """The field `training` of results.json."""


def require_trees_of(run: RunDirectory, settings: Sequence[Setting]) -> None:
    """Raises UserError, before anything is trained, for settings that need other trees."""
    run.finished(TREES)
    for setting in settings:
        if differences := tree_differences(run.config, setting.config):
            raise UserError(
                f"{setting.name} needs other trees than those of {run.path} (there -> here):\n  "
                + "\n  ".join(differences)
                + "\na sweep varies settings of credit, training and LoRA"
            )


def sweep(
    trees: RunDirectory, directory: RunDirectory, settings: Sequence[Setting], judging: Judging
) -> dict[str, Any]:
    """Trains and judges every setting that has not been, and returns the content of sweep.json.

    trees:     the run whose trees all settings train on.
    directory: of the sweep; every setting is a run of its own below it.

    What a setting has finished is read, so an interrupted sweep continues and a sweep with more
    settings, questions or systems adds what is missing. sweep.json is written after each setting.

    Raises UserError for settings that cannot be used, and Stopped after SIGTERM.
    """
    require_trees_of(trees, settings)
    done: list[_Trained] = []
    content: dict[str, Any] = {}
    for number, setting in enumerate(settings, start=1):
        logger.info("setting %d of %d: %s", number, len(settings), setting.name)
        done.append(_train_and_judge(trees, directory, setting, judging))
        content = _content(trees, settings, done, judging)
        directory.write(SWEEP_FILE, json.dumps(content, indent=2) + "\n")
    return content


def _train_and_judge(
    trees: RunDirectory, directory: RunDirectory, setting: Setting, judging: Judging
) -> _Trained:
    config = setting.config
    with open_run(directory.path / setting.name, config) as own:
        experiment = prepare(config)
        task, roles = experiment.task, experiment.pipeline.names
        train = select_questions(task, "train", config.task.train_questions, config.seed)
        asked = Asked("train", judging.questions, skip=len(train))
        questions = asked.questions(task, config)
        check_questions(experiment, config, train, questions)
        systems = [system(name, roles, config.evaluation.votes) for name in judging.names]
        share_sft(own, directory)
        trained = train_roles(experiment, config, own, train, trees.path).trained
        policies = {STAR: trained.sft, MALT: trained.final}
        store = Store(own, asked.folder, shared_store(directory, asked.folder, own))
        with experiment.sampling_weights() as weights:
            team = Team.of(experiment, config, weights, policies)
            sample(team, systems, questions, judging.seeds, store)
        judge = Judge(task, roles, policies, questions, judging.seeds, store)
        scores = {each.name: judge.outcome(each).correct.mean(axis=0) for each in systems}
        return _Trained(setting, scores, last_values(read_metrics(own.path)))


def _content(
    trees: RunDirectory, settings: Sequence[Setting], done: Sequence[_Trained], judging: Judging
) -> dict[str, Any]:
    """sweep.json: the settings that are done, the best one, and the differences from it."""
    judged_by = judging.names[0]
    means = [float(each.scores[judged_by].mean()) for each in done]
    best = done[int(np.argmax(means))]
    names = varied(settings)
    return {
        "trees": str(trees.path.absolute()),
        "split": "train",
        "questions": len(best.scores[judged_by]),
        "seeds": judging.seeds,
        "judged_by": judged_by,
        "best": best.setting.name,
        "left": len(settings) - len(done),
        "settings": {
            each.setting.name: {
                "options": {name: leaves(each.setting.config).get(name) for name in names},
                "systems": {name: _accuracy(scores) for name, scores in each.scores.items()},
                "from_best": None if each is best else _difference(each, best, judged_by),
                "training": each.training,
            }
            for each in done
        },
        "config": plain(trees.config),
        "versions": versions(),
    }


def _accuracy(scores: Float[np.ndarray, " Q"]) -> dict[str, Any]:
    mean, low, high = mean_interval(scores)
    return {"accuracy": mean, "ci95": [low, high]}


def _difference(one: _Trained, best: _Trained, name: str) -> dict[str, Any]:
    """The difference of two settings on the same questions, with its paired interval."""
    mean, low, high = mean_interval(one.scores[name] - best.scores[name])
    return {"difference": mean, "ci95": [low, high]}
