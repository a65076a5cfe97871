"""Searches arrays for NaN and infinities, on their devices."""

from __future__ import annotations

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

from malt_jax.sharding.rules import to_host


def not_finite(tree: Any, axes: Any = 0) -> Any:
    """Whether the arrays of a tree have values that are NaN or infinite: booleans on the host.

    axes: the number of first axes that are kept, for all arrays or, as a tree, for each. With 1 an
        array that is stacked over layers gives one answer a layer. Arrays of integers have none.

    All processes have to call it; all get the answers. Nothing but these leaves the devices.
    """
    leaves, structure = jax.tree.flatten(tree)
    kept = [axes] * len(leaves) if isinstance(axes, int) else jax.tree.leaves(axes)
    return jax.tree.unflatten(structure, to_host(_search(leaves, tuple(kept))))


@functools.partial(jax.jit, static_argnames="axes")
def _search(leaves: list[Array], axes: tuple[int, ...]) -> list[Bool[Array, "..."]]:
    return [
        jnp.any(~jnp.isfinite(leaf), axis=tuple(range(kept, leaf.ndim)))
        for leaf, kept in zip(leaves, axes, strict=True)
    ]
