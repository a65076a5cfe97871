"""The evaluation of a finished run, or of a bare model: its content of results.json."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from upath import UPath

from malt_jax.config import Config, plain
from malt_jax.errors import UserError
from malt_jax.evaluation.results import RESULTS_FILE, evaluate
from malt_jax.evaluation.sampling import Policies, Team
from malt_jax.evaluation.store import FOLDER, Store
from malt_jax.evaluation.systems import MALT, STAR, all_names
from malt_jax.files import reached
from malt_jax.malt.experiment import prepare, select_questions
from malt_jax.malt.round import restore_trained
from malt_jax.runs.directory import RunDirectory, versions
from malt_jax.runs.metrics import last_values, read_metrics
from malt_jax.tasks.base import Question, Split, Task


class Asked(NamedTuple):
    """The questions of an evaluation, in the order that the run's seed gives a split."""

    split: Split = "test"
    limit: int | None = None
    """None: as the options say."""
    skip: int = 0
    """Questions at the beginning that are left out."""

    @property
    def folder(self) -> str:
        """The folder of its samples and results, below a run's directory."""
        return FOLDER if self.split == "test" else f"{FOLDER}-{self.split}"

    def questions(self, task: Task, config: Config) -> list[Question]:
        """Raises UserError when the split has no question behind those that are left out."""
        limits = {"train": config.task.train_questions, "test": config.test_limit}
        limit = limits[self.split] if self.limit is None else self.limit
        found = select_questions(task, self.split, limit, config.seed, self.skip)
        if not found:
            raise UserError(
                f"the {self.split} split has no question after the first {self.skip}: skip fewer"
            )
        return found


def evaluate_run(
    config: Config,
    run: UPath | None,
    store: Store,
    names: Sequence[str] | None,
    asked: Asked,
    seeds: int,
) -> dict[str, Any]:
    """Compares systems on the policies of a run, or of the untrained model if there is none.

    config: of the evaluation; the run's own may differ in task and sampling.
    names:  None: all systems.

    Raises UserError as `prepare`, `restore_trained` and `evaluate` do.
    """
    experiment = prepare(config)
    roles = experiment.pipeline.names
    policies: Policies = {}
    training: dict[str, Any] = {}
    if run is not None:
        earlier = RunDirectory.read(run)
        like = experiment.policy.like()
        trained = restore_trained(earlier, earlier.config, like)
        policies = {STAR: trained.sft, MALT: trained.final}
        training = _training(run, earlier.config, config)
    if names is None:
        names = all_names(roles, config.evaluation.votes, trained=run is not None)
    questions = asked.questions(experiment.task, config)
    with experiment.sampling_weights() as weights:
        team = Team.of(experiment, config, weights, policies)
        judged = evaluate(team, experiment.task, names, questions, seeds, store)
    return {
        "model": experiment.name,
        "task": experiment.task.name,
        **judged,
        **training,
        "seconds": {
            f"{store.folder}/seed-{seed}": round(store.seconds(seed), 3) for seed in range(seeds)
        },
        "config": plain(config),
        "versions": versions(),
    }


def require_finished(run: UPath) -> None:
    """Raises UserError for a run without results, and where there is no run."""
    with reached(run):
        if not (run / RESULTS_FILE).exists():
            raise UserError(
                f"{run} holds no finished run (no {RESULTS_FILE}); finish it first: python -m"
                f" malt_jax.train --run-dir {run} with the options that it was begun with"
            )


def _training(run: UPath, trained: Config, evaluated: Config) -> dict[str, Any]:
    """The parts of the training's results that belong to this evaluation too."""
    try:
        earlier: Mapping[str, Any] = json.loads((run / RESULTS_FILE).read_text())
        kept = {name: earlier[name] for name in ("rounds", "values") if name in earlier}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{run / RESULTS_FILE} cannot be read: {error}") from None
    if training := last_values(read_metrics(run)):
        kept["training"] = training
    if trained.task.name != evaluated.task.name:
        kept["trained_on"] = trained.task.name
    return kept
