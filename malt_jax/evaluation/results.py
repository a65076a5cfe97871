"""Comparison of systems on the same questions: the content of results.json.

docs/results-schema.md describes it: accuracies, intervals and tests.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from malt_jax.errors import UserError
from malt_jax.evaluation.sampling import Policies, Team, resolved, sample
from malt_jax.evaluation.statistics import (
    holm,
    majority_vote,
    mcnemar,
    mean_interval,
    pass_at_k,
    subset_protocol,
)
from malt_jax.evaluation.store import Store
from malt_jax.evaluation.systems import BASE, DEBATE, DEBATER, SILENT, Chain, System, system
from malt_jax.runs.directory import RESULTS_FILE as RESULTS_FILE
from malt_jax.tasks.base import Question, Task

BEST, SINGLE = "malt+mv", "sa"
"""The two systems that all others are compared with, if they were evaluated."""

_MOST_GROUPS = 20
"""Fields of the questions with more values than this give no groups."""


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The outcome of one system on every question, and the cost of an answer."""

    correct: Float[np.ndarray, "seeds Q"]
    """1 or 0; without a vote the share of the passes that were correct."""
    verdict: Bool[np.ndarray, " Q"]
    """Of the first seed: the vote's answer, or that of the first pass."""
    tokens: float
    """Tokens sampled for one answer, on average."""
    prompt_tokens: float
    """Tokens of the prompts that they were sampled from."""
    seconds: float | None
    """Seconds of sampling for one answer."""


@dataclasses.dataclass
class Judge:
    """Judges the samples of some questions."""

    task: Task
    roles: Sequence[str]
    policies: Policies
    questions: Sequence[Question]
    seeds: int
    store: Store
    _answers: dict[tuple[int, Chain, int, int], str | None] = dataclasses.field(
        default_factory=dict, init=False
    )

    def outcome(self, system: System) -> Outcome:
        """The outcome of a system, whose samples are in the store."""
        chain = resolved(system.chain, self.roles, self.policies)
        correct = self.correct(chain, system.passes, voted=system.voted)
        used = system.passes if system.voted else 1
        nodes = [(question.id, n) for question in self.questions for n in range(system.passes)]
        tokens = prompt_tokens = 0.0
        seconds: list[float | None] = []
        for depth in range(1, len(chain) + 1):
            if chain[depth - 1] == SILENT:
                continue
            of_seeds = [self.store.samples(seed, chain[:depth]) for seed in range(self.seeds)]
            samples = [of_seed.by_node[node] for of_seed in of_seeds for node in nodes]
            tokens += used * float(np.mean([len(sample.ids) for sample in samples]))
            prompt_tokens += used * float(np.mean([sample.prompt_tokens for sample in samples]))
            rate = of_seeds[0].seconds_per_completion
            seconds.append(None if rate is None else used * rate)
        known = [value for value in seconds if value is not None]
        return Outcome(
            correct=correct.mean(axis=-1),
            verdict=correct[0, :, 0],
            tokens=tokens,
            prompt_tokens=prompt_tokens,
            seconds=sum(known) if len(known) == len(seconds) else None,
        )

    def correct(self, chain: Chain, passes: int, *, voted: bool) -> Bool[np.ndarray, "seeds Q P"]:
        """Whether each answer is correct: of every pass, or of the vote among them (P = 1)."""
        chain = resolved(chain, self.roles, self.policies)
        equal = self.task.equal

        def verdicts(seed: int, question: Question) -> list[bool]:
            answers = [self._answer(seed, chain, question.id, number) for number in range(passes)]
            if voted:
                answers = [majority_vote(answers, equal)]
            return [answer is not None and equal(answer, question.answer) for answer in answers]

        seeds = range(self.seeds)
        return np.array([[verdicts(seed, q) for q in self.questions] for seed in seeds], bool)

    def _answer(self, seed: int, chain: Chain, question: int, number: int) -> str | None:
        """The answer after a chain's last turn.

        Where a turn before the pipeline's last one gives no answer (a verifier need not), the
        answer before it stands.
        """
        key = (seed, chain, question, number)
        if key not in self._answers:
            sample = self.store.samples(seed, chain).by_node[question, number]
            answer = self.task.extract(sample.text)
            inner = 1 < len(chain) < len(self.roles) and DEBATER not in chain
            if answer is None and inner:
                answer = self._answer(seed, chain[:-1], question, number)
            self._answers[key] = answer
        return self._answers[key]


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
    systems = named_systems(team, names)
    return evaluated(judged(team, task, systems, questions, seeds, store), systems)


def named_systems(team: Team, names: Sequence[str]) -> list[System]:
    """The systems of these names, each once.

    Raises UserError for unknown systems, and for those that need trained roles that the team lacks.
    """
    systems = [system(name, team.pipeline.names, team.votes) for name in dict.fromkeys(names)]
    trained = [s.name for s in systems if not set(s.chain) <= {BASE, DEBATER}]
    if trained and not team.policies:
        raise UserError(
            f"{', '.join(trained)}: these systems need trained roles; give a finished run with"
            " --run-dir"
        )
    return systems


def judged(
    team: Team,
    task: Task,
    systems: Sequence[System],
    questions: Sequence[Question],
    seeds: int,
    store: Store,
) -> Judge:
    """The judge of all samples that the systems need, once the store has them.

    Raises UserError when a prompt could exceed the model's positions.
    """
    texts = [question.text for question in questions]
    limits = int(team.sampler.parameters.max_tokens), team.sampler.model.config.max_positions
    team.pipeline.check_lengths(texts, *limits)
    if any(s.name == DEBATE for s in systems):
        team.debate.check_lengths(texts, *limits)
    sample(team, systems, questions, seeds, store)
    return Judge(task, team.pipeline.names, team.policies, questions, seeds, store)


def evaluated(judge: Judge, systems: Sequence[System]) -> dict[str, Any]:
    """The fields of results.json that depend on the systems' samples."""
    outcomes = {system.name: judge.outcome(system) for system in systems}
    content: dict[str, Any] = {
        "systems": {s.name: system_entry(s, outcomes[s.name]) for s in systems},
        "comparisons": _comparisons(outcomes),
    }
    optional = {
        "turns": _turns(judge, systems),
        "transitions": _transitions(judge, systems),
        "groups": _groups(judge, outcomes),
        "pass_at_k": _pass_at_k(judge, systems),
    }
    return content | {name: part for name, part in optional.items() if part}


def estimate(
    scores: Float[np.ndarray, "Q"], name: str = "accuracy", interval: str = "ci95"
) -> dict[str, Any]:
    """The mean of per-question scores and its interval, under these two names."""
    mean, low, high = mean_interval(scores)
    return {name: mean, interval: [low, high]}


def system_entry(system: System, outcome: Outcome) -> dict[str, Any]:
    """Accuracy and costs of a system, as results.json has them."""
    protocol = subset_protocol(outcome.correct)
    return {
        **estimate(outcome.correct.mean(axis=0)),
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
    # `malt+mv - sa` is in both families and keeps the correction of the first.
    first, second = (compared(family, outcomes) for family in families)
    return first | {sides: entry for sides, entry in second.items() if sides not in first}


def compared(
    family: Sequence[tuple[str, str]], outcomes: Mapping[str, Outcome]
) -> dict[str, dict[str, Any]]:
    """Differences between the first and the second system of every pair, by "FIRST - SECOND".

    Each has its interval and McNemar's test, with Holm's correction for the tests of the family.
    """
    content = {}
    tests = [mcnemar(outcomes[a].verdict, outcomes[b].verdict) for a, b in family]
    for (a, b), p, corrected in zip(family, tests, holm(tests), strict=True):
        scores = outcomes[a].correct.mean(axis=0), outcomes[b].correct.mean(axis=0)
        content[f"{a} - {b}"] = {
            **estimate(scores[0] - scores[1], "difference"),
            "mcnemar_p": p,
            "mcnemar_p_holm": corrected,
        }
    return content


def _turns(judge: Judge, systems: Sequence[System]) -> dict[str, Any]:
    """Accuracy after every role of the complete pipelines."""

    def after(system: System, depth: int) -> dict[str, Any]:
        correct = judge.correct(system.chain[:depth], system.passes, voted=system.voted)
        return estimate(correct.mean(axis=-1).mean(axis=0))

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
        content[f"{SINGLE} -> {BEST}"] = transition(
            judge.correct(single.chain, single.passes, voted=False),
            judge.correct(best.chain, best.passes, voted=True),
        )
    for s in systems:
        if _is_pipeline(s, judge) and not s.voted:
            content[f"{s.name}: {judge.roles[0]} -> {judge.roles[-1]}"] = transition(
                judge.correct(s.chain[:1], s.passes, voted=False),
                judge.correct(s.chain, s.passes, voted=False),
            )
    return content


def transition(
    before: Bool[np.ndarray, "seeds Q _"], after: Bool[np.ndarray, "seeds Q _"]
) -> dict[str, Any]:
    """The shares of questions that change; P passes, or 1 for a vote, on either side."""
    changes = {"wrong_to_right": ~before & after, "right_to_wrong": before & ~after}
    content: dict[str, Any] = {}
    for name, changed in changes.items():
        content |= estimate(changed.mean(axis=(0, 2)), name, f"{name}_ci95")
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
    return estimate(outcome.correct[:, rows].mean(axis=0)) | {"questions": len(rows)}


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
