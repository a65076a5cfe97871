"""Losses against references that are written out here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Array

from malt_jax.config import Config, DpoConfig, SftConfig, load_config
from malt_jax.malt.credit import Node, Pair, RoleRows
from malt_jax.malt.objectives import Dpo, Sft, TrainingRow, objectives
from malt_jax.training.batches import Batch, Batches
from malt_jax.training.losses import TokenScores
from malt_jax.training.step import Metrics
from tests.training.small import random_examples


def test_the_configuration_names_the_stages_of_a_role() -> None:
    config = load_config(None, ["training.dpo_roles=[verifier]"])
    assert objectives(config, "generator") == [Sft(config.sft)]
    assert objectives(config, "verifier") == [Sft(config.sft), Dpo(config.dpo)]
    assert [stage.name for stage in objectives(Config(), "refiner")] == ["sft", "dpo"]


def test_objectives_select_their_nodes() -> None:
    good, bad = Node(0, (1,)), Node(0, (2,))
    rows = RoleRows(sft=(good,), pairs=(Pair(good, bad, 0.25),))
    assert Sft(SftConfig()).select(rows) == [TrainingRow((good,))]
    assert Dpo(DpoConfig()).select(rows) == [TrainingRow((good, bad))]
    weighted = Dpo(DpoConfig(pair_weights="value_gap"))
    assert weighted.select(rows) == [TrainingRow((good, bad), 0.25)]


def test_a_stage_that_has_not_trained_says_so() -> None:
    good = {"rewards/margins": 0.4, "rewards/chosen": 0.1}
    dpo = Dpo(DpoConfig(epochs=2))
    assert dpo.warnings(100, good) == []
    (few,) = dpo.warnings(13, good)
    assert "13 updates are few" in few and "(now 2)" in few
    (still,) = dpo.warnings(100, good | {"rewards/margins": 0.008})
    assert "0.008" in still and "dpo.learning_rate" in still
    (displaced,) = dpo.warnings(100, good | {"rewards/chosen": -0.3})
    assert "displacement" in displaced
    assert Sft(SftConfig()).warnings(100, {}) == []
    assert "sft.epochs" in Sft(SftConfig()).warnings(3, {})[0]


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
    objective = Sft(SftConfig())
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
    objective = Dpo(DpoConfig(beta=beta, label_smoothing=smoothing, nll_weight=nll_weight))

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


def test_dpo_needs_a_reference() -> None:
    scores, batch = scored_batch(2)
    objective = Dpo(DpoConfig())
    with pytest.raises(ValueError, match="reference"):
        objective.sums(scores, batch.replace(reference_logps=None))
