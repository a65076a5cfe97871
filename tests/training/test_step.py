import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import Array

from malt_jax.config import LoraConfig, SftConfig
from malt_jax.malt.objectives import Sft
from malt_jax.model.llama import Llama, Params
from malt_jax.training.batches import Batch, Batches
from malt_jax.training.policy import Policy
from malt_jax.training.step import Metrics, StageInputs, TrainState, init_state, train_step
from tests.training.small import LLAMA, random_examples, trained

STEPS = jnp.asarray(10, jnp.int32)
KEY = jax.random.key(0)


def sft_batch() -> Batch:
    """Three rows and one of padding; the prompts have a common beginning, a level of its own."""
    examples = [
        dataclasses.replace(example, prompt=[*range(16)] * 4 + [*example.prompt])
        for example in random_examples(3, completions=1)
    ]
    batch = Batches(examples, 4, seed=0).batch(0, 0)
    assert batch.prefix.size
    return batch


def sft_step(
    policy: Policy, config: SftConfig, base: Params, step: int, key: Array = KEY
) -> tuple[TrainState, Metrics]:
    state = init_state(trained(policy, base), config).replace(step=jnp.asarray(step, jnp.int32))
    return train_step(policy, Sft(config), state, base, sft_batch(), StageInputs(STEPS, key))


@pytest.mark.parametrize("rate", [0.0, 0.5])
@pytest.mark.parametrize("micro", [1, 2])
def test_accumulated_gradients_give_the_update_of_the_big_batch(
    rate: float, micro: int, base: Params
) -> None:
    # Adam hides the gradient's scale: hence the
    # gradient's norm, and rows of different lengths in the micro-batches.
    lora = Policy(Llama(LLAMA, LoraConfig(rank=4, alpha=8.0, dropout=rate)), "lora")
    config = SftConfig(learning_rate=1e-2, batch_size=4, warmup_share=0.2)
    in_pieces = dataclasses.replace(config, micro_batch_size=micro)
    whole, metrics = sft_step(lora, config, base, 2)
    pieces, piece_metrics = sft_step(lora, in_pieces, base, 2)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        (whole.trainable, metrics),
        (pieces.trainable, piece_metrics),
    )
    assert float(metrics["grad_norm"]) > 0
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), whole.trainable, trained(lora, base))
    assert jax.tree.all(moved)


def test_dropout_acts_by_key_and_step(base: Params) -> None:
    policy = Policy(Llama(LLAMA, LoraConfig(rank=4, dropout=0.5)), "lora")
    config = SftConfig(batch_size=4)
    losses = [
        float(sft_step(policy, config, base, step, jax.random.key(seed))[1]["loss"])
        for step, seed in ((0, 0), (0, 0), (1, 0), (0, 1))
    ]
    assert losses[0] == losses[1]
    assert len(set(losses)) == 3


def test_remat_changes_memory_and_nothing_else(lora: Policy, base: Params) -> None:
    config = SftConfig(learning_rate=1e-2, batch_size=4, warmup_share=0.2)
    remat = Policy(dataclasses.replace(lora.model, remat=True), "lora")
    plain, _ = sft_step(lora, config, base, 2)
    again, _ = sft_step(remat, config, base, 2)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        plain.trainable,
        again.trainable,
    )
