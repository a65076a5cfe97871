"""Calls of compiled programs, described without arrays: nothing is computed or allocated.

`Sampler.calls` and `training_calls` list what a run calls; the plan compiles these lists.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax


@dataclasses.dataclass(frozen=True)
class Call:
    """Equal calls of one compiled program."""

    name: str
    function: Any
    """A jitted function."""
    arguments: tuple[Any, ...]
    """With `jax.ShapeDtypeStruct`s and their shardings in place of arrays."""
    count: int = 1
    loop_steps: int = 1
    """Iterations of its while loop in one call."""
    tokens: int = 0
    """Tokens that one call samples or trains on, padding included."""
    resident: Any = None
    """Abstract arrays that stay on the devices during the call without being its arguments."""


def device_bytes(tree: Any) -> int:
    """Bytes of a tree's abstract arrays on one device; other leaves count nothing."""
    return sum(
        _shard_bytes(x) for x in jax.tree.leaves(tree) if isinstance(x, jax.ShapeDtypeStruct)
    )


def _shard_bytes(array: jax.ShapeDtypeStruct) -> int:
    shape = array.shape if array.sharding is None else array.sharding.shard_shape(array.shape)
    item = 8 if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key) else array.dtype.itemsize
    return math.prod(shape) * item
