"""How far a node's value may be from the truth: a value is a mean over few leaves.

The label that a role learns from says only on which side of the threshold the value lies, so the
doubt that matters is whether the true value lies on the other side.
"""

from __future__ import annotations

import itertools
import math
from typing import NamedTuple

import numpy as np
import scipy.special
from jaxtyping import Float

from malt_jax.malt import credit

PAPER_DELTA = 0.05
"""Probability that the paper's bound may fail; the paper names no number."""


class ValueUncertainty(NamedTuple):
    """The uncertainty of the values of one role's nodes."""

    nodes: int
    """Nodes of the role."""
    leaves: int
    """Leaves below each node: how many grades its value is the mean of."""
    label_doubt: float
    """Expected share of labels that the true values would turn round."""
    standard_error: float | None
    """Root mean square, over nodes, of the value's standard error; None with a single child."""
    paper_epsilon: float
    """The paper's bound on the error of all values at once."""


def value_uncertainty(
    rewards: Float[np.ndarray, "Q *n"], threshold: float
) -> tuple[ValueUncertainty, ...]:
    """The uncertainty of every role's values, without the last role's, which are grades themselves.

    rewards:   of the leaves, a leading axis for the questions and one for each role.
    threshold: a node is labelled correct iff its value is strictly above.
    """
    values = credit.values(rewards)
    return tuple(
        ValueUncertainty(
            nodes=value.size,
            leaves=rewards.size // value.size,
            label_doubt=float(label_doubt(value, rewards.size // value.size, threshold).mean()),
            standard_error=standard_error(children),
            paper_epsilon=error_bound(value.size, rewards.size // value.size),
        )
        for value, children in itertools.pairwise(values)
    )


def label_doubt(
    values: Float[np.ndarray, "*n"], leaves: int, threshold: float
) -> Float[np.ndarray, "*n"]:
    """The posterior probability that a node's true value is on the other side of the threshold.

    values: means of the grades, 0 or 1, of `leaves` leaves each.

    Jeffreys' prior, Beta(1/2, 1/2), and leaves taken as independent draws. Leaves that share a
    descendant of the node are not: with two or more roles below the doubt is estimated too low.
    """
    right = np.asarray(values) * leaves
    below = scipy.special.betainc(right + 0.5, leaves - right + 0.5, min(max(threshold, 0.0), 1.0))
    return np.where(credit.labels(np.asarray(values), threshold), below, 1 - below)


def standard_error(children: Float[np.ndarray, "*n children"]) -> float | None:
    """Root mean square over nodes of the standard error of a mean of the node's children.

    children: their values. They are independent given the node, so this is right where leaves are
    not. None with a single child, which shows no spread.
    """
    count = children.shape[-1]
    if count == 1:
        return None
    return math.sqrt(float(children.var(axis=-1, ddof=1).mean()) / count)


def error_bound(nodes: int, leaves: int, delta: float = PAPER_DELTA) -> float:
    """With probability 1 - delta no value is further than this from its true value.

    Hoeffding's inequality and a union over the nodes. For the generator with n completions a role
    and M questions (nodes = M n, leaves = n^2) it is the bound sqrt(ln(2 M n / delta) / (2 n^2)) of
    arXiv 2412.01928. As there, leaves are taken as independent. A value above 1 says nothing.
    """
    return math.sqrt(math.log(2 * nodes / delta) / (2 * leaves))
