"""Uncertainty of values and labels: a node's value is a mean over few leaves."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.special
from jaxtyping import Float

from malt_jax.malt import credit


class ValueUncertainty(NamedTuple):
    """Uncertainty of the values of one role's nodes."""

    nodes: int
    leaves: int
    """Leaves below each node."""
    label_doubt: float
    """Expected share of wrong labels."""
    standard_error: float | None
    """Root mean square, over nodes, of the value's standard error; None with a single child."""
    paper_epsilon: float
    """The paper's bound on the error of all values at once."""


def value_uncertainty(
    rewards: Float[np.ndarray, "Q *n"], thresholds: Sequence[float]
) -> tuple[ValueUncertainty, ...]:
    """Uncertainty for every role but the last, whose values are grades.

    rewards:    (Q, n_1, ..., n_d), grades of the leaves.
    thresholds: a role's node is labelled correct if its value is strictly above the role's.
    """
    pairs = itertools.pairwise(credit.values(rewards))
    return tuple(
        ValueUncertainty(
            nodes=value.size,
            leaves=(leaves := rewards.size // value.size),
            label_doubt=float(label_doubt(value, leaves, threshold).mean()),
            standard_error=standard_error(children),
            paper_epsilon=error_bound(value.size, leaves),
        )
        for (value, children), threshold in zip(pairs, thresholds, strict=False)
    )


def label_doubt(
    values: Float[np.ndarray, "*n"], leaves: int, threshold: float
) -> Float[np.ndarray, "*n"]:
    """Posterior probability that a label is wrong: the true value is across the threshold.

    The prior is Jeffreys', Beta(1/2, 1/2), and leaves count as independent. Leaves that share a
    descendant of the node are not, so the doubt is too low where two or more roles follow.

    values: means of the grades, 0 or 1, of `leaves` leaves each.
    """
    values = np.asarray(values)
    a, b = values * leaves + 0.5, leaves - values * leaves + 0.5
    below = scipy.special.betainc(a, b, min(max(threshold, 0.0), 1.0))
    return np.where(credit.labels(values, threshold), below, 1 - below)


def swap_doubt(
    chosen: Float[np.ndarray, "*pairs"], rejected: Float[np.ndarray, "*pairs"], leaves: int
) -> Float[np.ndarray, "*pairs"]:
    """Posterior probability that the rejected node's true value is above the chosen one's.

    The posteriors of both are those of `label_doubt` and independent, so the doubt is too low where
    two or more roles follow. Below 1/2 where the chosen node's value is higher.

    chosen, rejected: values, means of the grades, 0 or 1, of `leaves` leaves each.
    """
    both = np.stack(np.broadcast_arrays(chosen, rejected), axis=-1)
    # There are few different pairs of values.
    known, index = np.unique(both.reshape(-1, 2), axis=0, return_inverse=True)
    doubts = np.array([_probability_above(better, worse, leaves) for better, worse in known])
    return doubts[index].reshape(both.shape[:-1])


def _probability_above(better: float, worse: float, leaves: int) -> float:
    """P(w > b) for b and w of the posteriors of two values.

    With b = sin² t the density of t is sin(t)^2k cos(t)^2(n - k) for k of n leaves, so quadrature
    meets no singularity.
    """
    nodes, weights = np.polynomial.legendre.leggauss(64 + leaves)
    t = np.pi / 4 * (nodes + 1)
    right = better * leaves
    logs = 2 * (right * np.log(np.sin(t)) + (leaves - right) * np.log(np.cos(t)))
    density = weights * np.exp(logs - logs.max())
    wrong = leaves - worse * leaves
    above = scipy.special.betainc(wrong + 0.5, leaves - wrong + 0.5, np.cos(t) ** 2)
    return float((density * above).sum() / density.sum())


def standard_error(children: Float[np.ndarray, "*n children"]) -> float | None:
    """Root mean square, over nodes, of the standard error of the mean of a node's children.

    children: their values, which are independent given the node. None with a single child.
    """
    count = children.shape[-1]
    if count == 1:
        return None
    return math.sqrt(float(children.var(axis=-1, ddof=1).mean()) / count)


def error_bound(nodes: int, leaves: int, delta: float = 0.05) -> float:
    """Bound on the error of all values at once that holds with probability 1 - delta.

    Hoeffding's inequality and a union over the nodes, leaves taken as independent. For the first
    role's values in arXiv 2412.01928 (nodes = M n, leaves = n^2) it is the bound given there, which
    leaves delta open. A bound above 1 says nothing.
    """
    return math.sqrt(math.log(2 * nodes / delta) / (2 * leaves))
