"""One level of the reasoning tree's key-value cache."""

from __future__ import annotations

import math

import flax.struct
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
