"""The evaluation of a finished run, or of a bare model: its content of results.json."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from upath import UPath

from malt_jax.config import Config, plain
from malt_jax.distributed.processes import broadcast
from malt_jax.errors import UserError
from malt_jax.evaluation.paper import (
    PaperOptions,
    evaluate_paper,
    evaluate_transfer,
    transfers,
)
from malt_jax.evaluation.results import RESULTS_FILE, evaluate
from malt_jax.evaluation.sampling import Policies, Team
from malt_jax.evaluation.store import FOLDER, Store
from malt_jax.evaluation.systems import MALT, STAR, all_names, system
from malt_jax.export.read import ExportedPipeline
from malt_jax.files import names_in, parse_json_object, reached
from malt_jax.malt.experiment import prepare, select_questions
from malt_jax.malt.inputs import require_trained_on
from malt_jax.malt.round import restore_trained
from malt_jax.runs.directory import RunDirectory, versions
from malt_jax.runs.metrics import last_values, read_metrics
from malt_jax.tasks.base import Question, Split, Task

WEIGHTS_FILE = "weights.json"
"""Checksums of the exported weights that a directory's samples are of."""


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
    source: UPath | ExportedPipeline | None,
    store: Store,
    names: Sequence[str] | None,
    asked: Asked,
    seeds: int,
    paper: PaperOptions | None = None,
) -> dict[str, Any]:
    """Compares systems on the policies of a run or of an exported pipeline.

    config: of the evaluation; the run's own may differ in task and sampling.
    source: None: the untrained model.
    names:  None: all systems.
    paper:  adds the paper's measurements (`malt_jax.evaluation.paper`), with all systems.

    Raises UserError as `prepare`, `restore_trained`, `ExportedPipeline.weights`, `evaluate` and
    `transfers` do, and for systems that need weights which an export does not have.
    """
    exported = source if isinstance(source, ExportedPipeline) else None
    experiment = prepare(config, None if exported is None else exported.roles)
    roles = experiment.pipeline.names
    policies: Policies = {}
    training: dict[str, Any] = {}
    if exported is not None:
        names = _without_star(names, roles, config.evaluation.votes)
        policies = {MALT: exported.weights(config, experiment.policy)}
        if exported.file.task != config.task.name:
            training = {"trained_on": exported.file.task}
    elif isinstance(source, UPath):
        earlier = RunDirectory.read(source)
        require_trained_on(earlier, experiment)
        trained = restore_trained(earlier, earlier.config, experiment.policy.like())
        policies = {STAR: trained.sft, MALT: trained.final}
        training = _training(source, earlier.config, config)
    if names is None:
        names = all_names(roles, config.evaluation.votes, trained=source is not None)
    questions = asked.questions(experiment.task, config)
    others = transfers(experiment, config, paper, asked.limit) if paper else []
    with experiment.sampling_weights() as weights:
        team = Team.of(experiment, config, weights, policies)
        if paper is None:
            judged = evaluate(team, experiment.task, names, questions, seeds, store)
        else:
            judged = evaluate_paper(
                team, experiment.task, questions, asked.split, seeds, store, paper
            )
            judged["paper"]["transfer"] = [
                evaluate_transfer(other, config, weights, policies, seeds, store)
                for other in others
            ]
    return {
        "model": experiment.name,
        "task": experiment.task.name,
        **judged,
        **training,
        "seconds": dict(_seconds(store, seeds)),
        "config": plain(config),
        "versions": versions(),
    }


def _seconds(store: Store, seeds: int) -> Iterator[tuple[str, float]]:
    """The seconds of sampling, by folder."""
    for seed in range(seeds):
        yield f"{store.folder}/seed-{seed}", round(store.seconds(seed), 3)


def claim(directory: RunDirectory, folder: str, exported: ExportedPipeline) -> None:
    """Records in a directory which weights the samples in its folder are of.

    Raises UserError, in all processes, when there are samples of other weights.
    """
    weights = {name: entry.sha256 for name, entry in exported.file.files.items()}
    file = directory.path / WEIGHTS_FILE

    def check() -> None:
        with reached(file):
            if file.exists():
                same = parse_json_object(file.read_bytes(), str(file)) == weights
            else:
                same = not names_in(directory.path / folder, "seed-*")
        if not same:
            raise UserError(
                f"{directory.path} has samples of other weights than {exported.path}; name another"
                " --out"
            )

    broadcast(check)
    directory.write(WEIGHTS_FILE, json.dumps(weights, indent=2) + "\n")


def _without_star(names: Sequence[str] | None, roles: Sequence[str], votes: int) -> list[str]:
    """The systems to compare, which an export can answer for: it lacks the weights after SFT.

    names: those that were asked for; None: all.

    Raises UserError when one of them needs those weights.
    """
    wanted = all_names(roles, votes, trained=True) if names is None else names
    without = [name for name in wanted if STAR not in system(name, roles, votes).chain]
    if names is not None and len(without) < len(names):
        lost = ", ".join(name for name in names if name not in without)
        raise UserError(
            f"{lost}: these systems need the weights after SFT, and an export holds the final ones;"
            " give the run with --run-dir"
        )
    return without


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
        kept = {name: earlier[name] for name in ("rounds", "policies", "values") if name in earlier}
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{run / RESULTS_FILE} cannot be read: {error}") from None
    if training := last_values(read_metrics(run)):
        kept["training"] = training
    if trained.task.name != evaluated.task.name:
        kept["trained_on"] = trained.task.name
    return kept
