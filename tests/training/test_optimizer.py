import dataclasses

import jax.numpy as jnp
import numpy as np
import optax
import pytest
import torch
from transformers import get_cosine_schedule_with_warmup

from malt_jax.config import SftConfig
from malt_jax.training.optimizer import epochs_for, learning_rate, optimizer


@pytest.mark.parametrize(
    ("rows", "epochs"),
    [(1, 10), (1000, 10), (1052, 10), (1053, 9), (2000, 5), (6000, 2), (7000, 1), (90_000, 1)],
)
def test_epochs_of_the_paper(rows: int, epochs: int) -> None:
    assert epochs_for(rows) == epochs


@pytest.mark.parametrize(
    ("share", "total", "warmup"), [(0.2, 50, 10), (0.0, 7, 0), (0.1, 9, 0), (0.5, 3, 1)]
)
def test_schedule_is_that_of_transformers(share: float, total: int, warmup: int) -> None:
    """Except in the warm-up, which is one update ahead of it, so that it does not begin with 0."""
    config = SftConfig(learning_rate=0.5, warmup_share=share)
    torch_optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    schedule = get_cosine_schedule_with_warmup(torch_optimizer, warmup, total)
    expected = []
    for _ in range(total + 1):
        expected.append(schedule.get_last_lr()[0])
        torch_optimizer.step()
        schedule.step()
    for step in range(total):
        ours = learning_rate(jnp.asarray(step), jnp.asarray(total), config)
        ahead = step < warmup
        np.testing.assert_allclose(ours, expected[step + ahead], rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("total", [1, 2, 9, 10, 1000])
def test_every_update_has_a_learning_rate_above_0(total: int) -> None:
    rates = [learning_rate(jnp.asarray(s), jnp.asarray(total), SftConfig()) for s in range(total)]
    assert min(rates) > 0
    assert max(rates) == pytest.approx(SftConfig().learning_rate)


def test_updates_are_those_of_torch_adamw_after_clipping() -> None:
    config = SftConfig(weight_decay=0.1, max_grad_norm=0.7)
    generator = np.random.default_rng(0)
    start = generator.normal(size=(3, 4)).astype(np.float32)
    weight = torch.nn.Parameter(torch.tensor(start))
    reference = torch.optim.AdamW([weight], lr=0.01, weight_decay=0.1)

    ours = {"kernel": jnp.asarray(start)}
    adamw = optimizer(config)
    state = adamw.init(ours)
    for _ in range(5):
        gradient = generator.normal(size=(3, 4)).astype(np.float32)
        weight.grad = torch.tensor(gradient)
        torch.nn.utils.clip_grad_norm_([weight], 0.7)
        reference.step()
        updates, state = adamw.update({"kernel": jnp.asarray(gradient)}, state, ours)
        ours = optax.apply_updates(ours, {"kernel": -0.01 * updates["kernel"]})
    np.testing.assert_allclose(ours["kernel"], weight.detach().numpy(), rtol=1e-5, atol=1e-6)


def test_norms_and_biases_are_not_decayed() -> None:
    weights = {name: jnp.ones(2) for name in ("kernel", "scale", "bias", "embedding", "a")}
    adamw = optimizer(SftConfig(weight_decay=0.5))
    zeros = {name: jnp.zeros(2) for name in weights}
    updates, _ = adamw.update(zeros, adamw.init(weights), weights)
    assert {name for name, update in updates.items() if jnp.any(update != 0)} == {
        *("kernel", "embedding", "a")
    }


def test_a_vanishing_clip_norm_leaves_adam_a_smaller_first_moment() -> None:
    gradient = {"kernel": jnp.full((4,), 2.0)}
    moments = []
    for norm in (1.0, 100.0):
        adamw = optimizer(dataclasses.replace(SftConfig(), max_grad_norm=norm))
        _, state = adamw.update(gradient, adamw.init(gradient), gradient)
        moments.append(float(optax.tree_utils.tree_get(state, "mu")["kernel"][0]))
    np.testing.assert_allclose(moments, [0.1 * 2 / 4, 0.1 * 2], rtol=1e-6)
