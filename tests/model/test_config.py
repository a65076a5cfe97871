"""Configurations from and to Hugging Face's config.json."""

import dataclasses
import re

import pytest
import transformers

from malt_jax.errors import UserError
from malt_jax.model.config import Llama3RopeScaling, LlamaConfig

LLAMA_31_8B = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "vocab_size": 128256,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 500000.0,
    "rope_scaling": {
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "tie_word_embeddings": False,
    "max_position_embeddings": 131072,
    "attention_bias": False,
}


def test_llama_31_8b_has_its_published_shape() -> None:
    config = LlamaConfig.from_huggingface(LLAMA_31_8B)
    assert config.head_dim == 128
    assert config.queries_per_kv_head == 4
    assert config.rope_theta == 500_000
    assert config.rope_scaling == Llama3RopeScaling()
    assert config.num_parameters == 8_030_261_248  # as its model card counts them


def test_rope_parameters_is_read_like_rope_scaling() -> None:
    newer = {k: v for k, v in LLAMA_31_8B.items() if k not in ("rope_theta", "rope_scaling")}
    newer["rope_parameters"] = {**LLAMA_31_8B["rope_scaling"], "rope_theta": 500000.0}
    assert LlamaConfig.from_huggingface(newer) == LlamaConfig.from_huggingface(LLAMA_31_8B)


@pytest.mark.parametrize("model_type", ["llama", "qwen2"])
def test_transformers_reads_what_is_written(model_type: str) -> None:
    config = LlamaConfig(
        vocab_size=64,
        d_model=16,
        num_layers=2,
        num_heads=4,
        num_kv_heads=2,
        head_dim=8,
        d_ff=24,
        rope_theta=12345.0,
        rope_scaling=Llama3RopeScaling(factor=4.0) if model_type == "llama" else None,
        norm_eps=2e-6,
        tie_embeddings=True,
        attention_bias=model_type == "qwen2",
        max_positions=4096,
        model_type=model_type,
    )
    theirs = transformers.AutoConfig.for_model(**config.to_huggingface())
    assert LlamaConfig.from_huggingface(theirs.to_dict()) == config


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model_type": "mixtral"}, "mixtral"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 2.0}}, "yarn"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"attention_bias": True}, "attention_bias"),
        ({"mlp_bias": True}, "mlp_bias"),
        ({"num_key_value_heads": 5}, "num_key_value_heads"),
        ({"hidden_size": None}, "wrong kind"),
    ],
)
def test_what_is_not_implemented_is_an_error_that_names_it(change: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        LlamaConfig.from_huggingface({**LLAMA_31_8B, **change})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_hidden_layers", 1_000_000),
        ("num_hidden_layers", "32"),
        ("num_attention_heads", 0),
        ("num_attention_heads", [32]),
        ("num_attention_heads", True),
        ("num_key_value_heads", 0),
        ("num_key_value_heads", -8),
        ("head_dim", 0.5),
        ("hidden_size", float("inf")),
        ("hidden_size", 10**400),
        ("intermediate_size", {}),
        ("vocab_size", 10**18),
        ("max_position_embeddings", 2**64),
        ("rms_norm_eps", 0.0),
        ("rms_norm_eps", "1e-5"),
        ("rope_theta", float("nan")),
        ("rope_theta", float("inf")),
        ("model_type", ["llama"]),
    ],
)
def test_a_value_out_of_bounds_is_named(name: str, value: object) -> None:
    with pytest.raises(UserError, match=f"{name} .*{re.escape(repr(value)[:20])}"):
        LlamaConfig.from_huggingface({**LLAMA_31_8B, name: value})


@pytest.mark.parametrize(
    "change", [{"factor": 0}, {"factor": float("nan")}, {"low_freq_factor": 4.0}, {"factor": None}]
)
def test_rope_scaling_has_bounds(change: dict) -> None:
    scaling = {**LLAMA_31_8B["rope_scaling"], **change}
    with pytest.raises(UserError, match="factor"):
        LlamaConfig.from_huggingface({**LLAMA_31_8B, "rope_scaling": scaling})
    with pytest.raises(UserError, match="rope scaling is of the wrong kind"):
        LlamaConfig.from_huggingface({**LLAMA_31_8B, "rope_scaling": [8.0]})


def test_a_missing_field_is_named() -> None:
    fields = dict(LLAMA_31_8B)
    del fields["intermediate_size"]
    with pytest.raises(UserError, match="intermediate_size"):
        LlamaConfig.from_huggingface(fields)


def test_configurations_can_be_static_arguments() -> None:
    config = LlamaConfig.from_huggingface(LLAMA_31_8B)
    assert hash(config) == hash(dataclasses.replace(config))
