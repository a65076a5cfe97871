"""How sure a comparison of systems is: intervals over questions, paired tests, and votes."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

RESAMPLES = 10_000
_BLOCK = 1 << 22


class Estimate(NamedTuple):
    """A mean and its 95 % interval."""

    mean: float
    low: float
    high: float


def mean_interval(
    scores: Float[np.ndarray, "Q"], *, seed: int = 0, resamples: int = RESAMPLES
) -> Estimate:
    """The mean of per-question scores, with the 95 % percentile bootstrap over questions.

    scores: one number a question: 0 or 1, or the mean over seeds. At least one.
    """
    scores = np.asarray(scores, np.float64)
    rng = np.random.default_rng(seed)
    # A block of resamples at a time bounds the memory for large test sets.
    rows = max(1, _BLOCK // len(scores))
    means = [
        scores[rng.integers(len(scores), size=(min(rows, resamples - start), len(scores)))].mean(1)
        for start in range(0, resamples, rows)
    ]
    low, high = np.quantile(np.concatenate(means), [0.025, 0.975])
    return Estimate(float(scores.mean()), float(low), float(high))


def paired_difference(
    scores: Float[np.ndarray, "Q"],
    baseline: Float[np.ndarray, "Q"],
    *,
    seed: int = 0,
    resamples: int = RESAMPLES,
) -> Estimate:
    """Mean of scores - baseline on the same questions, with its 95 % bootstrap interval."""
    if np.shape(scores) != np.shape(baseline):
        raise ValueError(f"unpaired scores: {np.shape(scores)} and {np.shape(baseline)}")
    return mean_interval(
        np.asarray(scores, np.float64) - np.asarray(baseline, np.float64),
        seed=seed,
        resamples=resamples,
    )


def mcnemar(correct: Float[np.ndarray, "Q"], baseline: Float[np.ndarray, "Q"]) -> float:
    """Two-sided exact McNemar test: the probability of a split of the discordant questions at least
    as uneven as the one seen, if both systems were equally good.

    correct, baseline: 0 or 1 for each question, the same questions in both.
    """
    better = int(np.sum((np.asarray(correct) > 0) & (np.asarray(baseline) <= 0)))
    worse = int(np.sum((np.asarray(correct) <= 0) & (np.asarray(baseline) > 0)))
    discordant = better + worse
    tail = sum(math.comb(discordant, k) for k in range(min(better, worse) + 1))
    return min(1.0, 2 * tail / 2**discordant)


def majority_vote(
    answers: Iterable[str | None], equal: Callable[[str, str], bool] = operator.eq
) -> str | None:
    """The most frequent answer; of several, the one that was given first. None does not vote.

    equal: whether two answers say the same; an answer counts for the first one that it equals.
    """
    votes: dict[str, int] = {}
    for answer in answers:
        if answer is not None:
            same = next((known for known in votes if equal(known, answer)), answer)
            votes[same] = votes.get(same, 0) + 1
    return max(votes, key=votes.__getitem__, default=None)
