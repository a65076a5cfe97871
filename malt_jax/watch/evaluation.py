"""The work of a run's evaluation, from its files of samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from malt_jax.errors import UserError
from malt_jax.evaluation.sampling import needed_passes
from malt_jax.evaluation.store import FOLDER, count_samples
from malt_jax.evaluation.systems import MALT, STAR, run_names, system
from malt_jax.runs.directory import RunDirectory
from malt_jax.watch.work import Work

Counted = dict[str, tuple[int, float]]
"""File of samples -> its completions, and the seconds of sampling them."""


def evaluation_work(
    run: RunDirectory, trained: Sequence[str], files: Sequence[str], counted: Counted
) -> Work:
    """The completions that are stored, of those that a run's own evaluation needs.

    trained: the finished training stages, such as "round-0/refiner/sft".
    files:   the recorded files, below the evaluation's folder.
    counted: files that were counted before; new ones are added.
    """
    for file in files:
        if file.startswith("seed-") and file.endswith(".parquet") and file not in counted:
            try:
                counted[file] = count_samples(run.path / FOLDER / file)
            except UserError:
                counted[file] = 0, 0.0  # it is sampled again; `malt doctor` names it
    done = sum(completions for completions, _ in counted.values())
    seconds = sum(seconds for _, seconds in counted.values())
    return Work(done, _total(run, trained), "completions", seconds or None)


def _total(run: RunDirectory, trained: Sequence[str]) -> int | None:
    """The completions of all systems; None where the number of test questions is not known."""
    config = run.config
    if config.test_limit is None:
        return None
    roles = config.pipeline.names
    star: dict[str, Any] = {}
    malt: dict[str, Any] = {}
    for name in trained:
        _, _, rest = name.partition("/")
        role, _, objective = rest.rpartition("/")
        if role in roles:
            malt[role] = name
            if objective == "sft":
                star[role] = name
    votes = config.evaluation.votes
    systems = [system(name, roles, votes) for name in run_names(roles, votes)]
    passes = needed_passes(systems, roles, {STAR: star, MALT: malt})
    return sum(passes.values()) * config.test_limit * config.evaluation.seeds
