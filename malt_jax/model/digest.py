"""A hash of all of a model's weights, computed where they are."""

from __future__ import annotations

import hashlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, UInt32

from malt_jax.model.llama import Params
from malt_jax.model.lora import mix
from malt_jax.sharding.rules import to_host

_SEEDS = (0x9E3779B9, 0x85EBCA6B)
"""Of two sums of 32 bits for every array."""


def weights_digest(params: Params) -> str:
    """A hash of the names, shapes and values of all arrays; every changed value changes it.

    It is the same on every mesh, because integers add up in any order. It is not safe against
    somebody who looks for two models with the same hash.

    All processes have to call it; all get it.
    """
    leaves = jax.tree_util.tree_leaves_with_path(params)
    sums = to_host(_sums([leaf for _, leaf in leaves]))
    content = [
        (jax.tree_util.keystr(path), leaf.shape, total.tolist())
        for (path, leaf), total in zip(leaves, sums, strict=True)
    ]
    return f"SHA-256 {hashlib.sha256(repr(content).encode()).hexdigest()[:16]}"


@jax.jit
def _sums(leaves: list[Array]) -> list[UInt32[Array, " 2"]]:
    return [jnp.stack([_sum(leaf, seed) for seed in _SEEDS]) for leaf in leaves]


def _sum(values: Float[Array, "..."], seed: int) -> UInt32[Array, ""]:
    """The sum, modulo 2^32, of a hash of every value with its index."""
    index = jnp.zeros(values.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(values.ndim)):
        place = jax.lax.broadcasted_iota(jnp.uint32, values.shape, axis)
        index += place * jnp.uint32(stride)
        stride = stride * values.shape[axis] % 2**32
    bits = jax.lax.bitcast_convert_type(values.astype(jnp.float32), jnp.uint32)
    return jnp.sum(mix(mix(index ^ jnp.uint32(seed)) ^ bits), dtype=jnp.uint32)
