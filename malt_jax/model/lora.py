"""Linear layers with an optional low-rank adapter (LoRA, arXiv 2106.09685)."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Key, UInt32

from malt_jax.config import LoraConfig
from malt_jax.model.config import Llama
from malt_jax.sharding.rules import all_gather, constrain


def parameter(
    module: nn.Module, name: str, initial: Any, axes: tuple[str, ...], shape: Any, dtype: Any
) -> Array:
    """A parameter of a module: the one description of its shape, dtype, logical axes and initial
    values."""
    value: Any = module.param(name, nn.with_logical_partitioning(initial, axes), shape, dtype)
    return value


class Linear(nn.Module):
    """y = x Wᵀ + b, plus (alpha / rank) · dropout(x) Aᵀ Bᵀ where this layer is a target of LoRA.

    The kernel is [out, in], as in Hugging Face files; so are A [R, in] and B [out, R] (PEFT's
    layout). The adapter is a variable collection of its own, "adapter", so that it can be exchanged
    and trained without touching the base. Dropout acts iff a "dropout" key is given.

    first_row: see `dropout`.

    An adapter may hold a third array, "rows", [B, R]: factors of the R low-rank activations of each
    row of the batch. `select_adapters` uses it to give every row another adapter.
    """

    model: Llama
    features: int
    axes: tuple[str, str]
    """Logical names of the kernel's axes (out, in)."""
    use_bias: bool = False

    @nn.compact
    def __call__(
        self, x: Float[Array, "*tokens in"], first_row: Int[Array, ""] | None = None
    ) -> Float[Array, "*tokens out"]:
        dtype, mesh, lora = self.model.dtype, self.model.mesh, self.model.lora
        initial = nn.initializers.variance_scaling(1.0, "fan_in", "normal", in_axis=1, out_axis=0)
        shape = (self.features, x.shape[-1])
        kernel = parameter(self, "kernel", initial, self.axes, shape, dtype)
        kernel = all_gather(mesh, kernel, P(*self.axes))
        y = _product(x, kernel.astype(dtype))
        if self.use_bias:
            zeros = nn.initializers.zeros
            bias = parameter(self, "bias", zeros, self.axes[:1], shape[:1], dtype)
            y = y + jnp.broadcast_to(bias.astype(dtype), y.shape)
        if lora is not None and self.name in lora.targets:
            y = y + self._low_rank(x, lora, first_row)
        # Activations are not split along the model's width: "fsdp" splits their batch instead.
        features = None if self.axes[0] == "embed" else self.axes[0]
        return constrain(mesh, y, activation_axes(y.ndim, features))

    def _low_rank(
        self, x: Float[Array, "*tokens in"], lora: LoraConfig, first_row: Int[Array, ""] | None
    ) -> Float[Array, "*tokens out"]:
        dtype = self.model.dtype
        out_axis, in_axis = self.axes

        # A is uniform in ±1/sqrt(in), as in PEFT; B is zero, so a new adapter changes nothing.
        def initial_a(shape: tuple[int, int]) -> Array:
            bound = shape[1] ** -0.5
            key = self.make_rng("params")
            return jax.random.uniform(key, shape, jnp.float32, minval=-bound, maxval=bound)

        a = self._adapter("a", initial_a, ("rank", in_axis), (lora.rank, x.shape[-1]))
        b = self._adapter("b", jnp.zeros, (out_axis, "rank"), (self.features, lora.rank))
        if self.has_rng("dropout") and lora.dropout > 0:
            # The root level has no rows: all micro-batches share its mask.
            row = first_row if x.ndim > 2 else None
            x = dropout(x, lora.dropout, self.make_rng("dropout"), row)
        a = all_gather(self.model.mesh, a, P("rank", in_axis))
        b = all_gather(self.model.mesh, b, P(out_axis, "rank"))
        low = _product(x, a.astype(dtype))
        if self.has_variable("adapter", "rows"):
            factors: Any = self.get_variable("adapter", "rows")
            factors = factors.astype(dtype).reshape(len(low), *[1] * (low.ndim - 2), lora.rank)
            low = low * jnp.broadcast_to(factors, low.shape)
        return _product(low, b.astype(dtype)) * jnp.asarray(lora.scale, dtype)

    def _adapter(
        self, name: str, initial: Any, axes: tuple[str, str], shape: tuple[int, int]
    ) -> Array:
        boxed = nn.with_logical_partitioning(initial, axes)
        value: Any = self.variable("adapter", name, boxed, shape).value
        return value


def activation_axes(rank: int, features: str | None = None) -> P:
    """Logical axes of an activation [*tree, T, features]; the root level is replicated."""
    return P("batch" if rank > 2 else None, *[None] * (rank - 2), features)


def dropout(
    x: Float[Array, "*shape"],
    rate: float,
    key: Key[Array, ""],
    first_row: Int[Array, ""] | None = None,
) -> Float[Array, "*shape"]:
    """x with a share `rate` of its elements zeroed and the others divided by 1 - rate.

    first_row: place of x's first row in the batch that x is a micro-batch of. With the key of the
        batch its rows have the masks that they have there. None: x is the whole batch.

    The mask is a hash of an element's index and of the key: the integer mixer "lowbias32"
    (https://github.com/skeeto/hash-prospector), once for each word of the key. JAX's own generator
    would need several times the operations for quality that dropout has no use for, and on a TPU
    minutes of compilation. Like JAX's, the mask does not depend on the sharding of x.
    """
    index = jnp.zeros(x.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(x.ndim)):
        index += jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride)
        row, stride = stride, stride * x.shape[axis] % 2**32
    if first_row is not None:
        index += first_row.astype(jnp.uint32) * jnp.uint32(row)
    first, second = jax.random.bits(key, (2,), jnp.uint32)
    hashed = mix(mix(index ^ first) ^ second)
    kept = hashed >= jnp.uint32(round(rate * 2**32))
    return jnp.where(kept, x / jnp.asarray(1 - rate, x.dtype), jnp.zeros((), x.dtype))


def mix(x: UInt32[Array, "*shape"]) -> UInt32[Array, "*shape"]:
    """The integer mixer "lowbias32", one to one."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x7FEB352D)
    x = (x ^ (x >> 15)) * jnp.uint32(0x846CA68B)
    return x ^ (x >> 16)


def _product(
    x: Float[Array, "*tokens in"], kernel: Float[Array, "out in"]
) -> Float[Array, "*tokens out"]:
    return jax.lax.dot_general(x, kernel, (((x.ndim - 1,), (1,)), ((), ())))


def scaled_adapter(adapter: dict[str, Any], weight: float) -> dict[str, Any]:
    """An adapter whose low-rank products are `weight` times as large; the same one for 1."""
    if weight == 1:
        return adapter
    return jax.tree_util.tree_map_with_path(
        lambda path, x: x * weight if path[-1].key == "b" else x, adapter
    )


def merge_adapter(
    params: dict[str, Any], adapter: dict[str, Any], lora: LoraConfig
) -> dict[str, Any]:
    """A copy of the base weights with the adapter's products added to the targeted kernels.

    The sum is formed in float32 and rounded once to the kernel's dtype. Neither argument is
    changed: adding to and subtracting from low-precision weights in place would not restore them.
    """
    merged = dict(params)
    for name, child in adapter.items():
        if "a" in child:
            kernel = params[name]["kernel"]
            update = lora.scale * jnp.einsum("lor,lri->loi", child["b"], child["a"])
            total = kernel.astype(jnp.float32) + update
            merged[name] = {**params[name], "kernel": total.astype(kernel.dtype)}
        else:
            merged[name] = merge_adapter(params[name], child, lora)
    return merged


def join_adapters(
    adapters: Sequence[Mapping[str, Any]], lora: LoraConfig
) -> tuple[dict[str, Any], LoraConfig]:
    """n adapters of rank R as one of rank n R, with A = [A_1; ...; A_n] and B = [B_1, ..., B_n].

    Its product is the sum of theirs; `select_adapters` picks one for each row of a batch. Then one
    product serves rows of all adapters, and no adapter is copied to a row. Returns it with its
    configuration, whose scale is that of `lora`.
    """
    count = len(adapters)
    joined = _map_pairs(
        lambda pairs: {
            "a": jnp.concatenate([pair["a"] for pair in pairs], axis=1),
            "b": jnp.concatenate([pair["b"] for pair in pairs], axis=2),
        },
        adapters,
    )
    return joined, dataclasses.replace(lora, rank=count * lora.rank, alpha=count * lora.alpha)


def select_adapters(
    joined: Mapping[str, Any], index: Int[Array, "B"], count: int
) -> dict[str, Any]:
    """The result of `join_adapters` for a batch whose row b has the adapter number index[b].

    count: of the adapters that were joined. A row whose index is none of theirs has no adapter.
    """

    def with_rows(pairs: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        (pair,) = pairs
        layers, rank = pair["a"].shape[:2]
        owners = jnp.arange(rank, dtype=index.dtype) // (rank // count)
        rows = (owners[None] == index[:, None]).astype(pair["a"].dtype)
        return {**pair, "rows": jnp.broadcast_to(rows[None], (layers, *rows.shape))}

    return _map_pairs(with_rows, [joined])


def _map_pairs(
    function: Callable[[Sequence[Mapping[str, Any]]], dict[str, Any]],
    adapters: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """The tree with a function's result at each layer, given the layer's "a" and "b" of all."""
    if "a" in adapters[0]:
        return function(adapters)
    return {name: _map_pairs(function, [x[name] for x in adapters]) for name in adapters[0]}
