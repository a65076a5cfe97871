"""Published config.json files of every family, and what is refused in them."""

import pytest

from malt_jax.checkpoints.presets import PRESETS
from malt_jax.errors import UserError
from malt_jax.model.config import LlamaConfig

LOCAL, GLOBAL = "sliding_attention", "full_attention"

# The fields of published files, without those about tokens, dropout and initial values.
QWEN3_4B = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 2560,
    "intermediate_size": 9728,
    "max_position_embeddings": 40960,
    "max_window_layers": 36,
    "model_type": "qwen3",
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}
SMOLLM3_3B = {
    "architectures": ["SmolLM3ForCausalLM"],
    "attention_bias": False,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 11008,
    "layer_types": [GLOBAL] * 36,
    "max_position_embeddings": 65536,
    "max_window_layers": 28,
    "mlp_bias": False,
    "model_type": "smollm3",
    "no_rope_layer_interval": 4,
    "no_rope_layers": [1, 1, 1, 0] * 9,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 5000000.0,
    "sliding_window": None,
    "use_sliding_window": False,
    "vocab_size": 128256,
}
GEMMA3_1B = {
    "architectures": ["Gemma3ForCausalLM"],
    "attention_bias": False,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 1152,
    "intermediate_size": 6912,
    "max_position_embeddings": 32768,
    "model_type": "gemma3_text",
    "num_attention_heads": 4,
    "num_hidden_layers": 26,
    "num_key_value_heads": 1,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-06,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "sliding_window_pattern": 6,
    "vocab_size": 262144,
}
GEMMA3_4B = {
    "architectures": ["Gemma3ForConditionalGeneration"],
    "model_type": "gemma3",
    "text_config": {
        "hidden_size": 2560,
        "intermediate_size": 10240,
        "model_type": "gemma3_text",
        "num_hidden_layers": 34,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 1024,
    },
    "vision_config": {"hidden_size": 1152, "model_type": "siglip_vision_model"},
}
MISTRAL_7B = {
    "architectures": ["MistralForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 32768,
    "model_type": "mistral",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": False,
    "vocab_size": 32000,
}


@pytest.mark.parametrize(
    ("fields", "preset"),
    [
        (QWEN3_4B, "qwen3-4b"),
        (SMOLLM3_3B, "smollm3-3b"),
        (GEMMA3_1B, "gemma-3-1b"),
        (GEMMA3_4B, "gemma-3-4b"),
    ],
)
def test_published_files_give_the_presets(fields: dict, preset: str) -> None:
    assert LlamaConfig.from_huggingface(fields) == PRESETS[preset]


def test_mistral_has_a_window_in_every_layer_unless_the_file_says_null() -> None:
    config = LlamaConfig.from_huggingface(MISTRAL_7B)
    assert config.sliding_window == 4096
    assert config.local_layers == (True,) * 32
    assert config.num_parameters == 7_241_732_096  # as its model card counts them
    newer = LlamaConfig.from_huggingface({**MISTRAL_7B, "sliding_window": None})
    assert newer.sliding_window is None
    assert not any(newer.local_layers)


def test_windows_of_qwen_are_switched() -> None:
    fields = {**QWEN3_4B, "sliding_window": 100, "max_window_layers": 34}
    assert LlamaConfig.from_huggingface(fields) == PRESETS["qwen3-4b"]
    config = LlamaConfig.from_huggingface({**fields, "use_sliding_window": True})
    assert config.sliding_window == 100
    assert config.layer_types == (GLOBAL,) * 34 + (LOCAL,) * 2
    assert LlamaConfig.from_huggingface(config.to_huggingface()) == config


def test_lists_of_layers_win_over_patterns() -> None:
    """As newer files have them, which state rotary positions per type of layer as well."""
    rope = {
        GLOBAL: {"rope_type": "linear", "factor": 4.0, "rope_theta": 2e6},
        LOCAL: {"rope_type": "default", "rope_theta": 3e4},
    }
    types = [GLOBAL, LOCAL] * 13
    config = LlamaConfig.from_huggingface(
        {**GEMMA3_1B, "rope_parameters": rope, "layer_types": types}
    )
    assert config.layer_types == tuple(types)
    assert (config.rope_theta, config.local_rope_theta) == (2e6, 3e4)
    assert config.rope_scaling.factor == 4.0
    every_other = {**SMOLLM3_3B, "no_rope_layers": None, "no_rope_layer_interval": 2}
    assert LlamaConfig.from_huggingface(every_other).rope_layers == (True, False) * 18


@pytest.mark.parametrize(
    ("fields", "change", "named"),
    [
        (QWEN3_4B, {"model_type": "qwen3_moe"}, "qwen3_moe.* supported are llama, .*gemma3"),
        (QWEN3_4B, {"attention_bias": True}, "attention_bias=true"),
        (QWEN3_4B, {"layer_types": ["chunked_attention"] * 36}, "layer_types.*chunked"),
        (QWEN3_4B, {"layer_types": [GLOBAL] * 35}, "layer_types has 35 entries"),
        (QWEN3_4B, {"layer_types": 5}, "layer_types is of the wrong kind"),
        (MISTRAL_7B, {"sliding_window": 0}, "sliding_window must be"),
        (MISTRAL_7B, {"sliding_window": "4096"}, "sliding_window is of the wrong kind"),
        (SMOLLM3_3B, {"no_rope_layers": [1, 2] * 18}, "no_rope_layers must list"),
        (SMOLLM3_3B, {"no_rope_layers": [1] * 35}, "no_rope_layers must list"),
        (SMOLLM3_3B, {"no_rope_layers": None, "no_rope_layer_interval": 0}, "interval must be"),
        (GEMMA3_1B, {"use_bidirectional_attention": True}, "use_bidirectional_attention=true"),
        (GEMMA3_1B, {"hidden_activation": "gelu"}, "hidden_act must be"),
        (GEMMA3_1B, {"sliding_window_pattern": "6"}, "sliding_window_pattern must be"),
        (GEMMA3_1B, {"final_logit_softcapping": -1.0}, "final_logit_softcapping must be"),
        (GEMMA3_1B, {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar must be"),
        (GEMMA3_1B, {"rope_parameters": {LOCAL: {"rope_type": "yarn"}}}, "yarn"),
        (GEMMA3_4B, {"text_config": None}, "text_config is of the wrong kind"),
    ],
)
def test_what_is_not_supported_is_named(fields: dict, change: dict, named: str) -> None:
    with pytest.raises(UserError, match=named):
        LlamaConfig.from_huggingface({**fields, **change})
