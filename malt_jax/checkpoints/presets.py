"""Published model shapes by name, for random weights without a checkpoint."""

from __future__ import annotations

from functools import partial

from malt_jax.model.config import Llama3RopeScaling, LlamaConfig

_llama3 = partial(LlamaConfig, 128_256, rope_theta=500_000.0, max_positions=131_072)
_smollm2 = partial(LlamaConfig, 49_152, tie_embeddings=True, max_positions=8192)
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
_BY_8, _BY_32 = Llama3RopeScaling(factor=8.0), Llama3RopeScaling(factor=32.0)

# Columns: D model width, L layers, N query heads, K kv heads, H head width, F feed-forward width.
PRESETS: dict[str, LlamaConfig] = {
    "llama-3.1-8b": _llama3(4096, 32, 32, 8, 128, 14_336, rope_scaling=_BY_8),
    "llama-3.2-1b": _llama3(2048, 16, 32, 8, 64, 8192, rope_scaling=_BY_32, tie_embeddings=True),
    "llama-3.2-3b": _llama3(3072, 28, 24, 8, 128, 8192, rope_scaling=_BY_32, tie_embeddings=True),
    "smollm2-135m": _smollm2(576, 30, 9, 3, 64, 1536, rope_theta=100_000.0),
    "smollm2-360m": _smollm2(960, 32, 15, 5, 64, 2560, rope_theta=100_000.0),
    "smollm2-1.7b": _smollm2(2048, 24, 32, 32, 64, 8192, rope_theta=130_000.0),
    "qwen-2.5-0.5b": _qwen25(896, 24, 14, 2, 64, 4864),
    "qwen-2.5-1.5b": _qwen25(1536, 28, 12, 2, 128, 8960),
}
