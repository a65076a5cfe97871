"""Levels of the cache: padding to buckets, prefill, growth and appending."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int

from malt_jax.model.levels import Level
from malt_jax.model.llama import Llama, Params, forward
from malt_jax.sharding.rules import ArraySpec


def bucket(size: int) -> int:
    """The padded length for a segment: 16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, ...

    Four lengths per power of two keep the number of compiled programs logarithmic and the padding
    of long segments below a fifth.
    """
    for power in range(4, 31):
        for quarters in (4, 5, 6, 7):
            length = quarters << (power - 2)
            if length >= max(size, 16) and length % 16 == 0:
                return length
    raise ValueError(f"a segment of {size} tokens is out of range")


def pad_segments(
    segments: Sequence[Sequence[int]], leading: tuple[int, ...]
) -> tuple[Int[np.ndarray, "*tree T"], Int[np.ndarray, "*tree"]]:
    """Pads ragged segments, given in row-major order of the leading axes, to one bucket.

    Returns the tokens and the lengths. Attention masks the padding.
    """
    lengths = np.array([len(segment) for segment in segments], np.int32)
    tokens = np.zeros((len(segments), bucket(int(lengths.max(initial=0)))), np.int32)
    for row, segment in zip(tokens, segments, strict=True):
        row[: len(segment)] = segment
    return tokens.reshape(*leading, -1), lengths.reshape(leading)


def segment_specs(leading: tuple[int, ...], width: int) -> tuple[ArraySpec, ArraySpec]:
    """The ArraySpecs of `pad_segments`' results for a bucket of `width` tokens."""
    axes = P("batch") if leading else P()
    return ArraySpec((*leading, width), jnp.int32, axes), ArraySpec(leading, jnp.int32, axes)


@functools.partial(jax.jit, static_argnames="model")
def prefill(
    model: Llama,
    variables: Params,
    tokens: Int[Array, "*tree T"],
    lengths: Int[Array, "*tree"],
    ancestors: tuple[Level, ...],
) -> Level:
    """The cache of one level given the levels above it; one program per shape."""
    _, level = forward(model, variables, tokens, lengths, ancestors)
    return level


def append(level: Level, token: Level, step: Int[Array, ""]) -> Level:
    """Writes one token's keys and values at the same position of every node.

    One write position for the whole batch lets the compiler update the buffer in place.
    """

    axis = level.keys.ndim - 1
    keys = jax.lax.dynamic_update_slice_in_dim(level.keys, token.keys, step, axis)
    values = jax.lax.dynamic_update_slice_in_dim(level.values, token.values, step, axis - 1)
    return Level(keys, values, jnp.full(level.lengths.shape, step + 1, jnp.int32))


def append_rows(level: Level, token: Level, added: Int[Array, "B"]) -> Level:
    """Writes one token's keys and values after the valid tokens of every row of a batch.

    level: of B rows with lengths of their own; a row that is full stays as it is.
    added: 1 where the token counts, 0 where the row's length stays.
    """
    rows = jnp.arange(level.lengths.shape[0])

    def first_axis_rows(x: Array) -> Array:
        return jnp.moveaxis(x, 1, 0)

    # Two index arrays with a slice between them put their axis first: [B, L, K, H].
    keys = level.keys.at[:, rows, :, :, level.lengths].set(
        first_axis_rows(token.keys[..., 0]), mode="drop", unique_indices=True
    )
    values = level.values.at[:, rows, :, level.lengths].set(
        first_axis_rows(token.values[..., 0, :]), mode="drop", unique_indices=True
    )
    return Level(keys, values, level.lengths + added)
