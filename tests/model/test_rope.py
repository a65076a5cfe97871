"""Rotary frequencies against transformers' own, for the Llama 3.1 settings."""

import numpy as np
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from malt_jax.model.attention import inverse_frequencies
from malt_jax.model.config import LlamaConfig
from tests.model.test_config import LLAMA_31_8B


def test_llama3_frequencies_are_transformers_own() -> None:
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](
        transformers.LlamaConfig(**LLAMA_31_8B), torch.device("cpu")
    )
    ours = inverse_frequencies(LlamaConfig.from_huggingface(LLAMA_31_8B))
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=2e-7)


def test_the_scaling_slows_most_frequencies() -> None:
    """Fluent text comes out without it, so only a number can tell that it is there."""
    scaled = inverse_frequencies(LlamaConfig.from_huggingface(LLAMA_31_8B))
    plain = inverse_frequencies(LlamaConfig.from_huggingface({**LLAMA_31_8B, "rope_scaling": None}))
    assert np.sum(scaled < 0.9 * plain) > 20
    np.testing.assert_allclose(scaled[-1], plain[-1] / 8, rtol=1e-6)
    np.testing.assert_array_equal(scaled[:10], plain[:10])
