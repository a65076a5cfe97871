"""Published model shapes by name; a run with one gets random weights."""

from __future__ import annotations

from functools import partial

from malt_jax.model.config import LayerType, LinearRopeScaling, Llama3RopeScaling, LlamaConfig

_llama3 = partial(LlamaConfig, 128_256, rope_theta=500_000.0, max_positions=131_072)
_smollm2 = partial(LlamaConfig, 49_152, tie_embeddings=True, max_positions=8192)
_smollm3 = partial(
    LlamaConfig,
    128_256,
    rope_theta=5_000_000.0,
    norm_eps=1e-6,
    tie_embeddings=True,
    max_positions=65_536,
    model_type="smollm3",
)
_qwen25 = partial(
    LlamaConfig,
    151_936,
    rope_theta=1_000_000.0,
    norm_eps=1e-6,
    tie_embeddings=True,
    attention_bias=True,
    max_positions=32_768,
    model_type="qwen2",
)
_qwen3 = partial(
    LlamaConfig,
    151_936,
    rope_theta=1_000_000.0,
    norm_eps=1e-6,
    qk_norm=True,
    max_positions=40_960,
    model_type="qwen3",
)
_gemma3 = partial(
    LlamaConfig,
    rope_theta=1_000_000.0,
    local_rope_theta=10_000.0,
    norm_eps=1e-6,
    tie_embeddings=True,
    activation="gelu_pytorch_tanh",
    qk_norm=True,
    post_norms=True,
    zero_centered_norms=True,
    scale_embeddings=True,
    model_type="gemma3_text",
)
_BY_8, _BY_32 = Llama3RopeScaling(factor=8.0), Llama3RopeScaling(factor=32.0)


def _global_every_sixth(layers: int) -> tuple[LayerType, ...]:
    period: tuple[LayerType, ...] = (*("sliding_attention",) * 5, "full_attention")
    return (period * layers)[:layers]


# Columns: D model width, L layers, N query heads, K kv heads, H head width, F feed-forward width;
# Gemma's have V, the vocabulary, before them.
PRESETS: dict[str, LlamaConfig] = {
    "llama-3.1-8b": _llama3(4096, 32, 32, 8, 128, 14_336, rope_scaling=_BY_8),
    "llama-3.2-1b": _llama3(2048, 16, 32, 8, 64, 8192, rope_scaling=_BY_32, tie_embeddings=True),
    "llama-3.2-3b": _llama3(3072, 28, 24, 8, 128, 8192, rope_scaling=_BY_32, tie_embeddings=True),
    "smollm2-135m": _smollm2(576, 30, 9, 3, 64, 1536, rope_theta=100_000.0),
    "smollm2-360m": _smollm2(960, 32, 15, 5, 64, 2560, rope_theta=100_000.0),
    "smollm2-1.7b": _smollm2(2048, 24, 32, 32, 64, 8192, rope_theta=130_000.0),
    "smollm3-3b": _smollm3(2048, 36, 16, 4, 128, 11_008, rope_layers=(True, True, True, False) * 9),
    "qwen-2.5-0.5b": _qwen25(896, 24, 14, 2, 64, 4864),
    "qwen-2.5-1.5b": _qwen25(1536, 28, 12, 2, 128, 8960),
    "qwen3-0.6b": _qwen3(1024, 28, 16, 8, 128, 3072, tie_embeddings=True),
    "qwen3-1.7b": _qwen3(2048, 28, 16, 8, 128, 6144, tie_embeddings=True),
    "qwen3-4b": _qwen3(2560, 36, 32, 8, 128, 9728, tie_embeddings=True),
    "qwen3-8b": _qwen3(4096, 36, 32, 8, 128, 12_288),
    "gemma-3-270m": _gemma3(
        *(262_144, 640, 18, 4, 1, 256, 2048),
        sliding_window=512,
        layer_types=_global_every_sixth(18),
        max_positions=32_768,
    ),
    "gemma-3-1b": _gemma3(
        *(262_144, 1152, 26, 4, 1, 256, 6912),
        sliding_window=512,
        layer_types=_global_every_sixth(26),
        max_positions=32_768,
    ),
    "gemma-3-4b": _gemma3(
        *(262_208, 2560, 34, 8, 4, 256, 10_240),
        sliding_window=1024,
        layer_types=_global_every_sixth(34),
        rope_scaling=LinearRopeScaling(factor=8.0),
        max_positions=131_072,
    ),
}
