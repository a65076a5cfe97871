"""Attention of one level of the tree to itself and to its ancestors.

Every ancestor segment is stored once, whatever the number of its descendants: the descendants'
queries become rows of one matrix product with it, and the partial softmaxes over the segments are
merged by their log-sum-exp.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

LOWEST = -1e30


class Segment(NamedTuple):
    """One layer's keys and values of an ancestor level; `*M` is a prefix of the queries' `*N`."""

    keys: Float[Array, "*M K E S"]
    values: Float[Array, "*M K S E"]
    lengths: Int[Array, "*M"]


class _Partial(NamedTuple):
    """An unnormalised softmax over one segment: exp(logits - peak), summed and times values."""

    peak: Float[Array, "*N K G T 1"]
    total: Float[Array, "*N K G T 1"]
    weighted: Float[Array, "*N K G T E"]


def attend(
    queries: Float[Array, "*N T K G E"],
    keys: Float[Array, "*N K E T"],
    values: Float[Array, "*N K T E"],
    ancestors: Sequence[Segment],
) -> Float[Array, "*N T K G E"]:
    """Causal attention within the level, full attention to the valid tokens of its ancestors.

    Logits and softmax are float32 whatever the inputs; the result has the queries' dtype. A level's
    own padding needs no mask: it stands behind the valid tokens, which the causal mask hides.
    """
    scale = queries.shape[-1] ** -0.5
    time = queries.shape[-4]
    rows = jnp.moveaxis(queries, -4, -2)
    causal = jnp.tril(jnp.ones((time, time), bool))
    parts = [_partial(rows, keys, values, causal, scale)]
    for segment in ancestors:
        shape = (*segment.lengths.shape, segment.keys.shape[-1])
        index = jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)
        valid = index < segment.lengths[..., None]
        parts.append(_shared_partial(rows, segment, valid, scale))
    peak = jnp.max(jnp.stack([part.peak for part in parts]), axis=0)
    shares = [jnp.exp(part.peak - peak) for part in parts]
    total = sum(share * part.total for share, part in zip(shares, parts, strict=True))
    weighted = sum(share * part.weighted for share, part in zip(shares, parts, strict=True))
    return jnp.moveaxis(weighted / total, -2, -4).astype(queries.dtype)


def _partial(
    queries: Float[Array, "*N K G T E"],
    keys: Float[Array, "*N K E S"],
    values: Float[Array, "*N K S E"],
    mask: Bool[Array, "T S"],
    scale: float,
) -> _Partial:
    logits = jnp.einsum(
        "...kgte,...kes->...kgts", queries, keys, preferred_element_type=jnp.float32
    )
    return _softmax_parts(logits * scale, jnp.broadcast_to(mask, logits.shape), values, "gt")


def _shared_partial(
    queries: Float[Array, "*N K G T E"],
    segment: Segment,
    valid: Bool[Array, "*M S"],
    scale: float,
) -> _Partial:
    """All descendants of an ancestor as rows of one product with its keys and with its values."""
    shared = segment.lengths.ndim
    *leading, kv_heads, group, time, width = queries.shape
    descendants = math.prod(leading[shared:])
    folded = queries.reshape(*leading[:shared], descendants, kv_heads, group * time, width)
    folded = jnp.moveaxis(folded, -4, -3)
    logits = jnp.einsum(
        "...kdge,...kes->...kdgs", folded, segment.keys, preferred_element_type=jnp.float32
    )
    mask = jnp.broadcast_to(valid[..., None, None, None, :], logits.shape)
    part = _softmax_parts(logits * scale, mask, segment.values, "dg")
    return _Partial(
        *(
            jnp.moveaxis(x, -3, -4).reshape(*leading, kv_heads, group, time, x.shape[-1])
            for x in part
        )
    )


def _softmax_parts(
    logits: Float[Array, "*N K X Y S"],
    mask: Bool[Array, "*N K X Y S"],
    values: Float[Array, "*N K S E"],
    rows: str,
) -> _Partial:
    logits = jnp.where(mask, logits, LOWEST)
    # The merged result does not depend on the peaks, so no gradient needs to pass through them.
    peak = jax.lax.stop_gradient(jnp.max(logits, axis=-1, keepdims=True))
    weights = jnp.where(mask, jnp.exp(logits - peak), 0.0)
    weighted = jnp.einsum(
        f"...k{rows}s,...kse->...k{rows}e",
        weights.astype(values.dtype),
        values,
        preferred_element_type=jnp.float32,
    )
    return _Partial(peak, jnp.sum(weights, axis=-1, keepdims=True), weighted)
