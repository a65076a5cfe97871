"""SFT rows that join DPO's updates."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jaxtyping import Array

from malt_jax.config import DpoConfig
from malt_jax.malt.objectives import Dpo
from malt_jax.model.llama import Params
from malt_jax.training.batches import Batch, Batches
from malt_jax.training.loop import reference_logps, start_state, train
from malt_jax.training.policy import Policy
from tests.training.small import random_examples, trained

CONFIG = DpoConfig(
    learning_rate=1e-2, batch_size=4, epochs=2, warmup_share=0.0, sft_weight=0.7, max_grad_norm=1e3
)
PAIRS = random_examples(6, completions=2)
CORRECT = random_examples(9, completions=1, seed=3)


@pytest.fixture(scope="module")
def start(lora: Policy, base: Params) -> Params:
    return trained(lora, base)


@pytest.fixture(scope="module")
def batches(lora: Policy, base: Params, start: Params) -> Batches:
    # A reference that is not the start: else the first losses of all pairs are equal.
    reference = reference_logps(lora, base, trained(lora, base, seed=7), PAIRS, 4)
    pairs = Batches(PAIRS, 4, seed=0, reference_logps=reference)
    return pairs.with_anchors(Batches(CORRECT, 4, seed=1))


def test_updates_are_those_of_the_sum_of_both_losses(
    lora: Policy, base: Params, start: Params, batches: Batches
) -> None:
    assert batches.anchors is not None
    states = train(lora, Dpo(CONFIG), base, start_state(lora, Dpo(CONFIG), start), batches)
    written = [
        (jax.tree.map(np.array, state.trainable), {k: float(v) for k, v in metrics.items()})
        for _, state, metrics in states
    ]
    assert len(written) == 4

    optimizer = optax.adam(1.0)
    moments, weights = optimizer.init(start), start
    for update, (after, metrics) in enumerate(written):
        pairs, others = jax.tree.map(jnp.asarray, (batches.at(update), batches.anchors.at(update)))

        def loss(
            weights: Params, pairs: Batch = pairs, others: Batch = others
        ) -> tuple[Array, Array]:
            sft = -_mean_logp(lora, base, weights, others)
            return _dpo_loss(lora, base, weights, pairs) + 0.7 * sft, sft

        (expected, sft), gradient = jax.value_and_grad(loss, has_aux=True)(weights)
        np.testing.assert_allclose(metrics["loss"], expected, rtol=1e-4)
        np.testing.assert_allclose(metrics["sft_loss"], sft, rtol=1e-4)
        norm = jnp.sqrt(sum(jnp.sum(x**2) for x in jax.tree.leaves(gradient)))
        np.testing.assert_allclose(metrics["grad_norm"], norm, rtol=1e-3)
        with jax.numpy_dtype_promotion("standard"):
            step, moments = optimizer.update(gradient, moments)
        rate = 1e-2 * 0.5 * (1 + np.cos(np.pi * update / 4))
        weights = jax.tree.map(lambda x, u, r=rate: x + np.float32(r) * u, weights, step)
        # Adam turns the rounding of a gradient near 0 into a step.
        gaps = [np.abs(a - b) for a, b in zip(*map(jax.tree.leaves, (after, weights)), strict=True)]
        assert np.mean(np.concatenate([gap.ravel() for gap in gaps])) < 1e-5
        weights = jax.tree.map(jnp.asarray, after)


def _dpo_loss(policy: Policy, base: Params, weights: Params, batch: Batch) -> Array:
    ratios = _logps(policy, base, weights, batch) - batch.reference_logps
    real = np.asarray(batch.rows) >= 0
    margins = 0.2 * (ratios[:, 0] - ratios[:, 1])
    return jnp.sum(jnp.where(real, jnp.logaddexp(0.0, -margins), 0.0)) / np.float32(real.sum())


def _mean_logp(policy: Policy, base: Params, weights: Params, batch: Batch) -> Array:
    total = jnp.sum(_logps(policy, base, weights, batch))
    return total / np.float32(np.asarray(batch.lengths).sum())


def _logps(policy: Policy, base: Params, weights: Params, batch: Batch) -> Array:
    scores = policy.score(base, weights, batch).logps
    tokens = np.arange(scores.shape[-1]) < np.asarray(batch.lengths)[..., None]
    return jnp.sum(jnp.where(tokens, scores, 0.0), axis=-1)


def test_every_correct_completion_takes_part(batches: Batches) -> None:
    assert batches.anchors is not None
    seen = [batches.anchors.at(update).rows for update in range(3)]
    assert sorted(row for rows in seen for row in rows.tolist() if row >= 0) == [*range(9)]
    again = batches.anchors.at(3).rows
    assert not np.array_equal(again, seen[0])  # another order in the next pass


def test_micro_batches_and_going_on_from_a_state_change_nothing(
    lora: Policy, base: Params, start: Params, batches: Batches
) -> None:
    def run(config: DpoConfig, cut: int | None = None) -> Params:
        objective = Dpo(config)
        updates = train(lora, objective, base, start_state(lora, objective, start), batches)
        state = next(state for update, state, _ in updates if update == (cut or 4))
        if cut is not None:
            *_, (_, state, _) = train(lora, objective, base, state, batches)
        return state.trainable

    whole = run(CONFIG)
    jax.tree.map(np.testing.assert_array_equal, whole, run(CONFIG, cut=2))
    pieces = run(dataclasses.replace(CONFIG, micro_batch_size=2))
    for one, other in zip(jax.tree.leaves(whole), jax.tree.leaves(pieces), strict=True):
        assert np.abs(one - other).mean() < 1e-4


def test_without_a_weight_no_row_joins(
    lora: Policy, base: Params, start: Params, batches: Batches
) -> None:
    objective = Dpo(dataclasses.replace(CONFIG, sft_weight=0.0))
    assert objective.anchor is None
    state = start_state(lora, objective, start)
    _, _, metrics = next(train(lora, objective, base, state, batches))
    assert "sft_loss" not in metrics
