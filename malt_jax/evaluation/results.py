"""Comparison of systems on the same questions: the content of results.json.

docs/results-schema.md describes it: accuracies, intervals and tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from malt_jax.errors import UserError
from malt_jax.evaluation.judging import Judge, Outcome
from malt_jax.evaluation.sampling import Team, sample
from malt_jax.evaluation.statistics import holm, mcnemar, mean_interval, pass_at_k, subset_protocol
from malt_jax.evaluation.store import Store
from malt_jax.evaluation.systems import BASE, DEBATE, DEBATER, SILENT, System, system
from malt_jax.tasks.base import Question, Task

RESULTS_FILE = "results.json"

BEST, SINGLE = "malt+mv", "sa"
"""The two systems that all others are compared with, if they were evaluated."""

_MOST_GROUPS = 20
"""Fields of the questions with more values than this give no groups."""


def evaluate(
    team: Team,
    task: Task,
    names: Sequence[str],
    questions: Sequence[Question],
    seeds: int,
    store: Store,
) -> dict[str, Any]:
    """Compares the named systems.

    Samples the completions that the store lacks, judges all, and returns the part of results.json
    (docs/results-schema.md) that depends on them. A team without trained policies answers for the
    untrained systems alone.

    Raises UserError for unknown systems, for those that need trained roles that the team lacks, and
    when a prompt could exceed the model's positions.
    """
    roles, policies = team.pipeline.names, team.policies
    systems = [system(name, roles, team.votes) for name in dict.fromkeys(names)]
    trained = [s.name for s in systems if not set(s.chain) <= {BASE, DEBATER}]
    if trained and not policies:
        raise UserError(
            f"{', '.join(trained)}: these systems need trained roles; give a finished run with"
            " --run-dir"
        )
    texts = [question.text for question in questions]
    limits = int(team.sampler.parameters.max_tokens), team.sampler.model.config.max_positions
    team.pipeline.check_lengths(texts, *limits)
    if any(s.name == DEBATE for s in systems):
        team.debate.check_lengths(texts, *limits)
    sample(team, systems, questions, seeds, store)
    judge = Judge(task, roles, policies, questions, seeds, store)
    return evaluated(judge, systems)


def evaluated(judge: Judge, systems: Sequence[System]) -> dict[str, Any]:
    """The fields of results.json that depend on the systems' samples."""
    outcomes = {system.name: judge.outcome(system) for system in systems}
    content: dict[str, Any] = {
        "systems": {s.name: _system(s, outcomes[s.name]) for s in systems},
        "comparisons": _comparisons(outcomes),
    }
    optional = {
        "turns": _turns(judge, systems),
        "transitions": _transitions(judge, systems),
        "groups": _groups(judge, outcomes),
        "pass_at_k": _pass_at_k(judge, systems),
    }
    return content | {name: part for name, part in optional.items() if part}


def _estimate(
    scores: Float[np.ndarray, "Q"], name: str = "accuracy", interval: str = "ci95"
) -> dict[str, Any]:
    """The mean of per-question scores and its interval, under these two names."""
    mean, low, high = mean_interval(scores)
    return {name: mean, interval: [low, high]}


def _system(system: System, outcome: Outcome) -> dict[str, Any]:
    protocol = subset_protocol(outcome.correct)
    return {
        **_estimate(outcome.correct.mean(axis=0)),
        "questions": outcome.correct.shape[1],
        "seeds": outcome.correct.shape[0],
        "calls": system.calls,
        "tokens": outcome.tokens,
        "prompt_tokens": outcome.prompt_tokens,
        "seconds": outcome.seconds,
        "paper_protocol": None if protocol is None else protocol._asdict(),
    }


def _comparisons(outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """Both families of comparisons, with Holm's correction for the tests of each."""
    families = [
        [(BEST, name) for name in outcomes if name != BEST] if BEST in outcomes else [],
        [(name, SINGLE) for name in outcomes if name != SINGLE] if SINGLE in outcomes else [],
    ]
    content: dict[str, Any] = {}
    for family in families:
        tests = [mcnemar(outcomes[a].verdict, outcomes[b].verdict) for a, b in family]
        for (a, b), p, corrected in zip(family, tests, holm(tests), strict=True):
            scores = outcomes[a].correct.mean(axis=0), outcomes[b].correct.mean(axis=0)
            compared = {
                **_estimate(scores[0] - scores[1], "difference"),
                "mcnemar_p": p,
                "mcnemar_p_holm": corrected,
            }
            # `malt+mv - sa` is in both families and keeps the correction of the first.
            content.setdefault(f"{a} - {b}", compared)
    return content


def _turns(judge: Judge, systems: Sequence[System]) -> dict[str, Any]:
    """Accuracy after every role of the complete pipelines."""

    def after(system: System, depth: int) -> dict[str, Any]:
        correct = judge.correct(system.chain[:depth], system.passes, voted=system.voted)
        return _estimate(correct.mean(axis=-1).mean(axis=0))

    return {
        system.name: {role: after(system, depth) for depth, role in enumerate(judge.roles, 1)}
        for system in systems
        if _is_pipeline(system, judge)
    }


def _transitions(judge: Judge, systems: Sequence[System]) -> dict[str, Any]:
    """Changed answers from the single model to MALT with a vote, and from first to last role."""
    by_name = {system.name: system for system in systems}
    content = {}
    if SINGLE in by_name and BEST in by_name:
        single, best = by_name[SINGLE], by_name[BEST]
        content[f"{SINGLE} -> {BEST}"] = _transition(
            judge.correct(single.chain, single.passes, voted=False),
            judge.correct(best.chain, best.passes, voted=True),
        )
    for s in systems:
        if _is_pipeline(s, judge) and not s.voted:
            content[f"{s.name}: {judge.roles[0]} -> {judge.roles[-1]}"] = _transition(
                judge.correct(s.chain[:1], s.passes, voted=False),
                judge.correct(s.chain, s.passes, voted=False),
            )
    return content


def _transition(
    before: Bool[np.ndarray, "seeds Q P"], after: Bool[np.ndarray, "seeds Q P"]
) -> dict[str, Any]:
    """The shares of questions that change; P passes, or 1 for a vote, on either side."""
    changes = {"wrong_to_right": ~before & after, "right_to_wrong": before & ~after}
    content: dict[str, Any] = {}
    for name, changed in changes.items():
        content |= _estimate(changed.mean(axis=(0, 2)), name, f"{name}_ci95")
    return content


def _is_pipeline(system: System, judge: Judge) -> bool:
    complete = 1 < len(system.chain) == len(judge.roles)
    return complete and not {DEBATER, SILENT} & set(system.chain)


def _groups(judge: Judge, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """Accuracies on the questions that share a value of a field, such as MATH's levels."""
    content = {}
    for field in dict.fromkeys(field for q in judge.questions for field in q.metadata):
        values: dict[str, list[int]] = {}
        for row, question in enumerate(judge.questions):
            if field in question.metadata:
                values.setdefault(question.metadata[field], []).append(row)
        if 1 < len(values) <= min(_MOST_GROUPS, len(judge.questions) // 2):
            content[field] = {
                value: {name: _on_rows(outcome, rows) for name, outcome in outcomes.items()}
                for value, rows in sorted(values.items())
            }
    return content


def _on_rows(outcome: Outcome, rows: Sequence[int]) -> dict[str, Any]:
    return _estimate(outcome.correct[:, rows].mean(axis=0)) | {"questions": len(rows)}


def _pass_at_k(judge: Judge, systems: Sequence[System]) -> dict[str, Any]:
    """pass@k of every system without a vote, from all passes that any system drew of its chain."""
    content = {}
    for s in systems:
        if s.voted:
            continue
        total = max(other.passes for other in systems if other.chain == s.chain)
        correct = judge.correct(s.chain, total, voted=False).sum(axis=-1)
        content[s.name] = {
            str(k): float(pass_at_k(correct, total, k).mean()) for k in range(1, total + 1)
        }
    return content
