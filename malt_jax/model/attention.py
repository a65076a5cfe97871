"""Attention of one level of the tree to itself and to its ancestors.

Every ancestor level is stored once for all its descendants: their queries are the rows of one
matrix product with its keys, and the partial softmaxes are merged by their log-sum-exp. This is
cascade attention (FlashInfer, arXiv 2501.01005) over any number of levels, also known as Hydragen
(arXiv 2402.05099) and bifurcated attention (arXiv 2403.08845).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

LOWEST = -1e30


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
    *,
    scale: float | None = None,
    softcap: float | None = None,
    window: Int[Array, ""] | None = None,
) -> Float[Array, "*tree T K G H"]:
    """Causal attention within the level, full attention to the valid tokens of its ancestors.

    ancestors: outermost first; their valid tokens precede the level's, without gaps.
    scale:     of the logits; None: 1/sqrt(H).
    softcap:   c, for logits c * tanh(logits / c); None: as they are.
    window:    a token attends to the `window` latest ones, itself included; None: to all.

    Logits and softmax are float32 for inputs of any dtype; the result has the queries' dtype. A
    level's own padding needs no mask: it comes after the valid tokens, so the causal mask hides it.
    """
    scale = queries.shape[-1] ** -0.5 if scale is None else scale
    time = queries.shape[-4]
    rows = jnp.moveaxis(queries, -4, -2)
    mask = jnp.tril(jnp.ones((time, time), bool))
    if window is not None:
        mask &= _ages((time, time)) < window

    def scaled(logits: Array) -> Array:
        logits = logits * scale
        return logits if softcap is None else softcap * jnp.tanh(logits / softcap)

    parts = [_partial(rows, keys, values, mask, scaled)]
    masks = _ancestor_masks(ancestors, queries.shape[:-1], window)
    for ancestor, mask in zip(ancestors, masks, strict=True):
        parts.append(_shared_partial(rows, ancestor, mask, scaled))
    peak = jnp.max(jnp.stack([part.peak for part in parts]), axis=0)
    shares = [jnp.exp(part.peak - peak) for part in parts]
    total = sum(share * part.total for share, part in zip(shares, parts, strict=True))
    weighted = sum(share * part.weighted for share, part in zip(shares, parts, strict=True))
    return jnp.moveaxis(weighted / total, -2, -4).astype(queries.dtype)


def _ages(shape: tuple[int, ...]) -> Int[Array, "*tree T S"]:
    """Positions from key s to query t, if both count from the same token."""
    queries = jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 2)
    return queries - jax.lax.broadcasted_iota(jnp.int32, shape, len(shape) - 1)


def _ancestor_masks(
    ancestors: Sequence[Ancestor], queries: tuple[int, ...], window: Int[Array, ""] | None
) -> list[Bool[Array, "..."]]:
    """The keys of each ancestor that queries attend to, for the logits of `_shared_partial`.

    queries: their sizes, (*tree, T, K, G).
    """
    *leading, time, _, group = queries
    masks = []
    for number, ancestor in enumerate(ancestors):
        above, size = ancestor.lengths.shape, ancestor.keys.shape[-1]
        index = jax.lax.broadcasted_iota(jnp.int32, (*above, size), len(above))
        mask = (index < ancestor.lengths[..., None])[..., None, None, None, :]
        if window is not None:
            # From the ancestor's first token to the first of the level.
            distance = sum(_spread(x.lengths, len(leading)) for x in ancestors[number:])
            ages = jnp.broadcast_to(distance, leading)[..., None, None]
            near = ages + _ages((*leading, time, size)) < window
            near = near.reshape(*above, 1, math.prod(leading[len(above) :]), 1, time, size)
            near = jnp.broadcast_to(near, (*near.shape[:-3], group, time, size))
            mask &= near.reshape(*near.shape[:-3], group * time, size)
        masks.append(mask)
    return masks


def _spread(lengths: Int[Array, "*above"], rank: int) -> Int[Array, "..."]:
    """Lengths with `rank` axes, to be added to those of their descendants."""
    return lengths.reshape(*lengths.shape, *[1] * (rank - lengths.ndim))


def _partial(
    queries: Float[Array, "*tree K G T H"],
    keys: Float[Array, "*tree K H S"],
    values: Float[Array, "*tree K S H"],
    mask: Bool[Array, "T S"],
    scaled: Callable[[Array], Array],
) -> _Partial:
    logits = jnp.einsum(
        "...kgth,...khs->...kgts", queries, keys, preferred_element_type=jnp.float32
    )
    return _softmax_parts(scaled(logits), jnp.broadcast_to(mask, logits.shape), values, "gt")


def _shared_partial(
    queries: Float[Array, "*tree K G T H"],
    ancestor: Ancestor,
    mask: Bool[Array, "*above 1 _ _ S"],
    scaled: Callable[[Array], Array],
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
    part = _softmax_parts(
        scaled(logits), jnp.broadcast_to(mask, logits.shape), ancestor.values, "dg"
    )
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
