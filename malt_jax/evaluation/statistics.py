"""How good systems are and how sure that is: intervals, paired tests, corrections, and votes."""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import numpy as np
import scipy.special
from jaxtyping import Float, Int

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


def wilson_interval(successes: int, trials: int) -> Estimate:
    """A share of independent trials with its 95 % score interval (E. B. Wilson, 1927).

    Unlike the bootstrap it has a width when all trials ended alike. `trials` is at least one.
    """
    z = float(scipy.special.ndtri(0.975))
    share = successes / trials
    scale = 1 + z**2 / trials
    center = (share + z**2 / (2 * trials)) / scale
    half = z / scale * math.sqrt(share * (1 - share) / trials + (z / (2 * trials)) ** 2)
    return Estimate(share, max(0.0, center - half), min(1.0, center + half))


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


def holm(p_values: Sequence[float]) -> list[float]:
    """The p-values adjusted for their number, in their order (S. Holm, 1979).

    To call those at most alpha significant keeps the probability of any false call at alpha,
    however the tests depend on each other.
    """
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, (len(p_values) - rank) * p_values[index])
        adjusted[index] = min(1.0, largest)
    return adjusted


def pass_at_k(correct: Int[np.ndarray, "*Q"], total: int, k: int) -> Float[np.ndarray, "*Q"]:
    """For each question the probability that at least one of k passes is right.

    correct: how many of a question's `total` passes were right.
    k:       from 1 to `total`.

    The unbiased estimator 1 - C(total - correct, k) / C(total, k) of arXiv 2107.03374, section 2.1.
    Raises ValueError when k is not in that range.
    """
    if not 1 <= k <= total:
        raise ValueError(f"pass@{k} of {total} passes")
    wrong = total - np.asarray(correct)
    drawn = np.arange(k)
    # The product over the draws of the share of wrong passes among those that are left.
    return 1 - np.prod(np.maximum(wrong[..., None] - drawn, 0) / (total - drawn), axis=-1)


class SubsetScores(NamedTuple):
    """Accuracies on random subsets of the questions: mean and population standard deviation."""

    mean: float
    std: float
    subsets: int
    size: int


def subset_protocol(
    correct: Float[np.ndarray, "seeds Q"], *, subsets: int = 4, size: int = 100, seed: int = 0
) -> SubsetScores | None:
    """The protocol of the MALT paper (arXiv 2412.01928, section 4), to be comparable with it.

    correct: a score for each sampling seed and question. Subset i holds `size` different questions
        and is judged with sampling seed i modulo their number. The subsets depend on `seed` and on
        the number of questions alone, so they are the same for all systems.

    The deviation over subsets is no confidence interval; `mean_interval` gives one. None when there
    are fewer than `size` questions.
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
    """The most frequent answer; of several, the one that was given first. None does not vote.

    equal: whether two answers say the same; an answer counts for the first one that it equals.
    """
    votes: dict[str, int] = {}
    for answer in answers:
        if answer is not None:
            same = next((known for known in votes if equal(known, answer)), answer)
            votes[same] = votes.get(same, 0) + 1
    return max(votes, key=votes.__getitem__, default=None)
