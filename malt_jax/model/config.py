"""The sizes of a model, from and to Hugging Face's config.json, and how it is run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeVar

import jax.numpy as jnp
import pydantic
from jax.sharding import Mesh
from pydantic import Field
from pydantic.dataclasses import dataclass

from malt_jax.config import LoraConfig
from malt_jax.errors import UserError
from malt_jax.model.families import LOCAL, MOST_LAYERS, read_fields, write_fields

# Far above every published model; larger numbers in a config.json are mistakes or attacks.
_Count = Annotated[int, Field(ge=1, le=MOST_LAYERS)]
_Width = Annotated[int, Field(ge=1, le=1_000_000)]
_Length = Annotated[int, Field(ge=1, le=2**31 - 1)]
_OriginalLength = Annotated[_Length, Field(alias="original_max_position_embeddings")]
_Positive = Annotated[float, Field(ge=1e-12, le=1e12)]
_STRICT = pydantic.ConfigDict(
    strict=True, extra="forbid", allow_inf_nan=False, populate_by_name=True
)

Activation = Literal["silu", "gelu_pytorch_tanh"]
LayerType = Literal["full_attention", "sliding_attention"]

Sizes = TypeVar("Sizes")


@dataclass(frozen=True, config=_STRICT)
class Llama3RopeScaling:
    """Llama 3.1's stretching of the low rotary frequencies to longer contexts."""

    rope_type: ClassVar[str] = "llama3"
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
class LinearRopeScaling:
    """All rotary frequencies divided by `factor`."""

    rope_type: ClassVar[str] = "linear"
    factor: _Positive


RopeScaling = Llama3RopeScaling | LinearRopeScaling


@dataclass(frozen=True, config=_STRICT)
class LlamaConfig:
    """Sizes and constants of a decoder, with their names in config.json.

    The defaults are Llama's; other families differ from it by single fields (`families.FAMILIES`).
    """

    vocab_size: Annotated[int, Field(ge=1, le=100_000_000)]
    d_model: Annotated[_Width, Field(alias="hidden_size")]
    num_layers: Annotated[_Count, Field(alias="num_hidden_layers")]
    num_heads: Annotated[_Count, Field(alias="num_attention_heads")]
    num_kv_heads: Annotated[_Count, Field(alias="num_key_value_heads")]
    head_dim: _Count
    d_ff: Annotated[_Width, Field(alias="intermediate_size")]
    rope_theta: _Positive = 10_000.0
    rope_scaling: RopeScaling | None = None
    norm_eps: Annotated[_Positive, Field(alias="rms_norm_eps")] = 1e-5
    tie_embeddings: Annotated[bool, Field(alias="tie_word_embeddings")] = False
    attention_bias: bool = False
    max_positions: Annotated[_Length, Field(alias="max_position_embeddings")] = 2048
    model_type: str = "llama"
    activation: Annotated[Activation, Field(alias="hidden_act")] = "silu"
    """Of the gate of the feed-forward layers."""
    qk_norm: bool = False
    """Norms of every head's queries and keys, before they are rotated."""
    post_norms: bool = False
    """Norms of the results of attention and feed-forward, before they are added to the input."""
    zero_centered_norms: bool = False
    """Norms multiply by 1 + their weight."""
    scale_embeddings: bool = False
    """Embeddings are multiplied by the root of the model's width."""
    query_scalar: Annotated[_Width | None, Field(alias="query_pre_attn_scalar")] = None
    """Attention logits are divided by its root; None: `head_dim`."""
    attention_softcap: Annotated[_Positive | None, Field(alias="attn_logit_softcapping")] = None
    """c: attention logits x become c tanh(x / c)."""
    logits_softcap: Annotated[_Positive | None, Field(alias="final_logit_softcapping")] = None
    """The same for the logits of the vocabulary."""
    sliding_window: _Length | None = None
    """Latest tokens, the own included, that a token sees in layers of type sliding_attention."""
    layer_types: tuple[LayerType, ...] = ()
    """One a layer; (): all have full_attention."""
    local_rope_theta: Annotated[_Positive | None, Field(alias="rope_local_base_freq")] = None
    """Rotary base of the layers with a sliding window, without scaling; None: as in the others."""
    rope_layers: Annotated[tuple[bool, ...], Field(alias="no_rope_layers")] = ()
    """Whether each layer has rotary positions; (): all have."""

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise UserError(
                f"num_attention_heads ({self.num_heads}) is not a multiple of"
                f" num_key_value_heads ({self.num_kv_heads})"
            )
        if self.head_dim % 2:
            raise UserError(f"head_dim must be even for rotary positions, got {self.head_dim}")
        for name, of_layers in (
            ("layer_types", self.layer_types),
            ("no_rope_layers", self.rope_layers),
        ):
            if len(of_layers) not in (0, self.num_layers):
                raise UserError(
                    f"{name} has {len(of_layers)} entries, num_hidden_layers is {self.num_layers}"
                )
        if (LOCAL in self.layer_types) != (self.sliding_window is not None):
            raise UserError(
                f"sliding_window is {self.sliding_window}, but layer_types has"
                f" {self.layer_types.count(LOCAL)} layers of type {LOCAL!r}"
            )

    @property
    def local_layers(self) -> tuple[bool, ...]:
        """Whether each layer has a sliding window."""
        return tuple(x == LOCAL for x in self.layer_types) or (False,) * self.num_layers

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
        norms = (4 if self.post_norms else 2) * self.d_model
        norms += 2 * self.head_dim if self.qk_norm else 0
        block = attention + biases + 3 * self.d_model * self.d_ff + norms
        embeddings = self.vocab_size * self.d_model * (1 if self.tie_embeddings else 2)
        return embeddings + self.num_layers * block + self.d_model

    @classmethod
    def from_huggingface(cls, fields: Mapping[str, Any]) -> LlamaConfig:
        """Reads the fields of a config.json, which are not trusted.

        Raises UserError, naming the field, for an architecture, a rope type or an option that is
        not implemented, for a missing field, and for a value of the wrong kind or out of bounds.
        """
        read = read_fields(fields)
        theta, scaling = _rope(read)
        return _validated(cls, read | {"rope_theta": theta, "rope_scaling": scaling})

    def to_huggingface(self) -> dict[str, Any]:
        """The fields of a config.json that transformers reads back to the same model."""
        fields: dict[str, Any] = pydantic.TypeAdapter(LlamaConfig).dump_python(self, by_alias=True)
        scaling = fields.pop("rope_scaling")
        if self.rope_scaling is not None:
            fields["rope_scaling"] = {"rope_type": self.rope_scaling.rope_type, **scaling}
        return write_fields(fields)


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


def _rope(fields: Mapping[str, Any]) -> tuple[Any, RopeScaling | None]:
    """Rotary base and scaling, from `rope_parameters` (newer files) or from the older fields."""
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise UserError(f"the rope scaling is of the wrong kind: {rope!r:.80} is not an object")
    theta = rope.get("rope_theta")
    theta = fields["rope_theta"] if theta is None else theta
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    scalings: tuple[type[RopeScaling], ...] = (Llama3RopeScaling, LinearRopeScaling)
    for scaling in scalings:
        if kind == scaling.rope_type:
            # A file has to state every number, although our dataclasses have defaults.
            return theta, _validated(scaling, dict.fromkeys(_names(scaling)) | rope)
    raise UserError(
        f"rope type {kind!r:.80} is not supported; supported are 'default', 'llama3', 'linear'"
    )


def _names(make: Any) -> list[str]:
    """The names of a dataclass's fields in a config.json."""
    return [info.alias or name for name, info in make.__pydantic_fields__.items()]


def _validated(make: type[Sizes], values: Mapping[str, Any]) -> Sizes:
    """An instance with the values that its fields have in a config.json.

    Raises UserError with those that are missing, of the wrong kind or out of bounds.
    """
    try:
        return make(**{name: values[name] for name in _names(make) if name in values})
    except pydantic.ValidationError as error:
        raise UserError("; ".join(map(_explained, error.errors()))) from None


def _explained(problem: Mapping[str, Any]) -> str:
    name, rule = problem["loc"][0], problem["msg"].replace("Input should", "must")
    if problem["type"] == "missing":
        return f"the field {name!r} is missing"
    kind = "is of the wrong kind: it " if problem["type"].endswith("_type") else ""
    return f"{name} {kind}{rule}, got {problem['input']!r:.80}"
