"""The content of results.json: what all systems' outcomes say, with intervals and tests."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from malt_jax.evaluation.judging import Judge, Outcome
from malt_jax.evaluation.statistics import (
    Estimate,
    holm,
    mcnemar,
    mean_interval,
    pass_at_k,
    subset_protocol,
)
from malt_jax.evaluation.systems import DEBATER, SILENT, System
from malt_jax.runs.directory import RunDirectory

RESULTS_FILE = "results.json"

BEST, SINGLE = "malt+mv", "sa"
"""The systems that all others are compared with, question by question, where they are there."""

_MOST_GROUPS = 20
"""A field of the questions with more values than this is no grouping."""


def evaluated(judge: Judge, systems: Sequence[System]) -> dict[str, Any]:
    """The part of results.json (docs/results-schema.md) that the systems' samples decide."""
    outcomes = {system.name: judge.outcome(system) for system in systems}
    content: dict[str, Any] = {
        "systems": {s.name: _system(s, outcomes[s.name]) for s in systems},
        "comparisons": _compared(outcomes),
    }
    optional = {
        "turns": _turns(judge, systems),
        "transitions": _transitions(judge, systems, outcomes),
        "groups": _groups(judge, outcomes),
        "pass_at_k": _pass_at_k(judge, systems),
    }
    return content | {name: part for name, part in optional.items() if part}


def _system(system: System, outcome: Outcome) -> dict[str, Any]:
    protocol = subset_protocol(outcome.correct)
    return {
        **_accuracy(outcome.correct),
        "questions": outcome.correct.shape[1],
        "seeds": outcome.correct.shape[0],
        "calls": system.calls,
        "tokens": outcome.tokens,
        "prompt_tokens": outcome.prompt_tokens,
        "seconds": outcome.seconds,
        "paper_protocol": None if protocol is None else protocol._asdict(),
    }


def _accuracy(correct: Float[np.ndarray, "seeds Q"]) -> dict[str, Any]:
    estimate = mean_interval(correct.mean(axis=0))
    return {"accuracy": estimate.mean, "ci95": _bounds(estimate)}


def _bounds(estimate: Estimate) -> list[float]:
    return [estimate.low, estimate.high]


def _compared(outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """Both families of comparisons; Holm's correction is for the tests of one family."""
    families = [
        [(BEST, name) for name in outcomes if name != BEST] if BEST in outcomes else [],
        [(name, SINGLE) for name in outcomes if name != SINGLE] if SINGLE in outcomes else [],
    ]
    content: dict[str, Any] = {}
    for family in families:
        tests = [mcnemar(outcomes[a].verdict, outcomes[b].verdict) for a, b in family]
        for (a, b), p, corrected in zip(family, tests, holm(tests), strict=True):
            difference = mean_interval(
                outcomes[a].correct.mean(axis=0) - outcomes[b].correct.mean(axis=0)
            )
            # What both families hold keeps the first one's correction: it was asked first.
            content.setdefault(
                f"{a} - {b}",
                {
                    "difference": difference.mean,
                    "ci95": _bounds(difference),
                    "mcnemar_p": p,
                    "mcnemar_p_holm": corrected,
                },
            )
    return content


def _turns(judge: Judge, systems: Sequence[System]) -> dict[str, Any]:
    """Accuracy after every role of the whole pipelines."""
    return {
        system.name: {
            role: _accuracy(
                judge.right(system.chain[: depth + 1], system.passes, voted=system.voted).mean(
                    axis=-1
                )
            )
            for depth, role in enumerate(judge.roles)
        }
        for system in systems
        if _is_pipeline(system, judge)
    }


def _transitions(
    judge: Judge, systems: Sequence[System], outcomes: Mapping[str, Outcome]
) -> dict[str, Any]:
    """From the single model to MALT with a vote, and from a pipeline's first role to its last."""
    by_name = {system.name: system for system in systems}
    content = {}
    if SINGLE in by_name and BEST in by_name:
        single, best = by_name[SINGLE], by_name[BEST]
        content[f"{SINGLE} -> {BEST}"] = _transition(
            judge.right(single.chain, single.passes, voted=False),
            judge.right(best.chain, best.passes, voted=True),
        )
    for system in systems:
        if _is_pipeline(system, judge) and not system.voted:
            first, *_, last = judge.roles
            content[f"{system.name}: {first} -> {last}"] = _transition(
                judge.right(system.chain[:1], system.passes, voted=False),
                judge.right(system.chain, system.passes, voted=False),
            )
    return content


def _transition(
    before: Bool[np.ndarray, "seeds Q P"], after: Bool[np.ndarray, "seeds Q P"]
) -> dict[str, Any]:
    content: dict[str, Any] = {}
    changes = {"wrong_to_right": ~before & after, "right_to_wrong": before & ~after}
    for name, changed in changes.items():
        estimate = mean_interval(changed.mean(axis=(0, 2)))
        content |= {name: estimate.mean, f"{name}_ci95": _bounds(estimate)}
    return content


def _is_pipeline(system: System, judge: Judge) -> bool:
    whole = 1 < len(system.chain) == len(judge.roles)
    return whole and not {DEBATER, SILENT} & set(system.chain)


def _groups(judge: Judge, outcomes: Mapping[str, Outcome]) -> dict[str, Any]:
    """Accuracies on the questions that share a value of a field, such as MATH's levels."""
    return {
        field: {
            value: {
                name: {**_accuracy(outcome.correct[:, rows]), "questions": len(rows)}
                for name, outcome in outcomes.items()
            }
            for value, rows in sorted(values.items())
        }
        for field, values in _groupings(judge)
    }


def _groupings(judge: Judge) -> Iterator[tuple[str, dict[str, list[int]]]]:
    fields = dict.fromkeys(field for q in judge.questions for field in q.metadata)
    for field in fields:
        values: dict[str, list[int]] = {}
        for row, question in enumerate(judge.questions):
            if field in question.metadata:
                values.setdefault(question.metadata[field], []).append(row)
        if 1 < len(values) <= min(_MOST_GROUPS, len(judge.questions) // 2):
            yield field, values


def _pass_at_k(judge: Judge, systems: Sequence[System]) -> dict[str, Any]:
    """For every system without a vote, from all passes that any system drew of its chain."""
    content = {}
    for system in systems:
        if system.voted:
            continue
        total = max(other.passes for other in systems if other.chain == system.chain)
        right = judge.right(system.chain, total, voted=False).sum(axis=-1)
        content[system.name] = {
            str(k): float(pass_at_k(right, total, k).mean()) for k in range(1, total + 1)
        }
    return content


def write_results(directory: RunDirectory, name: str, content: Mapping[str, Any]) -> None:
    """Writes results.json, whole, to a place below a run's directory."""
    directory.write(name, json.dumps(content, indent=2) + "\n")
