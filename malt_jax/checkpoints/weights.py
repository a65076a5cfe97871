"""The parameter tree from the tensors of a checkpoint, and back."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.sharding import SingleDeviceSharding
from jaxtyping import Array

from malt_jax.errors import UserError
from malt_jax.model.config import LlamaConfig
from malt_jax.model.llama import Llama, Params, variable_specs
from malt_jax.sharding.finite import not_finite
from malt_jax.sharding.rules import abstract, to_host

# Hugging Face's name of each module, by its path in the parameter tree.
_MODULES = {
    "embed": "model.embed_tokens",
    "norm": "model.norm",
    "head": "lm_head",
    "layers/attention_norm": "model.layers.{}.input_layernorm",
    "layers/mlp_norm": "model.layers.{}.post_attention_layernorm",
    **{f"layers/attention/{x}": f"model.layers.{{}}.self_attn.{x}_proj" for x in "qkvo"},
    **{f"layers/attention/{x}_norm": f"model.layers.{{}}.self_attn.{x}_norm" for x in "qk"},
    **{f"layers/mlp/{x}": f"model.layers.{{}}.mlp.{x}_proj" for x in ("gate", "up", "down")},
}
# The same in models with `post_norms`, where post_attention_layernorm is what its name says.
_MODULES_WITH_POST_NORMS = _MODULES | {
    "layers/attention_post_norm": "model.layers.{}.post_attention_layernorm",
    "layers/mlp_norm": "model.layers.{}.pre_feedforward_layernorm",
    "layers/mlp_post_norm": "model.layers.{}.post_feedforward_layernorm",
}

# Buffers that old files hold although they follow from the configuration.
_DERIVED = re.compile(r"rotary_emb\.inv_freq$|masked_bias$|attn\.bias$")

_LISTED = 20  # names in an error message before it says "and N more"


@dataclass(frozen=True)
class Leaf:
    """One array of the parameter tree and the tensors of a checkpoint it is made of.

    names: Hugging Face's tensor names: one, or one per layer for an array stacked over layers.
    """

    path: tuple[str, ...]
    shape: tuple[int, ...]
    names: tuple[str, ...]
    stacked: bool

    @property
    def tensor_shape(self) -> tuple[int, ...]:
        return self.shape[1:] if self.stacked else self.shape


@dataclass(frozen=True)
class TensorSource:
    """Tensors of a checkpoint by Hugging Face's names, read one at a time.

    read returns an array of any float dtype; it may share memory with the file.
    """

    origin: str
    shapes: Mapping[str, tuple[int, ...]]
    read: Callable[[str], np.ndarray]


def leaves(config: LlamaConfig) -> list[Leaf]:
    """Every array of the model's parameter tree, with the names of its tensors."""
    modules = _MODULES_WITH_POST_NORMS if config.post_norms else _MODULES
    found = []
    for path, spec in flatten_dict(variable_specs(Llama(config))["params"]).items():
        name = modules["/".join(path[:-1])] + (".bias" if path[-1] == "bias" else ".weight")
        stacked = path[0] == "layers"
        names = tuple(name.format(layer) for layer in range(config.num_layers if stacked else 1))
        found.append(Leaf(path, spec.shape, names, stacked))
    return found


def assemble(source: TensorSource, model: Llama) -> Params:
    """Builds a model's parameters from a checkpoint's tensors, in the model's dtype and shards.

    Holds this process's part of the finished arrays and of the array under construction, and one
    tensor; never the whole checkpoint twice.

    Raises one UserError that lists every tensor that is missing, surplus or misshaped, one for a
    tensor whose numbers are not floats, and one that lists every tensor with NaN or infinities.
    """
    expected = leaves(model.config)
    require_tensors_of(model.config, source)
    targets = flatten_dict(abstract(model.mesh, variable_specs(model)["params"]))
    arrays = {leaf.path: _assemble_leaf(source, leaf, targets[leaf.path]) for leaf in expected}
    _require_finite(source, expected, arrays)
    return unflatten_dict(arrays)


def _require_finite(
    source: TensorSource, expected: list[Leaf], arrays: dict[tuple[str, ...], Array]
) -> None:
    axes = {leaf.path: int(leaf.stacked) for leaf in expected}
    found = not_finite(arrays, axes)
    names = [
        name
        for leaf in expected
        for name, bad in zip(leaf.names, np.atleast_1d(found[leaf.path]), strict=True)
        if bad
    ]
    if names:
        raise UserError(
            f"{source.origin}: values are NaN or infinite in {_listing(names)}: the file is damaged"
        )


def _assemble_leaf(source: TensorSource, leaf: Leaf, target: jax.ShapeDtypeStruct) -> Array:
    """One array of the tree; every tensor is read once, for all its shards here."""
    sharding = target.sharding or SingleDeviceSharding(jax.local_devices()[0])

    def bounds(index: Any) -> tuple[tuple[int, int, int], ...]:
        return tuple(part.indices(size) for part, size in zip(index, leaf.shape, strict=True))

    # Copies on several devices share their host memory.
    indices = sharding.addressable_devices_indices_map(leaf.shape).values()
    parts = {bounds(index): index for index in indices if index is not None}
    host = {key: np.empty([stop - start for start, stop, _ in key], target.dtype) for key in parts}
    for layer, name in enumerate(leaf.names):
        tensor = read_floats(source, name)
        for key, index in parts.items():
            if leaf.stacked:
                host[key][layer] = tensor[index[1:]]
            else:
                host[key][...] = tensor[index]
    return jax.make_array_from_callback(leaf.shape, sharding, lambda index: host[bounds(index)])


def disassemble(params: Params, config: LlamaConfig) -> Iterator[tuple[str, np.ndarray]]:
    """The tensors of a parameter tree under Hugging Face's names, one at a time, layer by layer."""
    arrays = flatten_dict(params)
    expected = leaves(config)
    for leaf in expected:
        if not leaf.stacked:
            yield leaf.names[0], to_host(arrays[leaf.path])
    for layer in range(config.num_layers):
        for leaf in expected:
            if leaf.stacked:
                yield leaf.names[layer], to_host(arrays[leaf.path][layer])


def require_tensors_of(config: LlamaConfig, source: TensorSource) -> None:
    """Raises one UserError that lists every tensor that is missing, surplus or misshaped."""
    wanted = {name: leaf.tensor_shape for leaf in leaves(config) for name in leaf.names}
    tied = ["lm_head.weight"] if config.tie_embeddings else []
    require_shapes(source, wanted, "the configuration", ignored=tied)


def require_shapes(
    source: TensorSource,
    wanted: Mapping[str, tuple[int, ...]],
    owner: str,
    ignored: Collection[str] = (),
) -> None:
    """Raises one UserError that lists every tensor that is missing, surplus or misshaped.

    owner:   in the message, what the wanted names and shapes follow from.
    ignored: names that may be there.
    """
    missing = [name for name in wanted if name not in source.shapes]
    known = {*wanted, *ignored}
    surplus = [name for name in source.shapes if name not in known and not _DERIVED.search(name)]
    misshaped = [
        f"{name} (is {list(source.shapes[name])}, should be {list(shape)})"
        for name, shape in wanted.items()
        if name in source.shapes and tuple(source.shapes[name]) != shape
    ]
    problems = [("missing", missing), ("surplus", surplus), ("of another shape", misshaped)]
    if any(names for _, names in problems):
        lines = [f"{source.origin}: the tensors do not fit {owner}"]
        lines += [f"  {kind}: {_listing(names)}" for kind, names in problems if names]
        raise UserError("\n".join(lines))


def _listing(names: list[str]) -> str:
    more = len(names) - _LISTED
    return ", ".join(names[:_LISTED]) + (f" and {more} more" if more > 0 else "")


def read_floats(source: TensorSource, name: str) -> np.ndarray:
    """A tensor of a source. Raises UserError when its numbers are not floats."""
    tensor = source.read(name)
    if not jnp.issubdtype(tensor.dtype, jnp.floating):
        raise UserError(
            f"{source.origin}: {name} holds {tensor.dtype}, not a float type; quantised checkpoints"
            " are read in GGUF form only"
        )
    return tensor
