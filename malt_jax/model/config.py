"""The sizes of a model, from and to Hugging Face's config.json, and how it is run."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, TypeVar

import jax.numpy as jnp
import pydantic
from jax.sharding import Mesh
from pydantic import Field
from pydantic.dataclasses import dataclass

from malt_jax.config import LoraConfig
from malt_jax.errors import UserError

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}

# Far above every published model; larger numbers in a config.json are mistakes or attacks.
_Count = Annotated[int, Field(ge=1, le=10_000)]
_Width = Annotated[int, Field(ge=1, le=1_000_000)]
_Length = Annotated[int, Field(ge=1, le=2**31 - 1)]
_OriginalLength = Annotated[_Length, Field(alias="original_max_position_embeddings")]
_Positive = Annotated[float, Field(ge=1e-12, le=1e12)]
_STRICT = pydantic.ConfigDict(
    strict=True, extra="forbid", allow_inf_nan=False, populate_by_name=True
)

Sizes = TypeVar("Sizes")


@dataclass(frozen=True, config=_STRICT)
class Llama3RopeScaling:
    """Llama 3.1's stretching of the low rotary frequencies to longer contexts."""

    factor: _Positive = 8.0
    low_freq_factor: _Positive = 1.0
    high_freq_factor: _Positive = 4.0
    original_max_positions: _OriginalLength = 8192

    def __post_init__(self) -> None:
        if self.low_freq_factor >= self.high_freq_factor:
            raise UserError(
                f"the rope scaling's low_freq_factor ({self.low_freq_factor}) is not below its"
                f" high_freq_factor ({self.high_freq_factor})"
            )


@dataclass(frozen=True, config=_STRICT)
class LlamaConfig:
    """Sizes and constants of a decoder of the Llama family, with their names in config.json."""

    vocab_size: Annotated[int, Field(ge=1, le=100_000_000)]
    d_model: Annotated[_Width, Field(alias="hidden_size")]
    num_layers: Annotated[_Count, Field(alias="num_hidden_layers")]
    num_heads: Annotated[_Count, Field(alias="num_attention_heads")]
    num_kv_heads: Annotated[_Count, Field(alias="num_key_value_heads")]
    head_dim: _Count
    d_ff: Annotated[_Width, Field(alias="intermediate_size")]
    rope_theta: _Positive = 10_000.0
    rope_scaling: Llama3RopeScaling | None = None
    norm_eps: Annotated[_Positive, Field(alias="rms_norm_eps")] = 1e-5
    tie_embeddings: Annotated[bool, Field(alias="tie_word_embeddings")] = False
    attention_bias: bool = False
    max_positions: Annotated[_Length, Field(alias="max_position_embeddings")] = 2048
    model_type: str = "llama"

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"num_attention_heads ({self.num_heads}) is not a multiple of"
                f" num_key_value_heads ({self.num_kv_heads})"
            )
        if self.head_dim % 2:
            raise UserError(f"head_dim must be even for rotary positions, got {self.head_dim}")

    @property
    def queries_per_kv_head(self) -> int:
        return self.num_heads // self.num_kv_heads

    @property
    def axis_sizes(self) -> dict[str, int]:
        """Lengths of the logical axes that a mesh may split, each into equal parts."""
        return {
            "heads": self.num_heads,
            "kv_heads": self.num_kv_heads,
            "mlp": self.d_ff,
            "vocab": self.vocab_size,
            "embed": self.d_model,
        }

    @property
    def num_parameters(self) -> int:
        """Parameters of the base model; tied embeddings count once."""
        heads, kv_heads = self.num_heads * self.head_dim, self.num_kv_heads * self.head_dim
        attention = 2 * self.d_model * (heads + kv_heads)
        biases = heads + 2 * kv_heads if self.attention_bias else 0
        block = attention + biases + 3 * self.d_model * self.d_ff + 2 * self.d_model
        embeddings = self.vocab_size * self.d_model * (1 if self.tie_embeddings else 2)
        return embeddings + self.num_layers * block + self.d_model

    @classmethod
    def from_huggingface(cls, fields: Mapping[str, Any]) -> LlamaConfig:
        """Reads the fields of a config.json, which are not trusted.

        Raises UserError, naming the field, for an architecture, a rope type or an option that is
        not implemented, for a missing field, and for a value of the wrong kind or out of bounds.
        """
        model_type = fields.get("model_type")
        if model_type not in [*ARCHITECTURES]:
            raise UserError(
                f"model_type {model_type!r:.80} is not supported; supported are"
                f" {', '.join(ARCHITECTURES)}"
            )
        _refuse_unimplemented(fields, model_type)
        theta, scaling = _rope(fields)
        read = {"rms_norm_eps": 1e-6, "num_key_value_heads": fields.get("num_attention_heads")}
        with contextlib.suppress(KeyError, TypeError, ZeroDivisionError):
            read["head_dim"] = fields["hidden_size"] // fields["num_attention_heads"]
        optional = {*read, "tie_word_embeddings", "max_position_embeddings"}
        # null stands for the default, as in transformers.
        read |= {name: x for name, x in fields.items() if x is not None or name not in optional}
        read |= {"rope_theta": theta, "rope_scaling": scaling}
        return _validated(cls, read | {"attention_bias": model_type == "qwen2"})

    def to_huggingface(self) -> dict[str, Any]:
        """The fields of a config.json that transformers reads back to the same model."""
        fields: dict[str, Any] = pydantic.TypeAdapter(LlamaConfig).dump_python(self, by_alias=True)
        del fields["attention_bias"]
        fields |= {"architectures": [ARCHITECTURES[self.model_type]], "hidden_act": "silu"}
        if self.model_type == "llama":
            fields |= {"attention_bias": False, "mlp_bias": False}
        if (scaling := fields.pop("rope_scaling")) is not None:
            fields["rope_scaling"] = {"rope_type": "llama3", **scaling}
        return fields


@dataclasses.dataclass(frozen=True)
class Llama:
    """A model without its arrays, a static argument of the programs that are compiled for it."""

    config: LlamaConfig
    lora: LoraConfig | None = None
    """Its adapter; None: it has none."""
    dtype: Any = jnp.float32
    """Of the base weights and of matrix products; softmax, norms and logits are float32."""
    remat: bool = False
    """Recompute each layer in the backward pass instead of keeping its activations."""
    mesh: Mesh | None = None
    """Devices that weights and activations are split over; the first axis of its inputs has to be a
    multiple of `sharding.rules.batch_shards`. None: the device of its inputs."""


def _refuse_unimplemented(fields: Mapping[str, Any], model_type: str) -> None:
    activation = fields.get("hidden_act", "silu")
    if activation != "silu":
        raise UserError(f"hidden_act {activation!r:.80} is not supported, only 'silu'")
    switches = ["use_sliding_window", "mlp_bias"]
    if model_type == "llama":
        switches.append("attention_bias")
    for switch in switches:
        if fields.get(switch):
            raise UserError(f"{switch}=true is not supported for {model_type!r}")


def _rope(fields: Mapping[str, Any]) -> tuple[Any, Llama3RopeScaling | None]:
    """Rotary base and scaling, from `rope_parameters` (newer files) or from the older fields."""
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise UserError(f"the rope scaling is of the wrong kind: {rope!r:.80} is not an object")
    theta = (rope if "rope_theta" in rope else fields).get("rope_theta")
    theta = 10_000.0 if theta is None else theta
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise UserError(
            f"rope type {kind!r:.80} is not supported; supported are 'default', 'llama3'"
        )
    names = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")
    return theta, _validated(Llama3RopeScaling, dict.fromkeys(names) | rope)


def _validated(make: type[Sizes], values: Mapping[str, Any]) -> Sizes:
    """An instance with the values that its fields have in a config.json.

    Raises UserError with those that are missing, of the wrong kind or out of bounds.
    """
    fields: Any = make
    names = [info.alias or name for name, info in fields.__pydantic_fields__.items()]
    try:
        return make(**{name: values[name] for name in names if name in values})
    except pydantic.ValidationError as error:
        raise UserError("; ".join(map(_explained, error.errors()))) from None


def _explained(problem: Mapping[str, Any]) -> str:
    name, rule = problem["loc"][0], problem["msg"].replace("Input should", "must")
    if problem["type"] == "missing":
        return f"the field {name!r} is missing"
    kind = "is of the wrong kind: it " if problem["type"].endswith("_type") else ""
    return f"{name} {kind}{rule}, got {problem['input']!r:.80}"
