"""Losses against references that are written out here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Array

from malt_jax.config import Config, DpoConfig, KtoConfig, SftConfig, load_config
from malt_jax.malt.credit import Node, Pair, RoleRows
from malt_jax.malt.objectives import (
    Dpo,
    Kto,
    Sft,
    TrainingRow,
    mismatched,
    objectives,
)
from malt_jax.training.batches import Batch, Batches, Example
from malt_jax.training.losses import TokenScores
from malt_jax.training.step import Metrics
from tests.training.small import random_examples


def test_the_configuration_names_the_stages_of_a_role() -> None:
    config = load_config(None, ["training.dpo_roles=[verifier]"])
    assert objectives(config, "generator") == [Sft(config.sft)]
    assert objectives(config, "verifier") == [Sft(config.sft), Dpo(config.dpo)]
    assert [stage.name for stage in objectives(Config(), "refiner")] == ["sft", "dpo"]
    config = load_config(None, ["roles.verifier={sft: {epochs: 2}, dpo: {beta: 0.4}}"])
    assert objectives(config, "verifier") == [Sft(SftConfig(epochs=2)), Dpo(DpoConfig(beta=0.4))]
    assert objectives(config, "refiner") == [Sft(SftConfig()), Dpo(DpoConfig())]
    config = load_config(None, ["training.kto_roles=[generator, refiner]", "kto.beta=0.3"])
    assert objectives(config, "generator") == [Sft(config.sft), Kto(KtoConfig(beta=0.3))]
    assert [stage.name for stage in objectives(config, "refiner")] == ["sft", "dpo", "kto"]


def test_objectives_select_their_nodes() -> None:
    good, bad = Node(0, (1,)), Node(0, (2,))
    alone = Node(1, (0,))
    rows = RoleRows((good,), (Pair(good, bad, 0.25),), correct=(good, alone), incorrect=(bad,))
    assert Sft(SftConfig()).select(rows) == [TrainingRow((good,))]
    assert Dpo(DpoConfig()).select(rows) == [TrainingRow((good, bad))]
    weighted = Dpo(DpoConfig(pair_weights="value_gap"))
    assert weighted.select(rows) == [TrainingRow((good, bad), 0.25)]
    kto = Kto(KtoConfig(desirable_weight=0.5, undesirable_weight=2.0))
    assert kto.select(rows) == [
        TrainingRow((good,), 0.5),
        TrainingRow((alone,), 0.5),
        TrainingRow((bad,), -2.0),
    ]
    anchored = Dpo(DpoConfig(sft_weight=0.5)).anchor
    assert anchored is not None
    assert anchored.select(rows) == [TrainingRow((good,)), TrainingRow((alone,))]
    assert [stage.count_rows(7, 5, 3) for stage in (Sft(SftConfig()), weighted, kto)] == [7, 3, 12]


def test_the_label_smoothing_of_dpo_may_be_measured() -> None:
    measured = Dpo(DpoConfig(loss="robust", label_smoothing=None))
    assert measured.fitted(0.125) == Dpo(DpoConfig(loss="robust", label_smoothing=0.125))
    for given in (Dpo(DpoConfig(label_smoothing=0.1)), Sft(SftConfig()), Kto(KtoConfig())):
        assert given.fitted(0.125) == given
    scores, batch = scored_batch(2)
    with pytest.raises(ValueError, match="label_smoothing"):
        measured.sums(scores, batch)


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
    kto = Kto(KtoConfig())
    assert kto.warnings(100, good) == []
    (still,) = kto.warnings(100, good | {"rewards/margins": 0.008})
    assert "0.008" in still and "kto.learning_rate" in still
    (fallen,) = kto.warnings(100, good | {"rewards/chosen": -0.3})
    assert "kto.desirable_weight" in fallen
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


def trl_kto_loss(
    logps: torch.Tensor,
    reference: torch.Tensor,
    good: torch.Tensor,
    kl: torch.Tensor,
    **o: float,
) -> torch.Tensor:
    """The losses of TRL's KTOTrainer, of the correct completions and then of the others."""
    ratios = logps - reference
    chosen_losses = 1 - F.sigmoid(o["beta"] * (ratios[good] - kl))
    rejected_losses = 1 - F.sigmoid(o["beta"] * (kl - ratios[~good]))
    weighted = (o["desirable"] * chosen_losses, o["undesirable"] * rejected_losses)
    return torch.cat(weighted).mean()


def kto_batch(weights: list[float], point: float) -> tuple[TokenScores, Batch]:
    scores, batch = scored_batch(1)
    placed = batch.rows >= 0
    order = np.asarray(batch.rows)[np.asarray(placed)]
    signed = np.zeros(4, np.float32)
    signed[np.asarray(placed)] = np.array(weights, np.float32)[order]
    reference = -9 * np.random.default_rng(5).random((4, 1)).astype(np.float32)
    batch = batch.replace(
        weights=jnp.asarray(signed),
        reference_logps=jnp.asarray(reference),
        reference_point=jnp.full(4, point, jnp.float32),
    )
    return scores, batch


@pytest.mark.parametrize(
    ("beta", "desirable", "undesirable", "point"), [(0.1, 1.0, 1.0, 0.0), (0.5, 0.7, 1.4, 0.8)]
)
def test_kto_loss_gradient_and_metrics_are_those_of_torch(
    beta: float, desirable: float, undesirable: float, point: float
) -> None:
    scores, batch = kto_batch([desirable, -undesirable, desirable], point)
    objective = Kto(KtoConfig(beta=beta))

    def mean_loss(logps: Array) -> tuple[Array, Metrics]:
        sums = objective.sums(scores._replace(logps=logps), batch)
        means = objective.means(sums, objective.count(batch))
        return means["loss"], means

    gradient, means = jax.grad(mean_loss, has_aux=True)(scores.logps)

    token_logps = torch.tensor(np.asarray(scores.logps), requires_grad=True)
    mask = torch.arange(token_logps.shape[-1]) < torch.tensor(np.asarray(batch.lengths))[..., None]
    real = torch.tensor(np.asarray(batch.rows)) >= 0
    logps = (token_logps * mask).sum(-1)[real, 0]
    reference = torch.tensor(np.asarray(batch.reference_logps))[real, 0]
    good = torch.tensor(np.asarray(batch.weights))[real] > 0
    options = {"beta": beta, "desirable": desirable, "undesirable": undesirable}
    loss = trl_kto_loss(logps, reference, good, torch.tensor(point), **options)
    loss.backward()

    rewards = beta * (logps - reference)
    expected = {
        "loss": loss,
        "kl": torch.tensor(point),
        "desirable": good.float().mean(),
        "rewards/chosen": rewards[good].mean(),
        "rewards/rejected": rewards[~good].mean(),
        "rewards/margins": rewards[good].mean() - rewards[~good].mean(),
        "logps/chosen": logps[good].mean(),
        "logps/rejected": logps[~good].mean(),
    }
    assert set(means) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(means[name], value.detach().numpy(), rtol=1e-4, err_msg=name)
    np.testing.assert_allclose(gradient, token_logps.grad, rtol=1e-4, atol=1e-6)


def test_kto_has_no_mean_over_completions_that_are_not_there() -> None:
    scores, batch = kto_batch([1.0, 1.0, 1.0], 0.0)
    objective = Kto(KtoConfig())
    means = objective.means(objective.sums(scores, batch), objective.count(batch))
    assert np.isnan(means["rewards/rejected"]) and np.isnan(means["rewards/margins"])
    assert np.isfinite(means["loss"]) and means["desirable"] == 1


def test_kto_needs_a_reference_and_a_reference_point() -> None:
    scores, batch = kto_batch([1.0, 1.0, 1.0], 0.0)
    for missing in ("reference_logps", "reference_point"):
        with pytest.raises(ValueError, match="reference"):
            Kto(KtoConfig()).sums(scores, batch.replace(**{missing: None}))


def test_a_mismatched_completion_is_of_another_prompt_and_of_like_length() -> None:
    rng = np.random.default_rng(0)
    examples = [
        Example([row // 3] * 5, ([row] * int(rng.integers(1, 30)),), weight=-1.0)
        for row in range(30)
    ]
    found = mismatched(examples, max_positions=1000, seed=1)
    assert mismatched(examples, 1000, seed=1) == found
    for row, (before, after) in enumerate(zip(examples, found, strict=True)):
        own, other = after.completions
        assert own == before.completions[0] and after.weight == -1.0
        assert other[0] // 3 != row // 3 and other == examples[other[0]].completions[0]
    longest = max(len(example.completions[0]) for example in examples)
    gaps = [len(other) - len(own) for own, other in (example.completions for example in found)]
    assert sum(gap < 0 for gap in gaps) <= 3 and np.median(gaps) < longest / 5


def test_a_mismatched_completion_fits_the_model() -> None:
    examples = [Example([1] * 8, ([7] * 2,)), Example([2] * 3, ([8] * 6,))]
    first, second = mismatched(examples, max_positions=10, seed=0)
    assert first.completions == ([7] * 2, [8] * 2) and second.completions == ([8] * 6, [7] * 2)
    # Nothing else is there.
    assert mismatched(examples[:1], 10, seed=0)[0].completions == ([7] * 2, [7] * 2)
