"""One level of the key-value cache, and activations of several levels as one array."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from malt_jax.model.config import Llama
from malt_jax.sharding.rules import ArraySpec


class Level(flax.struct.PyTreeNode):
    """Keys and values of one prompt segment of every node at one depth of the tree.

    The prefix of a node is the concatenation of its ancestors' segments, so a fork is one more
    leading axis below and copies nothing. The root level, which all questions share, has no node
    axes. Heads stand before tokens because attention batches over them, and keys have their tokens
    last: so both products of a decode step read the cache in the order of its memory (on a CPU,
    the product with keys in the values' layout takes 12 times longer).
    """

    keys: Float[Array, "L *tree K H S"]
    """Rotary positions are already applied."""
    values: Float[Array, "L *tree K S H"]
    lengths: Int[Array, "*tree"]
    """Valid tokens of each segment; the rest is padding, which attention masks."""

    @property
    def leading(self) -> tuple[int, ...]:
        """The node axes (Q, n_1, ..., n_d); () for the root."""
        return self.lengths.shape

    @property
    def size(self) -> int:
        """Tokens that there is room for."""
        return self.keys.shape[-1]


def level_spec(model: Llama, leading: tuple[int, ...], size: int) -> Any:
    """The ArraySpecs of a level with these node axes and room for `size` tokens a node."""
    config = model.config
    nodes = ("batch", *[None] * (len(leading) - 1)) if leading else ()
    axes = P("layers", *nodes, "kv_heads")
    heads = (config.num_layers, *leading, config.num_kv_heads)
    specs: dict[str, Any] = {
        "keys": ArraySpec((*heads, config.head_dim, size), model.dtype, axes),
        "values": ArraySpec((*heads, size, config.head_dim), model.dtype, axes),
        "lengths": ArraySpec(leading, jnp.int32, P(*nodes)),
    }
    return Level(**specs)


def join_levels(levels: Sequence[Float[Array, "... D"]]) -> Float[Array, "... D"]:
    """One array for layers that work on single tokens.

    Several levels have the same first axis, which stays and may be split over devices; all tokens
    below an element of it become one row, [Q, tokens, D]. One level stays as it is.
    """
    if len(levels) == 1:
        return levels[0]
    rows = [x.reshape(x.shape[0], -1, x.shape[-1]) for x in levels]
    return jnp.concatenate(rows, axis=1)


def split_levels(
    joined: Float[Array, "... D"], shapes: Sequence[tuple[int, ...]]
) -> list[Float[Array, "... D"]]:
    """The inverse of `join_levels`; `shapes` are those of the levels, (*tree, T)."""
    if len(shapes) == 1:
        return [joined]
    levels, start = [], 0
    for shape in shapes:
        stop = start + math.prod(shape[1:])
        levels.append(joined[:, start:stop].reshape(*shape, joined.shape[-1]))
        start = stop
    return levels
