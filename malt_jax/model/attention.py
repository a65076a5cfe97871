"""Rotary positions, and attention of one level of the tree to itself and to its ancestors.

Every ancestor level is stored once for all its descendants: their queries are the rows of one
matrix product with its keys, and the partial softmaxes are merged by their log-sum-exp. This is
cascade attention (FlashInfer, arXiv 2501.01005) over any number of levels, also known as Hydragen
(arXiv 2402.05099) and bifurcated attention (arXiv 2403.08845).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from malt_jax.model.config import Llama3RopeScaling, LlamaConfig

LOWEST = -1e30


class Rotation(NamedTuple):
    """The rotary embedding (arXiv 2104.09864) of some positions, float32.

    Cosines and sines of the angles by which the H/2 pairs of a head turn.
    """

    cos: Float[Array, "*tree T half"]
    sin: Float[Array, "*tree T half"]


def rotation(positions: Int[Array, "*tree T"], config: LlamaConfig) -> Rotation:
    """The rotation at these positions."""
    frequencies = jnp.asarray(inverse_frequencies(config))
    angles = jnp.einsum("...t,h->...th", positions.astype(jnp.float32), frequencies)
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(x: Float[Array, "*tree T heads H"], turn: Rotation) -> Float[Array, "*tree T heads H"]:
    """Rotates the pairs (x[i], x[i + H/2]) of every head, in float32, and returns x's dtype."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = turn.cos[..., None, :], turn.sin[..., None, :]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def inverse_frequencies(config: LlamaConfig) -> Float[np.ndarray, " half"]:
    """Radians per position of each of the H/2 pairs, float32.

    Rounded to float32 after every step, as checkpoints were trained: at position 10,000 the last
    bit of a frequency is worth a milliradian. NumPy's own float32 power is off by that bit for one
    frequency in five.
    """
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    powers = np.power(np.float64(config.rope_theta), exponents.astype(np.float64))
    frequencies = np.float32(1.0) / powers.astype(np.float32)
    if config.rope_scaling is None:
        return frequencies
    return _scale_llama3(frequencies, config.rope_scaling)


def _scale_llama3(
    frequencies: Float[np.ndarray, " half"], scaling: Llama3RopeScaling
) -> Float[np.ndarray, " half"]:
    """Slows the pairs whose wavelength exceeds the original context by `factor`, keeps the fast
    ones, and blends in between (Llama 3.1's reference code, `apply_scaling`)."""
    wavelengths = np.float32(2 * np.pi) / frequencies
    turns = np.float32(scaling.original_max_positions) / wavelengths
    low, high = np.float32(scaling.low_freq_factor), np.float32(scaling.high_freq_factor)
    keep = np.clip((turns - low) / (high - low), np.float32(0), np.float32(1))
    slowed = frequencies / np.float32(scaling.factor)
    return ((np.float32(1) - keep) * slowed + keep * frequencies).astype(np.float32)


class Ancestor(NamedTuple):
    """One layer's keys and values of an ancestor level; `*above` is a prefix of `*tree`."""

    keys: Float[Array, "*above K H S"]
    values: Float[Array, "*above K S H"]
    lengths: Int[Array, "*above"]


class _Partial(NamedTuple):
    """An unnormalised softmax over one level: exp(logits - peak), summed and times values."""

    peak: Float[Array, "*tree K G T 1"]
    total: Float[Array, "*tree K G T 1"]
    weighted: Float[Array, "*tree K G T H"]


def attend(
    queries: Float[Array, "*tree T K G H"],
    keys: Float[Array, "*tree K H T"],
    values: Float[Array, "*tree K T H"],
    ancestors: Sequence[Ancestor],
) -> Float[Array, "*tree T K G H"]:
    """Causal attention within the level, full attention to the valid tokens of its ancestors.

    Logits and softmax are float32 for inputs of any dtype; the result has the queries' dtype. A
    level's own padding needs no mask: it comes after the valid tokens, so the causal mask hides it.
    """
    scale = queries.shape[-1] ** -0.5
    time = queries.shape[-4]
    rows = jnp.moveaxis(queries, -4, -2)
    causal = jnp.tril(jnp.ones((time, time), bool))
    parts = [_partial(rows, keys, values, causal, scale)]
    for ancestor in ancestors:
        shape = (*ancestor.lengths.shape, ancestor.keys.shape[-1])
        index = jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)
        valid = index < ancestor.lengths[..., None]
        parts.append(_shared_partial(rows, ancestor, valid, scale))
    peak = jnp.max(jnp.stack([part.peak for part in parts]), axis=0)
    shares = [jnp.exp(part.peak - peak) for part in parts]
    total = sum(share * part.total for share, part in zip(shares, parts, strict=True))
    weighted = sum(share * part.weighted for share, part in zip(shares, parts, strict=True))
    return jnp.moveaxis(weighted / total, -2, -4).astype(queries.dtype)


def _partial(
    queries: Float[Array, "*tree K G T H"],
    keys: Float[Array, "*tree K H S"],
    values: Float[Array, "*tree K S H"],
    mask: Bool[Array, "T S"],
    scale: float,
) -> _Partial:
    logits = jnp.einsum(
        "...kgth,...khs->...kgts", queries, keys, preferred_element_type=jnp.float32
    )
    return _softmax_parts(logits * scale, jnp.broadcast_to(mask, logits.shape), values, "gt")


def _shared_partial(
    queries: Float[Array, "*tree K G T H"],
    ancestor: Ancestor,
    valid: Bool[Array, "*above S"],
    scale: float,
) -> _Partial:
    """All descendants of an ancestor as rows of one product with its keys and with its values."""
    shared = ancestor.lengths.ndim
    *leading, kv_heads, group, time, width = queries.shape
    descendants = math.prod(leading[shared:])
    folded = queries.reshape(*leading[:shared], descendants, kv_heads, group * time, width)
    folded = jnp.moveaxis(folded, -4, -3)
    logits = jnp.einsum(
        "...kdgh,...khs->...kdgs", folded, ancestor.keys, preferred_element_type=jnp.float32
    )
    mask = jnp.broadcast_to(valid[..., None, None, None, :], logits.shape)
    part = _softmax_parts(logits * scale, mask, ancestor.values, "dg")
    return _Partial(
        *(
            jnp.moveaxis(x, -3, -4).reshape(*leading, kv_heads, group, time, x.shape[-1])
            for x in part
        )
    )


def _softmax_parts(
    logits: Float[Array, "*above K X Y S"],
    mask: Bool[Array, "*above K X Y S"],
    values: Float[Array, "*above K S H"],
    rows: str,
) -> _Partial:
    """The partial softmax over S; `rows` are einsum's letters of the axes X and Y."""
    logits = jnp.where(mask, logits, LOWEST)
    # The merged result does not depend on the peaks, so no gradient needs to pass through them.
    peak = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.where(mask, jnp.exp(logits - peak), 0.0)
    weighted = jnp.einsum(
        f"...k{rows}s,...ksh->...k{rows}h",
        weights.astype(values.dtype),
        values,
        preferred_element_type=jnp.float32,
    )
    return _Partial(peak, jnp.sum(weights, axis=-1, keepdims=True), weighted)
