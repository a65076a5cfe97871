"""One level of the reasoning tree's key-value cache, and activations of several levels as one."""

from __future__ import annotations

import math
from collections.abc import Sequence

import flax.struct
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int


class Level(flax.struct.PyTreeNode):
    """Keys and values of one segment of every node at one depth of the tree.

    The leading axes `*N` are the questions and the branches down to this depth, (Q, n_1, ..., n_d);
    the root level, which all questions share, has none.
    The prefix of a node is the concatenation of its ancestors' segments, so a fork is one more
    leading axis below and copies nothing. Heads stand before tokens because attention batches over
    them, and keys have their tokens last: so both products of a decode step read the cache in the
    order it lies in (on a CPU, the product with keys of the values' layout takes 12 times longer).
    """

    keys: Float[Array, "L *N K E S"]
    """Rotary positions are already applied."""
    values: Float[Array, "L *N K S E"]
    lengths: Int[Array, "*N"]
    """Valid tokens of each segment; what stands behind them is padding and never attended to."""

    @property
    def leading(self) -> tuple[int, ...]:
        """The leading axes (Q, n_1, ..., n_d); () for the root."""
        return self.lengths.shape

    @property
    def nodes(self) -> int:
        return math.prod(self.leading)


def level_axes(leading: int) -> Level:
    """Logical axes of a level with so many leading axes, each array's as a PartitionSpec."""
    nodes = ("batch", *[None] * (leading - 1)) if leading else ()
    heads = P("layers", *nodes, "kv_heads")
    return Level(heads, heads, P(*nodes))  # type: ignore[arg-type]


def join_levels(levels: Sequence[Float[Array, "*N T D"]]) -> Float[Array, "*B D"]:
    """One array for all that works on single tokens.

    Several levels have the same first axis, which stays and may be split over devices; all tokens
    below an element of it become one row, [B, S, D]. One level stays as it is.
    """
    if len(levels) == 1:
        return levels[0]
    rows = [x.reshape(x.shape[0], -1, x.shape[-1]) for x in levels]
    return jnp.concatenate(rows, axis=1)


def split_levels(
    joined: Float[Array, "*B D"], shapes: Sequence[tuple[int, ...]]
) -> list[Float[Array, "*N T D"]]:
    """What `join_levels` joined; `shapes` are those of the levels, (*N, T)."""
    if len(shapes) == 1:
        return [joined]
    levels, start = [], 0
    for shape in shapes:
        stop = start + math.prod(shape[1:])
        levels.append(joined[:, start:stop].reshape(*shape, joined.shape[-1]))
        start = stop
    return levels
