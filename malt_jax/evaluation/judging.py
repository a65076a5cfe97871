"""Judging samples: answers are extracted, compared and put to the vote."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float

from malt_jax.evaluation.sampling import Policies, resolved
from malt_jax.evaluation.statistics import majority_vote
from malt_jax.evaluation.store import Store
from malt_jax.evaluation.systems import DEBATER, SILENT, Chain, System
from malt_jax.tasks.base import Question, Task


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
