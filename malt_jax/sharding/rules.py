"""Where arrays lie: one table from the names of their axes to the axes of the mesh of devices.

Logical axes are written as a `PartitionSpec` of names; trailing axes without a name are left out.
Parameters carry theirs (`llama.model.logical_axes`), cache levels, batches and training states have
functions that say them. Every function here takes a mesh of None as "no mesh": arrays stay where
they are, as they do on a mesh of one device.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.sharding import AbstractMesh, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Array

from malt_jax.config import MESH_AXES

Tree = TypeVar("Tree")
AnyMesh = Mesh | AbstractMesh

DATA, FSDP, TENSOR = MESH_AXES

RULES: Mapping[str, tuple[str, ...]] = {
    # Activations: questions when sampling, rows when training.
    "batch": (DATA, FSDP),
    # Weights, adapters, their optimiser states and what they compute.
    "vocab": (TENSOR,),
    "heads": (TENSOR,),
    "kv_heads": (TENSOR,),
    "mlp": (TENSOR,),
    "embed": (FSDP,),
    # Too small to be worth a gather.
    "embed_norm": (),
    "rank": (),
    # The scan over layers takes one at a time from every device.
    "layers": (),
}


def partition(mesh: AnyMesh, axes: P, *, without: str | None = None) -> P:
    """The mesh axes over which an array with these logical axes is split.

    Written as XLA writes it (no axes of size 1, no empty end), so that an array that a program
    returns has the very sharding of one that is placed. `without` leaves out one mesh axis.
    """
    entries: list[str | tuple[str, ...] | None] = []
    for name in axes:
        wanted = () if name is None else RULES[name]
        used = tuple(axis for axis in wanted if mesh.shape[axis] > 1 and axis != without)
        entries.append(used if len(used) > 1 else used[0] if used else None)
    while entries and entries[-1] is None:
        entries.pop()
    return P(*entries)


def shardings(mesh: AnyMesh, axes: Any) -> Any:
    """A tree of logical axes as a tree of shardings."""
    return jax.tree.map(lambda leaf: NamedSharding(mesh, partition(mesh, leaf)), axes)


def abstract(mesh: AnyMesh | None, shapes: Tree, axes: Any) -> Tree:
    """`shapes` (of `jax.eval_shape`) with the shardings of their logical axes, a prefix tree."""
    if mesh is None:
        return shapes

    def add(leaf_axes: P, leaves: Any) -> Any:
        where = NamedSharding(mesh, partition(mesh, leaf_axes))
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=where), leaves
        )

    return jax.tree.map(add, axes, shapes)


def batch_shards(mesh: AnyMesh | None) -> int:
    """Parts into which the axis "batch" is split; it has to be a multiple of them."""
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in RULES["batch"])


def constrain(mesh: Mesh | None, tree: Tree, axes: Any) -> Tree:
    """Inside jit: has the arrays of a tree lie as their logical axes, a prefix tree, say."""
    if mesh is None or mesh.size == 1:
        return tree

    def fix(leaf_axes: P, leaves: Any) -> Any:
        where = NamedSharding(mesh, partition(mesh, leaf_axes))
        return jax.lax.with_sharding_constraint(leaves, where)

    return jax.tree.map(fix, axes, tree)


def all_gather(mesh: Mesh | None, weight: Array, axes: P) -> Array:
    """Inside jit: a weight of which every device has all that it multiplies with.

    Collects the parts along "fsdp", for the one layer that is being computed.
    """
    if mesh is None or mesh.shape[FSDP] == 1:
        return weight
    where = NamedSharding(mesh, partition(mesh, axes, without=FSDP))
    return jax.lax.with_sharding_constraint(weight, where)


def device_put(mesh: Mesh | None, tree: Tree, axes: Any) -> Tree:
    """Host arrays, the same in every process, or arrays that lie otherwise, as arrays that lie as
    their logical axes, a prefix tree, say. What lies so already is not copied."""
    if mesh is None:
        return tree

    def put(leaf_axes: P, leaves: Any) -> Any:
        where = NamedSharding(mesh, partition(mesh, leaf_axes))
        return jax.tree.map(lambda leaf: _put(leaf, where), leaves)

    return jax.tree.map(put, axes, tree)


def _put(leaf: Any, where: NamedSharding) -> Array:
    is_global = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    if is_global or where.is_fully_addressable:
        return jax.device_put(leaf, where)
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _put(jax.random.key_data(leaf), where)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, where, lambda index: host[index])


def to_host(tree: Any) -> Any:
    """The arrays of a tree as NumPy arrays, whole, in every process (all of which call this)."""
    return jax.device_get(jax.tree.map(_replicated, tree))


def _replicated(leaf: Any) -> Any:
    if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
        return leaf
    where: Any = leaf.sharding
    return _replicate(where.mesh)(leaf)


@functools.lru_cache
def _replicate(mesh: Mesh) -> Any:
    return jax.jit(lambda x: x, out_shardings=NamedSharding(mesh, P()))
