"""Intervals, tests and votes against scipy, closed forms and brute force."""

import itertools
import math
from collections import Counter

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from malt_jax.evaluation.statistics import (
    holm,
    majority_vote,
    mcnemar,
    mean_interval,
    pass_at_k,
    subset_protocol,
)


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
    mean, low, high = mean_interval(scores - baseline)
    assert mean == pytest.approx(scores.mean() - baseline.mean())
    assert 0 < low <= mean <= high < 0.1
    assert high - low < 0.5 * (mean_interval(scores).high - mean_interval(scores).low)


@pytest.mark.parametrize(("better", "worse"), [(0, 0), (1, 0), (5, 5), (9, 2), (0, 12), (400, 350)])
def test_mcnemar_is_the_binomial_test_of_the_discordant_questions(better: int, worse: int):
    correct = np.array([1] * better + [0] * worse + [1] * 7 + [0] * 3)
    baseline = np.array([0] * better + [1] * worse + [1] * 7 + [0] * 3)
    expected = scipy.stats.binomtest(better, better + worse).pvalue if better + worse else 1.0
    assert mcnemar(correct, baseline) == pytest.approx(expected)
    assert mcnemar(correct, baseline) == mcnemar(baseline, correct)


def test_holm_of_a_worked_example():
    # Sorted: 4 x 0.005, 3 x 0.01, 2 x 0.03, 1 x 0.04 raised to the one before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=6), st.sampled_from([0.01, 0.05, 0.2]))
def test_holm_rejects_what_its_step_down_procedure_rejects(p_values: list[float], alpha: float):
    rejected = set[int]()
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if (len(p_values) - rank) * p_values[index] > alpha:
            break
        rejected.add(index)
    assert {i for i, p in enumerate(holm(p_values)) if p <= alpha} == rejected


def test_pass_at_k_against_all_choices_of_k_passes():
    total = 6
    for k in range(1, total + 1):
        for correct in range(total + 1):
            passes = [True] * correct + [False] * (total - correct)
            choices = list(itertools.combinations(passes, k))
            expected = sum(map(any, choices)) / len(choices)
            assert pass_at_k(np.array([correct]), total, k)[0] == pytest.approx(expected)


def test_pass_at_1_is_the_share_of_correct_passes_and_pass_at_all_is_any():
    correct = np.array([0, 1, 3, 9])
    np.testing.assert_allclose(pass_at_k(correct, 9, 1), correct / 9)
    np.testing.assert_array_equal(pass_at_k(correct, 9, 9), [0, 1, 1, 1])
    with pytest.raises(ValueError, match="pass@10 of 9"):
        pass_at_k(correct, 9, 10)


def test_subsets_take_turns_with_the_sampling_seeds():
    # Seed 0 is always correct and seed 1 never, so whatever the subsets hold the scores are known.
    correct = np.stack([np.ones(300), np.zeros(300)])
    assert subset_protocol(correct, subsets=3) == pytest.approx((2 / 3, np.std([1, 0, 1]), 3, 100))


def test_subsets_are_random_repeatable_and_without_repetitions():
    correct = np.random.default_rng(0).integers(0, 2, (4, 1000)).astype(float)
    scores = subset_protocol(correct)
    assert scores == subset_protocol(correct) != subset_protocol(correct, seed=1)
    assert scores is not None and 0.35 < scores.mean < 0.65 and scores.std > 0
    # All questions at once: every subset is the whole set.
    whole = subset_protocol(correct, size=1000)
    assert whole == pytest.approx((correct.mean(), correct.mean(axis=1).std(), 4, 1000))


def test_the_deviation_over_subsets_is_that_of_draws_without_replacement():
    correct = np.resize([1.0, 1.0, 1.0, 0.0], 1000)[None]
    scores = subset_protocol(correct, subsets=2000)
    assert scores is not None
    expected = math.sqrt(0.75 * 0.25 / 100 * (1000 - 100) / (1000 - 1))
    assert scores.mean == pytest.approx(0.75, abs=4e-3)
    assert scores.std == pytest.approx(expected, rel=0.06)


def test_no_subsets_of_too_few_questions():
    assert subset_protocol(np.ones((2, 99))) is None


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
