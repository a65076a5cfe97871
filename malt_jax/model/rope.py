"""Rotary position embeddings (arXiv 2104.09864), with Llama 3.1's frequency scaling."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from malt_jax.model.config import Llama3RopeScaling, LlamaConfig

Rotation = tuple[Float[Array, "*B T E/2"], Float[Array, "*B T E/2"]]
"""Cosines and sines of the angles by which the pairs of a head turn, float32."""


def inverse_frequencies(config: LlamaConfig) -> Float[np.ndarray, "E/2"]:
    """Angle per position of each rotated pair, in radians, float32.

    Rounded to float32 after every step, as checkpoints were trained: at position 10,000 the last
    bit of a frequency is worth a milliradian. NumPy's own float32 power is off by that bit for one
    frequency in five.
    """
    exponents = np.arange(0, config.head_dim, 2, dtype=np.float32) / np.float32(config.head_dim)
    powers = np.power(np.float64(config.rope_theta), exponents.astype(np.float64))
    frequencies = np.float32(1.0) / powers.astype(np.float32)
    if config.rope_scaling is None:
        return frequencies
    return _scale_llama3(frequencies, config.rope_scaling)


def _scale_llama3(
    frequencies: Float[np.ndarray, "E/2"], scaling: Llama3RopeScaling
) -> Float[np.ndarray, "E/2"]:
    """Slows the pairs whose wavelength exceeds the original context by `factor`, keeps the fast
    ones, and blends in between (Llama 3.1's reference code, `apply_scaling`)."""
    wavelengths = np.float32(2 * np.pi) / frequencies
    turns = np.float32(scaling.original_max_positions) / wavelengths
    low, high = np.float32(scaling.low_freq_factor), np.float32(scaling.high_freq_factor)
    keep = np.clip((turns - low) / (high - low), np.float32(0), np.float32(1))
    slowed = frequencies / np.float32(scaling.factor)
    return ((np.float32(1) - keep) * slowed + keep * frequencies).astype(np.float32)


def rotation(positions: Int[Array, "*B T"], config: LlamaConfig) -> Rotation:
    """The rotation at these positions."""
    frequencies = jnp.asarray(inverse_frequencies(config))
    angles = jnp.einsum("...t,e->...te", positions.astype(jnp.float32), frequencies)
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "*B T H E"],
    cos: Float[Array, "*B T E/2"],
    sin: Float[Array, "*B T E/2"],
) -> Float[Array, "*B T H E"]:
    """Rotates the pairs (x[i], x[i + E/2]) of every head, in float32, and returns x's dtype."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = cos[..., None, :], sin[..., None, :]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)
