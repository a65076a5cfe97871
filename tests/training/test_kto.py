import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from malt_jax.config import KtoConfig, LoraConfig
from malt_jax.malt.objectives import Kto, mismatched
from malt_jax.model.llama import Llama, Params
from malt_jax.training.batches import Batch, Batches, Example
from malt_jax.training.loop import reference_logps
from malt_jax.training.policy import Policy
from malt_jax.training.step import (
    Metrics,
    StageInputs,
    TrainState,
    completion_logps,
    init_state,
    train_step,
    with_reference_point,
)
from tests.training.small import LLAMA, random_examples, train_all, trained

CONFIG = KtoConfig(learning_rate=1e-2, batch_size=4, epochs=30, warmup_share=0.1, beta=0.5)


@pytest.fixture(scope="module")
def policy() -> Policy:
    # Dropout is there to show that it does not act in KTO.
    return Policy(Llama(LLAMA, LoraConfig(rank=4, dropout=0.5)), "lora")


def rows(count: int) -> list[Example]:
    """Correct and incorrect completions in turn."""
    weighted = [
        dataclasses.replace(example, weight=1.0 if number % 2 else -1.0)
        for number, example in enumerate(random_examples(count, completions=1))
    ]
    return mismatched(weighted, LLAMA.max_positions, seed=0)


def test_starts_at_one_half_and_separates_the_completions(policy: Policy, base: Params) -> None:
    start, examples = trained(policy, base), rows(4)
    reference = reference_logps(policy, base, start, examples, CONFIG.batch_size)
    after, history = train_all(policy, Kto(CONFIG), base, start, examples, reference=reference)
    first, last = history[0], history[-1]
    np.testing.assert_allclose(first["loss"], 0.5, rtol=1e-5)
    np.testing.assert_allclose(first["kl"], 0, atol=1e-5)
    assert last["loss"] < 0.3 and last["rewards/margins"] > 2
    assert last["rewards/chosen"] > 0 > last["rewards/rejected"]

    moved = reference_logps(policy, base, after, examples, CONFIG.batch_size)
    rewards = CONFIG.beta * (moved - reference)[:, 0]
    margin = rewards[1::2].mean() - rewards[::2].mean()
    np.testing.assert_allclose(margin, last["rewards/margins"], rtol=0.05)


def shifted_batch(policy: Policy, base: Params, shift: float) -> tuple[Params, Batch]:
    """Three rows and a padding row; under the reference all completions have another
    log-probability than under the policy, the mismatched ones by `shift`."""
    start, examples = trained(policy, base), rows(3)
    reference = reference_logps(policy, base, start, examples, 4)
    reference -= np.array([[0.3, shift], [-2.0, shift + 1], [1.0, shift - 1]], np.float32)
    return start, Batches(examples, 4, seed=0, reference_logps=reference).batch(0, 0)


@pytest.mark.parametrize(("shift", "point"), [(0.7, 0.7), (-0.7, 0.0)])
def test_the_reference_point_is_the_mean_over_mismatched_completions(
    policy: Policy, base: Params, shift: float, point: float
) -> None:
    start, batch = shifted_batch(policy, base, shift)
    own = with_reference_point(policy, base, start, batch)
    np.testing.assert_allclose(own.reference_point, [point] * 4, atol=1e-5)
    for name in ("completions", "lengths", "reference_logps"):
        np.testing.assert_array_equal(getattr(own, name), getattr(batch, name)[:, :1])
    logps = completion_logps(policy, base, start, batch)
    np.testing.assert_allclose(completion_logps(policy, base, start, own), logps[:, :1], rtol=1e-5)


def test_accumulated_gradients_have_the_reference_point_of_the_whole_batch(
    policy: Policy, base: Params
) -> None:
    start, batch = shifted_batch(policy, base, 0.7)
    batch = with_reference_point(policy, base, start, batch)

    def update(config: KtoConfig) -> tuple[TrainState, Metrics]:
        state = init_state(start, config)
        stage = StageInputs(jnp.int32(10), jax.random.key(0))
        return train_step(policy, Kto(config), state, base, batch, stage)

    whole, metrics = update(CONFIG)
    pieces, of_pieces = update(dataclasses.replace(CONFIG, micro_batch_size=1))
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        (whole.trainable, metrics),
        (pieces.trainable, of_pieces),
    )
    assert float(metrics["kl"]) > 0.6
