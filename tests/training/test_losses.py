from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from jaxtyping import Array

from malt_jax.config import DpoConfig
from malt_jax.training.losses import implicit_rewards, preference_losses, token_scores

GENERATOR = np.random.default_rng(0)
HIDDEN = GENERATOR.normal(size=(3, 2, 7, 5)).astype(np.float32)
HEAD = GENERATOR.normal(size=(11, 5)).astype(np.float32)
TARGETS = GENERATOR.integers(0, 11, size=(3, 2, 7)).astype(np.int32)
WEIGHTS = GENERATOR.normal(size=(3, 2, 7)).astype(np.float32)


def weighted_logps(hidden: Array, head: Array, chunk: int | None) -> Array:
    scores = token_scores(
        lambda h: h @ head.T, hidden, jnp.asarray(TARGETS), vocab_size=11, chunk=chunk
    )
    return jnp.sum(scores.logps * WEIGHTS)


@pytest.mark.parametrize("chunk", [None, 1, 3, 7])
def test_scores_and_gradients_are_those_of_torch(chunk: int | None) -> None:
    hidden = torch.tensor(HIDDEN, requires_grad=True)
    head = torch.tensor(HEAD, requires_grad=True)
    logits = hidden @ head.T
    logps = F.log_softmax(logits, -1)
    chosen = logps.gather(-1, torch.tensor(TARGETS).long()[..., None])[..., 0]
    (chosen * torch.tensor(WEIGHTS)).sum().backward()

    scores = token_scores(
        lambda h: h @ HEAD.T, jnp.asarray(HIDDEN), jnp.asarray(TARGETS), vocab_size=11, chunk=chunk
    )
    np.testing.assert_allclose(scores.logps, chosen.detach(), rtol=1e-5, atol=1e-6)
    entropies = torch.distributions.Categorical(logits=logits).entropy().detach()
    np.testing.assert_allclose(scores.entropies, entropies, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(scores.correct, logits.argmax(-1).numpy() == TARGETS)

    gradient = jax.grad(weighted_logps, argnums=(0, 1))
    for ours, theirs in zip(
        gradient(jnp.asarray(HIDDEN), jnp.asarray(HEAD), chunk), (hidden, head), strict=True
    ):
        np.testing.assert_allclose(ours, theirs.grad, rtol=1e-4, atol=1e-5)


def test_logits_of_all_positions_never_exist_at_once() -> None:
    jaxpr = jax.make_jaxpr(jax.grad(weighted_logps), static_argnums=2)(
        jnp.asarray(HIDDEN), jnp.asarray(HEAD), 2
    )
    assert "f32[3,2,2,11]" in str(jaxpr)
    assert "f32[3,2,7,11]" not in str(jaxpr)
    assert "f32[4,3,2,2,11]" not in str(jaxpr)


def torch_losses(logps: torch.Tensor, reference: torch.Tensor, lengths: torch.Tensor, **o: Any):
    """The losses as their papers state them, one formula each."""
    beta, e = o.get("beta", 0.2), o.get("label_smoothing", 0.0)
    chosen, rejected = (logps - reference).unbind(-1)
    short, long = lengths.unbind(-1)
    match o["loss"]:
        case "sigmoid":
            h = beta * (chosen - rejected)
            return -F.logsigmoid(h) * (1 - e) - F.logsigmoid(-h) * e
        case "robust":
            h = beta * (chosen - rejected)
            return (-F.logsigmoid(h) * (1 - e) + F.logsigmoid(-h) * e) / (1 - 2 * e)
        case "ipo":
            return (chosen / short - rejected / long - 1 / (2 * beta)).square()
        case "length_normalized":
            return -F.logsigmoid(beta * (chosen / short - rejected / long))
        case "dpop":
            penalty = o["dpop_penalty"] * torch.clamp(-chosen, min=0)
            return -F.logsigmoid(beta * (chosen - rejected - penalty))
    raise AssertionError(o["loss"])


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "sigmoid"},
        {"loss": "sigmoid", "beta": 0.7, "label_smoothing": 0.1},
        {"loss": "robust", "beta": 0.4, "label_smoothing": 0.2},
        {"loss": "ipo", "beta": 0.3},
        {"loss": "length_normalized", "beta": 5.0},
        {"loss": "dpop", "dpop_penalty": 3.0},
    ],
)
def test_preference_losses_and_gradients_are_those_of_torch(options: dict[str, Any]) -> None:
    numbers = 5 * GENERATOR.normal(size=(2, 6, 2)).astype(np.float32)
    lengths = GENERATOR.integers(1, 9, size=(6, 2)).astype(np.int32)
    logps = torch.tensor(numbers[0], requires_grad=True)
    expected = torch_losses(logps, torch.tensor(numbers[1]), torch.tensor(lengths), **options)
    expected.sum().backward()

    def ours(x: Array) -> Array:
        return preference_losses(
            x, jnp.asarray(numbers[1]), jnp.asarray(lengths), DpoConfig(**options)
        )

    x = jnp.asarray(numbers[0])
    np.testing.assert_allclose(ours(x), expected.detach(), rtol=1e-5, atol=1e-6)
    gradient = jax.grad(lambda x: jnp.sum(ours(x)))(x)
    np.testing.assert_allclose(gradient, logps.grad, rtol=1e-4, atol=1e-6)


def test_rewards_are_scaled_log_ratios() -> None:
    rewards = implicit_rewards(jnp.asarray([[1.0, -2.0]]), jnp.asarray([[0.5, 1.0]]), 0.2)
    np.testing.assert_allclose(rewards, [[0.1, -0.6]], rtol=1e-6)
