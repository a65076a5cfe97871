"""Rotary positions (arXiv 2104.09864): frequencies of a model's layers, rotation of heads."""

from __future__ import annotations

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from malt_jax.model.config import LinearRopeScaling, Llama3RopeScaling, LlamaConfig


class Rotation(NamedTuple):
    """The rotary embedding of some positions, float32.

    Cosines and sines of the angles by which the H/2 pairs of a head turn. `kinds` is an axis of the
    kinds of layers where they differ, else there is none.
    """

    cos: Float[Array, "*kinds *tree T half"]
    sin: Float[Array, "*kinds *tree T half"]


def rotation(
    positions: Int[Array, "*tree T"], frequencies: Float[np.ndarray, "*kinds half"]
) -> Rotation:
    """The rotation at these positions, by frequencies of one kind or of several."""
    product = "...t,h->...th" if frequencies.ndim == 1 else "...t,kh->k...th"
    angles = jnp.einsum(product, positions.astype(jnp.float32), jnp.asarray(frequencies))
    return Rotation(jnp.cos(angles), jnp.sin(angles))


def rotate(x: Float[Array, "*tree T heads H"], turn: Rotation) -> Float[Array, "*tree T heads H"]:
    """Rotates the pairs (x[i], x[i + H/2]) of every head, in float32, and returns x's dtype."""
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    cos, sin = turn.cos[..., None, :], turn.sin[..., None, :]
    rotated = jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)
    return rotated.astype(x.dtype)


def layer_frequencies(
    config: LlamaConfig,
) -> tuple[Float[np.ndarray, "kinds half"], Int[np.ndarray, " L"]]:
    """The frequencies of each kind of layer, and the kind of every layer.

    Layers without rotary positions have frequencies of zero, which rotate by nothing.
    """
    of_kind = {"all": inverse_frequencies(config)}
    of_kind["none"] = np.zeros_like(of_kind["all"])
    local_kind = "all"
    if config.local_rope_theta is not None:
        local_kind = "local"
        of_kind["local"] = _frequencies(config.head_dim, config.local_rope_theta)
    rotates = config.rope_layers or (True,) * config.num_layers
    kinds = [
        (local_kind if is_local else "all") if turns else "none"
        for turns, is_local in zip(rotates, config.local_layers, strict=True)
    ]
    used = sorted({*kinds})
    return np.stack([of_kind[kind] for kind in used]), np.array([used.index(x) for x in kinds])


def inverse_frequencies(config: LlamaConfig) -> Float[np.ndarray, " half"]:
    """Radians per position of each of the H/2 pairs, by `rope_theta` and `rope_scaling`."""
    frequencies = _frequencies(config.head_dim, config.rope_theta)
    match config.rope_scaling:
        case Llama3RopeScaling() as scaling:
            return _scale_llama3(frequencies, scaling)
        case LinearRopeScaling() as scaling:
            return frequencies / np.float32(scaling.factor)
        case None:
            return frequencies


def _frequencies(head_dim: int, theta: float) -> Float[np.ndarray, " half"]:
    """Frequencies without scaling.

    Rounded to float32 after every step, as checkpoints were trained: at position 10,000 the last
    bit of a frequency is worth a milliradian. NumPy's own float32 power is off by that bit for one
    frequency in five.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    powers = np.power(np.float64(theta), exponents.astype(np.float64))
    frequencies: np.ndarray = np.float32(1.0) / powers.astype(np.float32)
    return frequencies


def _scale_llama3(
    frequencies: Float[np.ndarray, " half"], scaling: Llama3RopeScaling
) -> Float[np.ndarray, " half"]:
    """Slows the pairs whose wavelength exceeds the original context by `factor`, keeps the fast
    ones, and blends in between (Llama 3.1's reference code, `apply_scaling`)."""
    wavelengths = np.float32(2 * np.pi) / frequencies
    turns = np.float32(scaling.original_max_positions) / wavelengths
    low, high = np.float32(scaling.low_freq_factor), np.float32(scaling.high_freq_factor)
    keep = np.clip((turns - low) / (high - low), np.float32(0), np.float32(1))
    slowed = frequencies / np.float32(scaling.factor)
    return ((np.float32(1) - keep) * slowed + keep * frequencies).astype(np.float32)
