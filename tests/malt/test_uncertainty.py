"""How sure values are, against closed forms, numerical integration and simulated trees."""

import math

import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from malt_jax.malt.uncertainty import (
    error_bound,
    label_doubt,
    standard_error,
    swap_doubt,
    value_uncertainty,
)


def test_the_doubt_of_one_leaf_is_the_arcsine_law():
    # Beta(3/2, 1/2) below 1/2: (2/pi) (asin sqrt x - sqrt(x (1 - x))) at x = 1/2.
    expected = 2 / math.pi * (math.pi / 4 - 0.5)
    np.testing.assert_allclose(label_doubt(np.array([0.0, 1.0]), 1, 0.5), expected)


@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.8])
def test_the_doubt_is_the_posterior_beyond_the_threshold(threshold: float):
    leaves = 9
    for right in range(leaves + 1):

        def density(p: float, right: int = right) -> float:
            return p ** (right - 0.5) * (1 - p) ** (leaves - right - 0.5)

        below = scipy.integrate.quad(density, 0, threshold)[0]
        above = scipy.integrate.quad(density, threshold, 1)[0]
        correct = right / leaves > threshold
        expected = (below if correct else above) / (below + above)
        doubt = label_doubt(np.array(right / leaves), leaves, threshold)
        assert doubt == pytest.approx(expected, rel=1e-6)


def test_the_doubt_vanishes_with_many_leaves_and_is_half_at_the_threshold():
    values = np.array([0.4, 0.6])
    assert (label_doubt(values, 10_000, 0.5) < 1e-6).all()
    assert label_doubt(np.array(0.5), 8, 0.5) == pytest.approx(0.5)
    # Nothing lies above a threshold of 1, so nothing can be labelled wrong.
    np.testing.assert_array_equal(label_doubt(np.array([0.0, 1.0]), 4, 1.0), [0, 0])


def test_the_doubt_is_calibrated_for_values_drawn_from_the_prior():
    rng = np.random.default_rng(0)
    truth = rng.beta(0.5, 0.5, 100_000)
    seen = rng.binomial(9, truth) / 9
    wrong = np.mean((truth > 0.5) != (seen > 0.5))
    assert label_doubt(seen, 9, 0.5).mean() == pytest.approx(wrong, abs=3e-3)


@pytest.mark.parametrize("leaves", [1, 3, 9])
def test_the_doubt_about_a_pair_is_the_posterior_of_the_other_order(leaves: int):
    posteriors = [scipy.stats.beta(k + 0.5, leaves - k + 0.5) for k in range(leaves + 1)]
    for right in range(leaves + 1):
        for wrong in range(leaves + 1):
            # b = sin² t: without the singularities of the densities at 0 and 1.
            expected, _ = scipy.integrate.quad(
                lambda t, b=posteriors[right], w=posteriors[wrong]: (
                    b.pdf(math.sin(t) ** 2) * w.sf(math.sin(t) ** 2) * math.sin(2 * t)
                ),
                0,
                math.pi / 2,
            )
            doubt = swap_doubt(np.array(right / leaves), np.array(wrong / leaves), leaves)
            assert doubt == pytest.approx(expected, abs=1e-6)
            if right == wrong:
                assert doubt == pytest.approx(0.5)
            assert (doubt < 0.499) == (right > wrong)


def test_the_doubt_about_pairs_is_calibrated_for_values_drawn_from_the_prior():
    rng = np.random.default_rng(2)
    truth = rng.beta(0.5, 0.5, (2, 100_000))
    seen = rng.binomial(3, truth) / 3
    truth, seen = truth[:, seen[0] > seen[1]], seen[:, seen[0] > seen[1]]
    doubts = swap_doubt(seen[0], seen[1], 3)
    assert doubts.shape == seen[0].shape
    assert doubts.mean() == pytest.approx(np.mean(truth[1] > truth[0]), abs=4e-3)
    # Values of many leaves leave none.
    assert swap_doubt(np.array([0.6]), np.array([0.4]), 5000)[0] < 1e-6


def test_the_standard_error_allows_for_leaves_that_share_a_child():
    # The true value of every node is 1/2; its children's values are 0 or 1, so that the three
    # leaves of a child tell no more than one.
    rng = np.random.default_rng(1)
    children = rng.integers(0, 2, (20_000, 3)).astype(float)
    actual = np.sqrt(np.mean((children.mean(axis=1) - 0.5) ** 2))
    assert standard_error(children) == pytest.approx(actual, rel=0.02)
    assert standard_error(children[:, :1]) is None


def test_the_bound_is_the_papers_for_its_generator():
    n, questions, delta = 3, 7473, 0.05
    expected = math.sqrt(math.log(2 * questions * n / delta) / (2 * n**2))
    assert error_bound(questions * n, n**2, delta) == pytest.approx(expected)
    assert 0.87 < expected < 0.88


def test_every_role_but_the_last_of_a_small_tree():
    rewards = np.array([[[[1, 1, 1], [1, 0, 0]], [[0, 0, 0], [0, 0, 0]]]], float)
    generator, verifier = value_uncertainty(rewards, [0.5] * 3)
    assert (generator.nodes, generator.leaves) == (2, 6)
    assert (verifier.nodes, verifier.leaves) == (4, 3)
    # Children of the generator's nodes: (1, 1/3) and (0, 0).
    assert generator.standard_error == pytest.approx(math.sqrt((2 / 9 + 0) / 2 / 2))
    assert verifier.standard_error == pytest.approx(math.sqrt((1 / 3) / 4 / 3))
    expected = label_doubt(np.array([1, 1 / 3, 0, 0]), 3, 0.5).mean()
    assert verifier.label_doubt == pytest.approx(expected)
    assert value_uncertainty(np.ones((5, 3)), [0.5]) == ()
    low, same = value_uncertainty(rewards, [0.2, 0.5, 0.5])
    assert same == verifier and low.label_doubt != generator.label_doubt
