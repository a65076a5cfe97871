"""The sizes of a model, from and to Hugging Face's config.json, and how it is run."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
from jax.sharding import Mesh

from malt_jax.config import LoraConfig
from malt_jax.errors import UserError

ARCHITECTURES = {"llama": "LlamaForCausalLM", "qwen2": "Qwen2ForCausalLM"}

# Far above every published model; larger numbers in a config.json are mistakes or attacks.
_LARGEST_WIDTH = 1_000_000
_LARGEST = {
    "num_hidden_layers": 10_000,
    "num_attention_heads": 10_000,
    "head_dim": 10_000,
    "vocab_size": 100_000_000,
    "max_position_embeddings": 2**31 - 1,
    "original_max_position_embeddings": 2**31 - 1,
}


@dataclasses.dataclass(frozen=True)
class Llama3RopeScaling:
    """Llama 3.1's stretching of the low rotary frequencies to longer contexts."""

    factor: float = 8.0
    low_freq_factor: float = 1.0
    high_freq_factor: float = 4.0
    original_max_positions: int = 8192

    def __post_init__(self) -> None:
        if self.low_freq_factor >= self.high_freq_factor:
            raise UserError(
                f"the rope scaling's low_freq_factor ({self.low_freq_factor}) is not below its"
                f" high_freq_factor ({self.high_freq_factor})"
            )


@dataclasses.dataclass(frozen=True)
class LlamaConfig:
    """Sizes and constants of a decoder of the Llama family."""

    vocab_size: int
    d_model: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    d_ff: int
    rope_theta: float = 10_000.0
    rope_scaling: Llama3RopeScaling | None = None
    norm_eps: float = 1e-5
    tie_embeddings: bool = False
    attention_bias: bool = False
    max_positions: int = 2048
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
        num_heads = _whole(fields, "num_attention_heads")
        d_model = _whole(fields, "hidden_size")
        theta, scaling = _rope(fields)
        return cls(
            vocab_size=_whole(fields, "vocab_size"),
            d_model=d_model,
            num_layers=_whole(fields, "num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=_whole(fields, "num_key_value_heads", num_heads),
            head_dim=_whole(fields, "head_dim", d_model // num_heads),
            d_ff=_whole(fields, "intermediate_size"),
            rope_theta=theta,
            rope_scaling=scaling,
            norm_eps=_positive(fields, "rms_norm_eps", 1e-6),
            tie_embeddings=bool(fields.get("tie_word_embeddings", False)),
            attention_bias=model_type == "qwen2",
            max_positions=_whole(fields, "max_position_embeddings", 2048),
            model_type=model_type,
        )

    def to_huggingface(self) -> dict[str, Any]:
        """The fields of a config.json that transformers reads back to the same model."""
        fields: dict[str, Any] = {
            "architectures": [ARCHITECTURES[self.model_type]],
            "model_type": self.model_type,
            "vocab_size": self.vocab_size,
            "hidden_size": self.d_model,
            "num_hidden_layers": self.num_layers,
            "num_attention_heads": self.num_heads,
            "num_key_value_heads": self.num_kv_heads,
            "head_dim": self.head_dim,
            "intermediate_size": self.d_ff,
            "hidden_act": "silu",
            "rope_theta": self.rope_theta,
            "rms_norm_eps": self.norm_eps,
            "tie_word_embeddings": self.tie_embeddings,
            "max_position_embeddings": self.max_positions,
        }
        if self.model_type == "llama":
            fields |= {"attention_bias": False, "mlp_bias": False}
        if self.rope_scaling is not None:
            fields["rope_scaling"] = {
                "rope_type": "llama3",
                "factor": self.rope_scaling.factor,
                "low_freq_factor": self.rope_scaling.low_freq_factor,
                "high_freq_factor": self.rope_scaling.high_freq_factor,
                "original_max_position_embeddings": self.rope_scaling.original_max_positions,
            }
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


def _rope(fields: Mapping[str, Any]) -> tuple[float, Llama3RopeScaling | None]:
    """Rotary base and scaling, from `rope_parameters` (newer files) or from the older fields."""
    rope = fields.get("rope_parameters") or fields.get("rope_scaling") or {}
    if not isinstance(rope, dict):
        raise UserError(f"the rope scaling is of the wrong kind: {rope!r:.80} is not an object")
    theta = _positive(rope if "rope_theta" in rope else fields, "rope_theta", 10_000.0)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    if kind != "llama3":
        raise UserError(
            f"rope type {kind!r:.80} is not supported; supported are 'default', 'llama3'"
        )
    return theta, Llama3RopeScaling(
        factor=_positive(rope, "factor"),
        low_freq_factor=_positive(rope, "low_freq_factor"),
        high_freq_factor=_positive(rope, "high_freq_factor"),
        original_max_positions=_whole(rope, "original_max_position_embeddings"),
    )


def _whole(fields: Mapping[str, Any], name: str, default: int | None = None) -> int:
    """A number that counts something. null stands for the default, as in transformers."""
    value = _stated(fields, name, default)
    return int(_bounded(name, value, (int,), 1, _LARGEST.get(name, _LARGEST_WIDTH)))


def _positive(fields: Mapping[str, Any], name: str, default: float | None = None) -> float:
    value = _stated(fields, name, default)
    return float(_bounded(name, value, (int, float), 1e-12, 1e12))


def _stated(fields: Mapping[str, Any], name: str, default: Any) -> Any:
    if default is None and name not in fields:
        raise UserError(f"the field {name!r} is missing")
    return default if fields.get(name) is None else fields[name]


def _bounded(name: str, value: Any, kinds: tuple[type, ...], least: float, most: float) -> Any:
    if type(value) not in kinds:
        raise UserError(f"{name} is of the wrong kind: expected a number, got {value!r:.80}")
    if not least <= value <= most:
        raise UserError(f"{name} must be from {least:g} to {most:g}, got {value!r:.80}")
    return value
