"""Sharding by names: one table from the logical axes of arrays to the axes of the device mesh.

Logical axes are a `PartitionSpec` of names from `RULES`; trailing axes without a name are left out.
An `ArraySpec` has them together with the shape and the dtype. `specs` stands for a tree of either,
which may be a prefix of the tree of arrays. A mesh of None means one device: functions then return
arrays as they are.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
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
    # Weights, adapters, their optimizer states and the activations computed from them.
    "vocab": (TENSOR,),
    "heads": (TENSOR,),
    "kv_heads": (TENSOR,),
    "mlp": (TENSOR,),
    "embed": (FSDP,),
    # Too small to be worth an all-gather.
    "embed_norm": (),
    "rank": (),
    # The scan over layers takes one layer at a time from every device.
    "layers": (),
}


@dataclasses.dataclass(frozen=True)
class ArraySpec:
    """The description of one array, from which its shape, sharding and zeros follow."""

    shape: tuple[int, ...]
    dtype: Any
    axes: P
    """Logical axes."""


def array_specs(shapes: Tree, specs: Any) -> Tree:
    """ArraySpecs of arrays or of `jax.eval_shape`'s results."""
    return _with_specs(lambda x, spec: ArraySpec(x.shape, x.dtype, _axes(spec)), shapes, specs)


def partition(mesh: AnyMesh, axes: P, *, without: str | None = None) -> P:
    """The mesh axes over which an array with these logical axes is split.

    Written as XLA writes it (no axes of size 1, no empty end), so that an array that a program
    returns has the same sharding as one of `device_put`. `without` leaves out one mesh axis.
    """
    entries: list[str | tuple[str, ...] | None] = []
    for name in axes:
        wanted = () if name is None else RULES[name]
        used = tuple(axis for axis in wanted if mesh.shape[axis] > 1 and axis != without)
        entries.append(used if len(used) > 1 else used[0] if used else None)
    while entries and entries[-1] is None:
        entries.pop()
    return P(*entries)


def shardings(mesh: AnyMesh, specs: Any) -> Any:
    """The shardings of a tree of specs."""
    return jax.tree.map(functools.partial(_sharding, mesh), specs)


def abstract(mesh: AnyMesh | None, specs: Any) -> Any:
    """`jax.ShapeDtypeStruct`s of a tree of ArraySpecs, with their shardings."""

    def struct(spec: ArraySpec) -> jax.ShapeDtypeStruct:
        sharding = None if mesh is None else _sharding(mesh, spec)
        return jax.ShapeDtypeStruct(spec.shape, spec.dtype, sharding=sharding)

    return jax.tree.map(struct, specs)


def zeros(specs: Any) -> Any:
    """Zeros for a tree of ArraySpecs; inside jit, `constrain` splits them."""
    return jax.tree.map(lambda spec: jnp.zeros(spec.shape, spec.dtype), specs)


def batch_shards(mesh: AnyMesh | None) -> int:
    """Parts into which the axis "batch" is split; its length has to be a multiple of them."""
    return 1 if mesh is None else math.prod(mesh.shape[axis] for axis in RULES["batch"])


def constrain(mesh: Mesh | None, tree: Tree, specs: Any) -> Tree:
    """Inside jit: constrains the shardings of a tree of arrays."""
    if mesh is None or mesh.size == 1:
        return tree
    return _with_specs(
        lambda x, spec: jax.lax.with_sharding_constraint(x, _sharding(mesh, spec)), tree, specs
    )


def all_gather(mesh: Mesh | None, weight: Array, axes: P) -> Array:
    """Inside jit: a weight whose parts along "fsdp" every device has collected.

    Used for the one layer that is being computed.
    """
    if mesh is None or mesh.shape[FSDP] == 1:
        return weight
    sharding = NamedSharding(mesh, partition(mesh, axes, without=FSDP))
    return jax.lax.with_sharding_constraint(weight, sharding)


def device_put(mesh: Mesh | None, tree: Tree, specs: Any) -> Tree:
    """Copies a tree to the devices of a mesh, or reshards it.

    Host arrays have to be the same in every process. Arrays that have the sharding already are not
    copied.
    """
    if mesh is None:
        return tree
    return _with_specs(lambda x, spec: _device_put(x, _sharding(mesh, spec)), tree, specs)


def _device_put(leaf: Any, sharding: NamedSharding) -> Array:
    is_global = isinstance(leaf, jax.Array) and not leaf.is_fully_addressable
    if is_global or sharding.is_fully_addressable:
        return jax.device_put(leaf, sharding)
    if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        data = _device_put(jax.random.key_data(leaf), sharding)
        return jax.random.wrap_key_data(data, impl=jax.random.key_impl(leaf))
    host = np.asarray(leaf)
    return jax.make_array_from_callback(host.shape, sharding, lambda index: host[index])


def to_host(tree: Any) -> Any:
    """The whole arrays of a tree as NumPy arrays. All processes have to call it; all get them."""

    def gather(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable or leaf.is_fully_replicated:
            return leaf
        return multihost_utils.process_allgather(leaf, tiled=True)

    return jax.device_get(jax.tree.map(gather, tree))


def _sharding(mesh: AnyMesh, spec: ArraySpec | P) -> NamedSharding:
    return NamedSharding(mesh, partition(mesh, _axes(spec)))


def _axes(spec: ArraySpec | P) -> P:
    return spec.axes if isinstance(spec, ArraySpec) else spec


def _with_specs(function: Callable[[Any, Any], Any], tree: Tree, specs: Any) -> Tree:
    """Maps over the leaves of a tree, each with its spec of a prefix tree."""
    return jax.tree.map(
        lambda spec, leaves: jax.tree.map(lambda leaf: function(leaf, spec), leaves), specs, tree
    )
