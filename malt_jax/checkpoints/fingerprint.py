"""A hash of a model's weights, to tell whether an adapter was trained on them."""

from __future__ import annotations

import hashlib

import numpy as np

from malt_jax.checkpoints.weights import TensorSource, leaves, read_floats, require_tensors_of
from malt_jax.model.config import LlamaConfig


def weights_sha256(source: TensorSource, config: LlamaConfig) -> str:
    """SHA-256 of all weights in float32, with their names and shapes.

    Equal for equal values in a bfloat16, float16 or float32 checkpoint, whole or in shards.
    Quantised weights are hashed as they are dequantised. Reads one tensor at a time.

    Raises UserError for a tensor that is missing, surplus, misshaped or not of floats.
    """
    require_tensors_of(config, source)
    digest = hashlib.sha256()
    for name in sorted(name for leaf in leaves(config) for name in leaf.names):
        tensor = np.ascontiguousarray(read_floats(source, name), np.float32)
        digest.update(f"{name} {tensor.shape}\n".encode())
        digest.update(tensor.data)
    return digest.hexdigest()
