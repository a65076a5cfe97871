"""Intervals, tests and votes against scipy, closed forms and brute force."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from malt_jax.statistics import majority_vote, mcnemar, mean_interval, paired_difference


def test_interval_agrees_with_the_normal_approximation_for_many_questions():
    scores = np.array([1.0] * 700 + [0.0] * 300)
    mean, low, high = mean_interval(scores)
    half = 1.96 * math.sqrt(0.7 * 0.3 / 1000)
    assert mean == 0.7
    assert low == pytest.approx(0.7 - half, abs=2e-3)
    assert high == pytest.approx(0.7 + half, abs=2e-3)


def test_interval_agrees_with_scipy_on_few_scores_between_0_and_1():
    scores = np.random.default_rng(3).uniform(size=20)
    reference = scipy.stats.bootstrap(
        (scores,), np.mean, method="percentile", n_resamples=20_000, rng=np.random.default_rng(0)
    ).confidence_interval
    _, low, high = mean_interval(scores, resamples=20_000)
    assert low == pytest.approx(reference.low, abs=4e-3)
    assert high == pytest.approx(reference.high, abs=4e-3)


def test_interval_is_repeatable_and_exact_where_nothing_varies():
    scores = np.array([0.0, 1.0, 1.0])
    assert mean_interval(scores, seed=5) == mean_interval(scores, seed=5)
    assert mean_interval(np.ones(7)) == (1.0, 1.0, 1.0)


def test_interval_for_more_questions_than_fit_a_block():
    mean, low, high = mean_interval(np.resize([0.0, 1.0], 100_000), resamples=200)
    assert low < mean == 0.5 < high


def test_paired_difference_is_narrower_than_the_scores_alone():
    rng = np.random.default_rng(0)
    baseline = rng.integers(0, 2, 500).astype(float)
    scores = baseline.copy()
    scores[:20] = 1.0
    mean, low, high = paired_difference(scores, baseline)
    assert mean == pytest.approx(scores.mean() - baseline.mean())
    assert 0 < low <= mean <= high < 0.1
    assert high - low < 0.5 * (mean_interval(scores).high - mean_interval(scores).low)


def test_paired_difference_refuses_scores_of_different_questions():
    with pytest.raises(ValueError, match="unpaired"):
        paired_difference(np.ones(3), np.ones(4))


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (5, 5), (9, 2), (0, 12), (400, 350)])
def test_mcnemar_is_the_binomial_test_of_the_discordant_questions(better: int, worse: int):
    correct = np.array([1] * better + [0] * worse + [1] * 7 + [0] * 3)
    baseline = np.array([0] * better + [1] * worse + [1] * 7 + [0] * 3)
    expected = scipy.stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
    assert mcnemar(correct, baseline) == pytest.approx(expected)
    assert mcnemar(correct, baseline) == mcnemar(baseline, correct)


def test_votes_of_all_short_ballots_against_brute_force():
    for ballot in itertools.product(["a", "b", "c", None], repeat=4):
        counts = Counter(vote for vote in ballot if vote is not None)
        most = max(counts.values(), default=0)
        expected = next((vote for vote in ballot if vote and counts[vote] == most), None)
        assert majority_vote(ballot) == expected


@given(st.lists(st.sampled_from(["2", "2.0", "4/2", "3", None]), max_size=9))
def test_votes_are_counted_by_what_answers_mean(ballot: list[str | None]):
    def value(answer: str) -> float:
        return {"2": 2, "2.0": 2, "4/2": 2, "3": 3}[answer]

    winner = majority_vote(ballot, lambda a, b: value(a) == value(b))
    counts = Counter(value(vote) for vote in ballot if vote is not None)
    if not counts:
        assert winner is None
    else:
        assert winner is not None
        assert counts[value(winner)] == max(counts.values())
        assert winner == next(vote for vote in ballot if vote and value(vote) == value(winner))
