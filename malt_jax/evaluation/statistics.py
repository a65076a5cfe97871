"""Confidence intervals, paired tests, corrections, pass@k and votes."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int, Shaped

_BLOCK = 1 << 22
"""Scores drawn by the bootstrap in one array, at most."""


class Estimate(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


def mean_interval(
    scores: Float[np.ndarray, "Q"], *, seed: int = 0, resamples: int = 10_000
) -> Estimate:
    """Mean of per-question scores, with its 95 % percentile bootstrap interval over questions.

    scores: one number per question, at least one: 0 or 1, or a mean over seeds. For two systems
        on the same questions, their difference.
    """
    scores = np.asarray(scores, np.float64)
    rng = np.random.default_rng(seed)
    rows = max(1, _BLOCK // len(scores))
    means = [
        scores[rng.integers(len(scores), size=(min(rows, resamples - start), len(scores)))].mean(1)
        for start in range(0, resamples, rows)
    ]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Estimate(float(scores.mean()), float(low), float(high))


def mcnemar(correct: Shaped[np.ndarray, "Q"], baseline: Shaped[np.ndarray, "Q"]) -> float:
    """Two-sided p-value of the exact McNemar test.

    It is the binomial test, with probability 1/2, of the questions that only one system answers
    correctly.

    correct, baseline: 0 or 1 for each question, the same questions in both.
    """
    better = int(np.sum((np.asarray(correct) > 0) & (np.asarray(baseline) <= 0)))
    worse = int(np.sum((np.asarray(correct) <= 0) & (np.asarray(baseline) > 0)))
    discordant = better + worse
    tail = sum(math.comb(discordant, k) for k in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / 2**discordant)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjusts p-values for multiple tests, in their order (S. Holm, 1979).

    Rejecting every test whose adjusted value is at most alpha keeps the probability of any false
    rejection at alpha, however the tests depend on each other.
    """
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, largest)
    return adjusted


def pass_at_k(correct: Int[np.ndarray, "*Q"], total: int, k: int) -> Float[np.ndarray, "*Q"]:
    """Probability, for each question, that at least one of k passes is correct.

    The unbiased estimator 1 - C(total - correct, k) / C(total, k) of arXiv 2107.03374, section 2.1.

    correct: number of a question's `total` passes that are correct.

    Raises ValueError unless 1 <= k <= total.
    """
    if not 1 <= k <= total:
        raise ValueError(f"pass@{k} of {total} passes")
    incorrect = total - np.asarray(correct)
    drawn = np.arange(k)
    # Product over the draws of the share of incorrect passes among those that remain.
    return 1 - np.prod(np.maximum(incorrect[..., None] - drawn, 0) / (total - drawn), axis=-1)


class SubsetScores(NamedTuple):
    """Accuracies on random subsets of the questions: mean and population standard deviation."""

    mean: float
    std: float
    subsets: int
    size: int


def subset_protocol(
    correct: Float[np.ndarray, "seeds Q"], *, subsets: int = 4, size: int = 100, seed: int = 0
) -> SubsetScores | None:
    """Accuracy by the protocol of the MALT paper (arXiv 2412.01928, section 4).

    Subset i has `size` different questions and takes sampling seed i modulo their number. Subsets
    depend only on `seed` and the number of questions, so they are the same for all systems. The
    standard deviation is not a confidence interval. None if there are fewer than `size` questions.
    """
    seeds, questions = np.shape(correct)
    if questions < size:
        return None
    rng = np.random.default_rng(seed)
    drawn = [rng.choice(questions, size, replace=False) for _ in range(subsets)]
    scores = [np.mean(correct[i % seeds, rows]) for i, rows in enumerate(drawn)]
    return SubsetScores(float(np.mean(scores)), float(np.std(scores)), subsets, size)


def majority_vote(
    answers: Iterable[str | None], equal: Callable[[str, str], bool] = operator.eq
) -> str | None:
    """The most frequent answer; on a tie, the one given first; see `count_votes`."""
    votes = count_votes(answers, equal)
    return max(votes, key=votes.__getitem__, default=None)


def count_votes(
    answers: Iterable[str | None], equal: Callable[[str, str], bool] = operator.eq
) -> dict[str, int]:
    """The votes for every answer, in the order given. None (unparseable) does not vote.

    equal: whether two answers mean the same; an answer counts for the first one that it equals.
    """
    votes: dict[str, int] = {}
    for answer in answers:
        if answer is not None:
            same = next((known for known in votes if equal(known, answer)), answer)
            votes[same] = votes.get(same, 0) + 1
    return votes
