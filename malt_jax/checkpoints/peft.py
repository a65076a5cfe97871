"""LoRA adapters as Hugging Face's library peft writes and reads them.

A directory with adapter_config.json and adapter_model.safetensors, whose tensors are called
`base_model.model.MODULE.lora_A.weight` [R, in] and `base_model.model.MODULE.lora_B.weight`
[out, R], where MODULE is the linear layer's name in the base model.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import pydantic
from flax.traverse_util import flatten_dict, unflatten_dict
from jaxtyping import Float
from pydantic import Field
from pydantic.dataclasses import dataclass
from safetensors.numpy import save_file

from malt_jax.checkpoints.huggingface import safetensors_source, write_json
from malt_jax.checkpoints.weights import (
    TensorSource,
    leaves,
    read_floats,
    require_shapes,
)
from malt_jax.config import LINEAR_LAYERS, LoraConfig
from malt_jax.errors import UserError
from malt_jax.files import read_json_object
from malt_jax.model.config import Llama, LlamaConfig
from malt_jax.model.llama import Params, variable_specs
from malt_jax.sharding.rules import to_host

CONFIG = "adapter_config.json"
WEIGHTS = "adapter_model.safetensors"

_PREFIX = "base_model.model."
_MATRICES = {"a": "lora_A", "b": "lora_B"}


class LowRank(NamedTuple):
    """The matrices of one linear layer, whose kernel [out, in] gets scale · b a added."""

    a: Float[np.ndarray, "R in"]
    b: Float[np.ndarray, "out R"]


def low_rank(adapter: Params, config: LlamaConfig) -> dict[str, LowRank]:
    """The matrices of every layer with an adapter, by Hugging Face's name of the layer's kernel.

    adapter: a tree of the collection "adapter", float32, stacked over layers.
    """
    names = {leaf.path: leaf.names for leaf in leaves(config)}
    found: dict[str, LowRank] = {}
    flat = {path: np.asarray(to_host(x)) for path, x in flatten_dict(adapter).items()}
    for path, a in flat.items():
        if path[-1] == "a":
            b = flat[(*path[:-1], "b")]
            kernels = names[(*path[:-1], "kernel")]
            found |= {name: LowRank(*pair) for name, *pair in zip(kernels, a, b, strict=True)}
    return found


def merged(
    source: TensorSource,
    config: LlamaConfig,
    adapter: Mapping[str, LowRank],
    scale: float,
    dtype: Any,
) -> Iterator[tuple[str, np.ndarray]]:
    """The base model's tensors with an adapter's products added, one at a time.

    The sum is formed in float32 and rounded once to `dtype`. Without an adapter ({}) they are the
    base model's own.

    Raises UserError when the source lacks a tensor.
    """
    for leaf in leaves(config):
        for name in leaf.names:
            tensor = read_floats(source, name).astype(np.float32)
            if name in adapter:
                tensor += np.float32(scale) * (adapter[name].b @ adapter[name].a)
            yield name, tensor.astype(dtype)


def save_adapter(
    directory: Path, adapter: Params, config: LlamaConfig, lora: LoraConfig, base: str
) -> None:
    """Writes an adapter into a directory, which is made.

    `lora_alpha` is alpha times `adapter_weight`, so that others sample from it as we do.

    base: the base model's name on a hub, or its path.
    """
    directory.mkdir(parents=True)
    alpha = lora.sampled_alpha
    fields: dict[str, Any] = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base,
        "r": lora.rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha,
        "lora_dropout": lora.dropout,
        "target_modules": [f"{name}_proj" for name in lora.targets],
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "init_lora_weights": True,
        "modules_to_save": None,
        "use_dora": False,
        "use_rslora": False,
        "rank_pattern": {},
        "alpha_pattern": {},
        "layers_to_transform": None,
        "layers_pattern": None,
        "revision": None,
    }
    write_json(directory / CONFIG, fields)
    tensors = {}
    for kernel, matrices in low_rank(adapter, config).items():
        for letter, matrix in matrices._asdict().items():
            tensors[_tensor_name(kernel, letter)] = np.ascontiguousarray(matrix, np.float32)
    save_file(tensors, directory / WEIGHTS, metadata={"format": "pt"})


def load_adapter(directory: Path, config: LlamaConfig, lora: LoraConfig) -> Params:
    """Reads an adapter as host arrays in float32.

    config, lora: of the model that it is for.

    Raises UserError, naming the file, when one is missing or broken, when the adapter uses what is
    not implemented, when its rank, scale or targets are not those of `lora`, and when a tensor is
    missing, surplus or misshaped.
    """
    stored = read_lora_config(directory / CONFIG)
    weighted = "alpha" if lora.adapter_weight == 1 else "alpha times lora.adapter_weight"
    for field, has, expected in (
        ("rank", stored.rank, lora.rank),
        (weighted, stored.alpha, lora.sampled_alpha),
    ):
        if has != expected:
            raise UserError(
                f"{directory / CONFIG}: the adapter's {field.partition(' ')[0]} is {has}, and"
                f" lora.{field} is {expected}"
            )
    if {*stored.targets} != {*lora.targets}:
        raise UserError(
            f"{directory / CONFIG}: the adapter's targets are {', '.join(stored.targets)}, and"
            f" lora.targets are {', '.join(lora.targets)}"
        )
    file = directory / WEIGHTS
    if not file.is_file():
        raise UserError(f"{file}: not found; an adapter's directory needs it")
    source = safetensors_source([file], str(file))
    kernels = {leaf.path: leaf.names for leaf in leaves(config)}
    specs = flatten_dict(variable_specs(Llama(config, lora=lora))["adapter"])
    names = {
        path: [_tensor_name(kernel, path[-1]) for kernel in kernels[(*path[:-1], "kernel")]]
        for path in specs
    }
    wanted = {name: spec.shape[1:] for path, spec in specs.items() for name in names[path]}
    require_shapes(source, wanted, "the base model and adapter_config.json")
    return unflatten_dict(
        {
            path: np.stack([_finite(source, name) for name in of_path])
            for path, of_path in names.items()
        }
    )


def _finite(source: TensorSource, name: str) -> np.ndarray:
    tensor = read_floats(source, name).astype(np.float32)
    if not np.isfinite(tensor).all():
        raise UserError(f"{source.origin}: values of {name} are NaN or infinite: export it again")
    return tensor


def _tensor_name(kernel: str, letter: str) -> str:
    return f"{_PREFIX}{kernel.removesuffix('.weight')}.{_MATRICES[letter]}.weight"


@dataclass(frozen=True, config=pydantic.ConfigDict(strict=True, allow_inf_nan=False))
class _AdapterConfig:
    """The fields of an adapter_config.json that change the adapter's product.

    Those with a single value have no other implementation.
    """

    peft_type: Literal["LORA"]
    r: Annotated[int, Field(ge=1)]
    lora_alpha: Annotated[float, Field(gt=0)]
    target_modules: tuple[str, ...]
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    bias: Literal["none"] = "none"
    fan_in_fan_out: Literal[False] = False
    lora_bias: Literal[False] = False
    use_dora: Literal[False] = False
    use_rslora: Literal[False] = False
    modules_to_save: tuple[()] | None = None
    rank_pattern: Annotated[dict[str, int], Field(max_length=0)] | None = None
    alpha_pattern: Annotated[dict[str, float], Field(max_length=0)] | None = None
    layers_to_transform: None = None


_ADAPTER_CONFIG = pydantic.TypeAdapter(_AdapterConfig)


def read_lora_config(file: Path) -> LoraConfig:
    """The LoRA options in an adapter_config.json, which is not trusted.

    Raises UserError, naming file and field, for a missing or malformed file and for what is not
    implemented: DoRA, rank-stabilised scales, biases, saved modules, patterns of ranks.
    """
    if not file.is_file():
        raise UserError(f"{file}: not found; an adapter's directory needs it")
    try:
        fields = _ADAPTER_CONFIG.validate_json(json.dumps(read_json_object(file)))
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, problem["loc"]))
        raise UserError(
            f"{file}: {name}: {problem['msg']}, got {problem['input']!r:.80}; only plain LoRA on"
            " linear layers is supported"
        ) from None
    targets = tuple(
        layer
        for layer in LINEAR_LAYERS
        if any(name.rpartition(".")[2] == f"{layer}_proj" for name in fields.target_modules)
    )
    if len(targets) < len(fields.target_modules):
        known = ", ".join(f"{layer}_proj" for layer in LINEAR_LAYERS)
        raise UserError(
            f"{file}: target_modules: {', '.join(fields.target_modules):.200} must be different"
            f" ones of {known}"
        )
    return LoraConfig(fields.r, fields.lora_alpha, fields.lora_dropout, targets)
