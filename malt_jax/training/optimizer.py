"""AdamW with clipped gradients, the learning-rate schedule and the number of epochs."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from malt_jax.config import SftConfig

UNDECAYED = ("scale", "bias")


def epochs_for(rows: int) -> int:
    """Epochs for a training set of `rows` rows: the rule of the paper's training service,
    clamp(round(10000 / rows), 1, 10)."""
    return max(1, min(10, round(10_000 / rows)))


def optimizer(config: SftConfig) -> optax.GradientTransformation:
    """AdamW (arXiv 1711.05101) after clipping to `max_grad_norm`, in units of the learning rate.

    The learning rate is left to `learning_rate`, so that stages of different lengths run the same
    compiled program. Norm scales and biases are not decayed.
    """
    adamw = optax.chain(
        optax.clip_by_global_norm(config.max_grad_norm),
        optax.scale_by_adam(b1=0.9, b2=0.999, eps=1e-8),
        optax.add_decayed_weights(config.weight_decay, mask=_decayed),
    )

    def update(grads: Any, state: optax.OptState, trainable: Any) -> tuple[Any, optax.OptState]:
        # optax raises a float to an integer power, which strict promotion forbids.
        with jax.numpy_dtype_promotion("standard"):
            return adamw.update(grads, state, trainable)

    return optax.GradientTransformation(adamw.init, update)


def _decayed(trainable: Any) -> Any:
    return jax.tree_util.tree_map_with_path(
        lambda path, _: path[-1].key not in UNDECAYED, trainable
    )


def learning_rate(
    step: Int[Array, ""], total_steps: Int[Array, ""], config: SftConfig
) -> Float[Array, ""]:
    """Learning rate of update number `step` (from 0), above 0 for each of `total_steps`.

    It rises linearly in the first `warmup_share` of the updates, rounded down, and falls by half a
    cosine in the others, which would be 0 at `total_steps`.
    """
    step, total = step.astype(jnp.float32), total_steps.astype(jnp.float32)
    warmup = jnp.floor(config.warmup_share * total)
    rise = (step + 1.0) / jnp.maximum(1.0, warmup)
    progress = jnp.clip((step - warmup) / jnp.maximum(1.0, total - warmup), 0.0, 1.0)
    fall = 0.5 * (1.0 + jnp.cos(jnp.pi * progress))
    return config.learning_rate * jnp.where(step < warmup, rise, fall)
