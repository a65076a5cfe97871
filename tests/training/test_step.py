import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Array

from malt_jax.config import DpoConfig, LoraConfig, SftConfig
from malt_jax.model.llama import Llama, Params
from malt_jax.training.batches import Batch, Batches
from malt_jax.training.losses import TokenScores
from malt_jax.training.policy import Policy
from malt_jax.training.step import (
    DpoObjective,
    Metrics,
    SftObjective,
    TrainState,
    init_state,
    train_step,
)
from tests.training.small import LLAMA, random_examples, trained

STEPS = jnp.asarray(10, jnp.int32)
KEY = jax.random.key(0)


def scored_batch(completions: int) -> tuple[TokenScores, Batch]:
    """Three rows and a padding row, with made-up scores."""
    reference = None
    generator = np.random.default_rng(3)
    if completions == 2:
        reference = -10 * generator.random((3, 2)).astype(np.float32)
    examples = random_examples(3, completions)
    batch = Batches(examples, 4, seed=0, reference_logps=reference).batch(0, 0)
    batch = jax.tree.map(jnp.asarray, batch)
    logps = -3 * generator.random(batch.targets.shape).astype(np.float32)
    entropies = generator.random(batch.targets.shape).astype(np.float32)
    correct = generator.random(batch.targets.shape) < 0.5
    return TokenScores(jnp.asarray(logps), jnp.asarray(entropies), jnp.asarray(correct)), batch


def test_sft_loss_is_the_mean_over_completion_tokens() -> None:
    scores, batch = scored_batch(1)
    objective = SftObjective()
    sums, count = objective.sums(scores, batch), objective.count(batch)
    picked: dict[str, list[float]] = {"loss": [], "entropy": [], "mean_token_accuracy": []}
    for slot in range(4):
        for place in range(int(batch.lengths[slot, 0])):
            picked["loss"].append(-float(scores.logps[slot, 0, place]))
            picked["entropy"].append(float(scores.entropies[slot, 0, place]))
            picked["mean_token_accuracy"].append(float(scores.correct[slot, 0, place]))
    for name, values in picked.items():
        np.testing.assert_allclose(sums[name] / count, np.mean(values), rtol=1e-5)


@pytest.mark.parametrize(
    ("beta", "smoothing", "nll_weight"), [(0.2, 0.0, 0.0), (0.5, 0.1, 0.0), (0.2, 0.0, 0.7)]
)
def test_dpo_loss_gradient_and_metrics_are_those_of_torch(
    beta: float, smoothing: float, nll_weight: float
) -> None:
    scores, batch = scored_batch(2)
    objective = DpoObjective(beta, smoothing, nll_weight)

    def mean_loss(logps: Array) -> tuple[Array, Metrics]:
        sums = objective.sums(scores._replace(logps=logps), batch)
        means = {name: value / objective.count(batch) for name, value in sums.items()}
        return means["loss"], means

    gradient, means = jax.grad(mean_loss, has_aux=True)(scores.logps)

    token_logps = torch.tensor(np.asarray(scores.logps), requires_grad=True)
    lengths = torch.tensor(np.asarray(batch.lengths))
    mask = torch.arange(token_logps.shape[-1]) < lengths[..., None]
    real = torch.tensor(np.asarray(batch.rows)) >= 0
    logps = (token_logps * mask).sum(-1)[real]
    ratios = logps - torch.tensor(np.asarray(batch.reference_logps))[real]
    margins = beta * (ratios[:, 0] - ratios[:, 1])
    pair_losses = -(1 - smoothing) * F.logsigmoid(margins) - smoothing * F.logsigmoid(-margins)
    nll = -logps[:, 0] / lengths[real][:, 0]
    loss = (pair_losses + nll_weight * nll).mean()
    loss.backward()

    expected = {
        "loss": loss,
        "nll_loss": nll.mean(),
        "rewards/chosen": beta * ratios[:, 0].mean(),
        "rewards/rejected": beta * ratios[:, 1].mean(),
        "rewards/margins": margins.mean(),
        "rewards/accuracies": (margins > 0).float().mean(),
        "logps/chosen": logps[:, 0].mean(),
        "logps/rejected": logps[:, 1].mean(),
    }
    assert set(means) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(means[name], value.detach().numpy(), rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(gradient, token_logps.grad, rtol=1e-4, atol=1e-6)


def sft_batch() -> Batch:
    return Batches(random_examples(3, completions=1), 4, seed=0).batch(0, 0)


def sft_step(
    policy: Policy, config: SftConfig, base: Params, step: int, key: Array = KEY
) -> tuple[TrainState, Metrics]:
    state = init_state(trained(policy, base), config).replace(step=jnp.asarray(step, jnp.int32))
    return train_step(policy, SftObjective(), config, state, base, sft_batch(), STEPS, key)


def test_accumulated_gradients_give_the_update_of_the_big_batch(lora: Policy, base: Params) -> None:
    # The first step's learning rate is 0 and Adam hides the gradient's scale: hence step 2, the
    # gradient's norm, and rows of different lengths in the micro-batches.
    config = SftConfig(learning_rate=1e-2, batch_size=4, warmup_steps=2)
    whole, metrics = sft_step(lora, config, base, 2)
    pieces, piece_metrics = sft_step(lora, dataclasses.replace(config, micro_batch_size=1), base, 2)
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
    config = SftConfig(learning_rate=1e-2, batch_size=4, warmup_steps=2)
    remat = Policy(dataclasses.replace(lora.model, remat=True), "lora")
    plain, _ = sft_step(lora, config, base, 2)
    again, _ = sft_step(remat, config, base, 2)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5),
        plain.trainable,
        again.trainable,
    )


def test_dpo_needs_a_reference() -> None:
    scores, batch = scored_batch(2)
    objective = DpoObjective(DpoConfig().beta, 0.0, 0.0)
    with pytest.raises(ValueError, match="reference"):
        objective.sums(scores, batch.replace(reference_logps=None))
