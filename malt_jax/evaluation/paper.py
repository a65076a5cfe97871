"""The measurements of the MALT paper (arXiv 2412.01928, section 4) for a run's model and task.

They are the field `paper` of results.json (docs/results-schema.md), next to the systems of the main
table and of the ablations: votes, self-correction role by role, systems at equal calls, and other
tasks.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from malt_jax import tasks
from malt_jax.config import Config, TaskConfig
from malt_jax.errors import UserError
from malt_jax.evaluation.results import (
    Judge,
    compared,
    estimate,
    evaluate,
    evaluated,
    judged,
    named_systems,
    system_entry,
    transition,
)
from malt_jax.evaluation.sampling import Policies, Team
from malt_jax.evaluation.store import Store
from malt_jax.evaluation.systems import DEBATE, STAR, System, all_names, standard_names, system
from malt_jax.malt.experiment import Experiment, select_questions
from malt_jax.malt.prompts import Pipeline
from malt_jax.malt.roles import load_roles
from malt_jax.tasks.base import Question, Split, Task
from malt_jax.tasks.rows import Published
from malt_jax.training.policy import SamplingWeights

_PIPELINES = ("ma", "star-ma", "malt")
_VOTERS = ("sa", *_PIPELINES)
_DENSE = 9
"""Up to so many votes every number of them is measured, then every third."""


@dataclasses.dataclass(frozen=True)
class PaperOptions:
    """Measurements in addition to the systems."""

    votes: int | None = None
    """Most votes of a pipeline; None: so many that "sa" with as many votes makes as many calls as
    "malt+mv"."""
    transfer: tuple[TaskConfig, ...] = ()
    """Tasks that no role was trained on."""


class Transfer(NamedTuple):
    """Another task's questions, and the run's roles with that task's prompts."""

    config: TaskConfig
    experiment: Experiment
    questions: list[Question]


def evaluate_paper(
    team: Team,
    task: Task,
    questions: Sequence[Question],
    split: Split,
    seeds: int,
    store: Store,
    options: PaperOptions,
) -> dict[str, Any]:
    """Compares the systems of the paper: the part of results.json that depends on their samples.

    Samples what the store lacks. A team without trained policies answers for the untrained systems;
    what cannot be made is listed in `missing`, with the reason.

    Raises UserError when a prompt of the pipeline could exceed the model's positions.
    """
    roles, missing = team.pipeline.names, []
    names = all_names(roles, team.votes, trained=bool(team.policies))
    if not team.policies:
        missing.append(
            "systems with trained roles (star-sa, star-ma, malt and its ablations), and with them"
            " the effect of training: this is a bare model; give a finished run with --run-dir"
        )
    elif STAR not in team.policies:
        missing.append(
            "systems after SFT (star-sa, star-ma): an export holds the final weights; give the run"
            " with --run-dir"
        )
    names = _known(names, team)
    try:
        _check_debate(team, questions)
    except UserError as error:
        names.remove(DEBATE)
        missing.append(f"debate: {error}")
    if not options.transfer:
        missing.append("transfer: no other task was named; name one with --transfer TASK[=FILE]")
    systems = named_systems(team, names)
    curves = dict(_vote_curves(team, options.votes))
    drawn = [*systems, *(curve[-1] for curve in curves.values())]
    judge = judged(team, task, drawn, questions, seeds, store)
    content = evaluated(judge, systems)
    content["paper"] = {
        "questions": _counts(task, questions, split),
        "votes": {name: _votes(judge, curve) for name, curve in curves.items()},
        "self_correction": {
            s.name: by_role
            for s in systems
            if s.name in _PIPELINES and (by_role := _self_correction(judge, s))
        },
        "equal_calls": _equal_calls(judge, systems),
        "missing": missing,
    }
    return content


def transfers(
    experiment: Experiment, config: Config, options: PaperOptions, limit: int | None
) -> list[Transfer]:
    """The tasks of `options.transfer`, loaded.

    limit: number of questions of each task; None: the number of the run's own test questions.

    Raises UserError when questions cannot be loaded, and when a prompt could exceed the model's
    positions.
    """
    found = []
    for other in options.transfer:
        task = tasks.create(other)
        roles = load_roles(config.pipeline.roles, task.prompts)
        pipeline = Pipeline.of(roles, experiment.pipeline.tokenizer)
        most = config.test_limit if limit is None else limit
        questions = select_questions(task, "test", most, config.seed)
        pipeline.check_lengths(
            [question.text for question in questions],
            int(experiment.sampler.parameters.max_tokens),
            experiment.sampler.model.config.max_positions,
        )
        found.append(Transfer(other, experiment._replace(task=task, pipeline=pipeline), questions))
    return found


def evaluate_transfer(
    transfer: Transfer,
    config: Config,
    weights: SamplingWeights,
    policies: Policies,
    seeds: int,
    store: Store,
) -> dict[str, Any]:
    """The systems of the main table on another task: an entry of `transfer` in results.json.

    Its samples are in a folder of their own below the store's, named after the task's options.
    """
    other, experiment, questions = transfer
    team = Team.of(experiment, config, weights, policies)
    names = standard_names(team.pipeline.names, team.votes, trained=bool(policies))
    names = _known(names, team)
    below = store.below(f"transfer/{other.name}-{_digest(other)}")
    content = evaluate(team, experiment.task, names, questions, seeds, below)
    return {
        "task": other.name,
        "options": other.options,
        "source": other.test,
        "questions": _counts(experiment.task, questions, "test"),
        "systems": content["systems"],
        "comparisons": content["comparisons"],
    }


def _known(names: Sequence[str], team: Team) -> list[str]:
    """The systems whose weights the team has: an export lacks those after SFT."""
    chains = {name: system(name, team.pipeline.names, team.votes).chain for name in names}
    return [name for name in names if STAR in team.policies or STAR not in chains[name]]


def _digest(task: TaskConfig) -> str:
    """Eight digits that differ between test questions."""
    described = json.dumps([task.name, task.test, task.options], sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:8]


def _check_debate(team: Team, questions: Sequence[Question]) -> None:
    limits = int(team.sampler.parameters.max_tokens), team.sampler.model.config.max_positions
    team.debate.check_lengths([question.text for question in questions], *limits)


def _counts(task: Task, questions: Sequence[Question], split: Split) -> dict[str, Any]:
    """Questions that were asked, that the source has, and that the published split has."""
    published = getattr(task, split, None)
    return {
        "split": split,
        "asked": len(questions),
        "available": len(task.questions(split)),
        "published": published.questions if isinstance(published, Published) else None,
    }


def _vote_curves(team: Team, most: int | None) -> Iterator[tuple[str, list[System]]]:
    """Systems with more and more votes, by their name without one.

    The single model gets as many more votes as a pipeline makes more calls.
    """
    roles = team.pipeline.names
    most = team.votes * len(roles) if most is None else most
    for name in _known(_VOTERS if team.policies else ("sa", "ma"), team):
        last = most * (len(roles) if name == "sa" else 1)
        counts = [*range(2, min(last, _DENSE) + 1), *range(_DENSE + 3, last, 3), last]
        named = [name, *(f"{name}+mv@{count}" for count in dict.fromkeys(counts) if count > 1)]
        yield name, [system(each, roles, team.votes) for each in named]


def _votes(judge: Judge, curve: Sequence[System]) -> dict[str, Any]:
    """Accuracy and costs by the number of votes; 1 is the system without a vote."""
    content = {}
    for s in curve:
        entry = system_entry(s, judge.outcome(s))
        kept = ("accuracy", "ci95", "calls", "tokens", "prompt_tokens", "seconds")
        content[str(s.passes if s.voted else 1)] = {name: entry[name] for name in kept}
    return content


def _self_correction(judge: Judge, pipeline: System) -> dict[str, Any]:
    """The answers that each role after the first changes, over all passes."""
    turns = [
        judge.correct(pipeline.chain[:depth], pipeline.passes, voted=False)
        for depth in range(1, len(judge.roles) + 1)
    ]
    content = {}
    for role, before, after in zip(judge.roles[1:], turns, turns[1:], strict=False):
        gained = (after.astype(int) - before).mean(axis=(0, 2))
        content[role] = {
            "accuracy_before": float(before.mean()),
            **transition(before, after),
            **estimate(gained, "net", "net_ci95"),
        }
    return content


def _equal_calls(judge: Judge, systems: Sequence[System]) -> dict[str, Any]:
    """The last pipeline, without and with a vote, against all other methods at equal calls."""
    names = [s.name for s in systems]
    best = next(name for name in reversed(_PIPELINES) if name in names)
    pairs = [
        (first, second)
        for first in systems
        if first.name in (best, f"{best}+mv")
        for second in systems
        if second.calls == first.calls
        and second.name != first.name
        and not second.name.startswith("malt-")
    ]
    outcomes = {s.name: judge.outcome(s) for pair in pairs for s in pair}
    return compared([(first.name, second.name) for first, second in pairs], outcomes)
