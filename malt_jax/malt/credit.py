"""Credit: values, labels, SFT rows and preference pairs of a reasoning tree.

Rewards of the leaves have the shape [Q, n_1, ..., n_d]; a node of role r (from 0) is an index into
the first r + 2 axes: its question's row, then the branch taken at every role. See MALT (arXiv
2412.01928), section 4.2 and algorithm 1.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int, Shaped

from malt_jax.config import CreditConfig


class Node(NamedTuple):
    """A completion in a tree: its question's row, and the branch taken at every role down to it."""

    question: int
    path: tuple[int, ...]


class Pair(NamedTuple):
    """Two completions of one prompt; the first one is preferred."""

    chosen: Node
    rejected: Node
    gap: float
    """The chosen completion's value less the rejected one's."""


@dataclass(frozen=True)
class RoleRows:
    """The training rows of one role in a tree."""

    sft: tuple[Node, ...]
    pairs: tuple[Pair, ...]
    correct: tuple[Node, ...] = ()
    """Also those that `sft_rows=paired` leaves out of `sft`."""
    incorrect: tuple[Node, ...] = ()


def values(rewards: Float[np.ndarray, "Q *n"]) -> tuple[Float[np.ndarray, "Q ..."], ...]:
    """The value of every node, per role: the mean reward of the leaves below it, in float64.

    Element r has the shape rewards.shape[: r + 2]; the last one is the rewards.
    """
    rewards = np.asarray(rewards, np.float64)
    return tuple(
        rewards.mean(axis=tuple(range(depth, rewards.ndim))) for depth in range(2, rewards.ndim + 1)
    )


def labels(value: Float[np.ndarray, "*n"], threshold: float) -> Bool[np.ndarray, "*n"]:
    """Correct nodes: value strictly above the threshold, so that a tie is incorrect."""
    return np.asarray(value > threshold)


def assign(
    rewards: Float[np.ndarray, "Q *n"],
    completions: Sequence[Shaped[np.ndarray, "Q ..."]],
    question_ids: Sequence[int],
    configs: Sequence[CreditConfig],
    seed: int,
) -> tuple[RoleRows, ...]:
    """The training rows of every role: correct nodes, and pairs of correct x incorrect siblings.

    completions:  per role, the texts of its nodes. With `drop_duplicates` only the first of equal
        siblings gives rows; all of them count for the values.
    configs: the options of every role.
    question_ids: at least 0. The random choice under a cap depends on the seed, the role and the
        question's id, not on the batch.

    With `pairs=values` pairs are all siblings of different value, by `min_value_gap` at least.

    `max_rows_per_question` caps SFT rows, correct nodes and incorrect nodes, each on their own.
    Rows are in the order of the nodes, pairs in the order of (chosen, rejected). Caps come last: a
    correct node counts as paired even if the cap on pairs drops its pairs.
    """
    return tuple(
        _role_rows(value, written, question_ids, config, (seed, role))
        for role, (value, written, config) in enumerate(
            zip(values(rewards), completions, configs, strict=True)
        )
    )


def _role_rows(
    value: Float[np.ndarray, "Q *n"],
    written: Shaped[np.ndarray, "Q *n"],
    question_ids: Sequence[int],
    config: CreditConfig,
    seed: tuple[int, int],
) -> RoleRows:
    correct = labels(value, config.threshold)
    kept = ~_repeats_sibling(written) if config.drop_duplicates else np.ones_like(correct)
    chosen, rejected = correct & kept, ~correct & kept
    rows = chosen
    if config.sft_rows == "paired":
        rows = chosen & rejected.any(axis=-1, keepdims=True)
    gaps = value[..., :, None] - value[..., None, :]
    if config.pairs == "labels":
        pairs = chosen[..., :, None] & rejected[..., None, :]
    else:
        pairs = kept[..., :, None] & kept[..., None, :] & (gaps > 0)
    # A gap is a sum of rounded means: one that equals the option is not left out for its last bit.
    pairs &= gaps >= config.min_value_gap - 1e-9

    def nodes(wanted: Bool[np.ndarray, "Q *n"], draw: int) -> tuple[Node, ...]:
        cap, indices = config.max_rows_per_question, np.argwhere(wanted)
        return tuple(_node(*i) for i in _cap(indices, cap, question_ids, (*seed, draw)).tolist())

    pair_indices = _cap(np.argwhere(pairs), config.max_pairs_per_question, question_ids, (*seed, 1))
    return RoleRows(
        sft=nodes(rows, 0),
        pairs=tuple(
            Pair(_node(*parent, better), _node(*parent, worse), float(gaps[*parent, better, worse]))
            for *parent, better, worse in pair_indices.tolist()
        ),
        correct=nodes(chosen, 0),
        incorrect=nodes(rejected, 2),
    )


def _repeats_sibling(written: Shaped[np.ndarray, "*N n"]) -> Bool[np.ndarray, "*N n"]:
    """Nodes with the text of an earlier sibling."""
    equal = (written[..., :, None] == written[..., None, :]).astype(bool)
    return np.tril(equal, -1).any(axis=-1)


def _cap(
    indices: Int[np.ndarray, "rows axes"],
    cap: int | None,
    question_ids: Sequence[int],
    seed: tuple[int, ...],
) -> Int[np.ndarray, "capped axes"]:
    """At most `cap` rows of each question, drawn without replacement, in their order."""
    if cap is None:
        return indices
    kept = []
    for question, question_id in enumerate(question_ids):
        of_question = indices[indices[:, 0] == question]
        if len(of_question) > cap:
            rng = np.random.default_rng([*seed, question_id])
            of_question = of_question[np.sort(rng.choice(len(of_question), cap, replace=False))]
        kept.append(of_question)
    return np.concatenate(kept) if kept else indices


def _node(question: int, *path: int) -> Node:
    return Node(question, path)
