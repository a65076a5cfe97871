"""Small models that tests share."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp

from malt_jax.config import LoraConfig
from malt_jax.model.config import LlamaConfig
from malt_jax.model.llama import Llama, Params, init_adapter, init_params

CONFIG = LlamaConfig(
    vocab_size=300,
    d_model=32,
    num_layers=3,
    num_heads=4,
    num_kv_heads=2,
    head_dim=8,
    d_ff=48,
    max_positions=512,
)

# Everything that layers can differ by. The window is shorter than most prompts and completions.
MIXED = dataclasses.replace(
    CONFIG,
    qk_norm=True,
    sliding_window=11,
    layer_types=("sliding_attention", "full_attention", "sliding_attention"),
    local_rope_theta=100.0,
    rope_layers=(True, False, True),
)


def small_model(
    lora: LoraConfig | None = None, config: LlamaConfig = CONFIG
) -> tuple[Llama, Params]:
    """A random model and its base weights."""
    model = Llama(config, lora=lora)
    return model, init_params(model, jax.random.key(1))


def nonzero_adapter(model: Llama, key: int = 2) -> Params:
    """An adapter that changes the outputs, unlike a new one."""
    adapter = init_adapter(model, jax.random.key(key))
    leaves, structure = jax.tree.flatten(adapter)
    keys = jax.random.split(jax.random.key(key + 1), len(leaves))
    noisy = [
        leaf + 0.2 * jax.random.normal(k, leaf.shape, jnp.float32)
        for leaf, k in zip(leaves, keys, strict=True)
    ]
    return jax.tree.unflatten(structure, noisy)
