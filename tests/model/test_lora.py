"""Adapters of several roles in one batch."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from malt_jax.config import LoraConfig
from malt_jax.model.llama import forward
from malt_jax.model.lora import join_adapters, select_adapters
from tests.model.small import nonzero_adapter, small_model

LORA = LoraConfig(rank=3, alpha=5.0, dropout=0.0, targets=("q", "v", "down"))


def test_every_row_has_the_adapter_that_it_selects() -> None:
    """Against one forward pass for each adapter, and for the base model."""
    model, base = small_model(LORA)
    adapters = [nonzero_adapter(model, key) for key in (2, 12, 22)]
    tokens = jnp.asarray(np.random.default_rng(0).integers(20, 300, (5, 9)), jnp.int32)
    lengths = jnp.full(5, 9, jnp.int32)
    joined, lora = join_adapters(adapters, LORA)
    assert lora.rank == 9 and lora.scale == LORA.scale
    index = [2, 0, -1, 1, 2]
    selected = select_adapters(joined, jnp.asarray(index, jnp.int32), 3)
    together = dataclasses.replace(model, lora=lora)
    found, _ = forward(together, {"params": base, "adapter": selected}, tokens, lengths)
    for row, number in enumerate(index):
        alone, variables = dataclasses.replace(model, lora=None), {"params": base}
        if number >= 0:
            alone, variables = model, {"params": base, "adapter": adapters[number]}
        want, _ = forward(alone, variables, tokens[row : row + 1], lengths[:1])
        np.testing.assert_allclose(found[row], want[0], atol=2e-5)
    assert np.abs(np.asarray(found[1]) - np.asarray(found[2])).max() > 1e-2
