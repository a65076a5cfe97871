"""Drawing tokens: exact sets against sorting, frequencies against probabilities."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from transformers import TopKLogitsWarper, TopPLogitsWarper

from malt_jax.sampling.token import SamplingParameters, draw

draw = jax.jit(draw)


def support(
    logits: np.ndarray, parameters: SamplingParameters, draws: int = 4000
) -> tuple[set[int], np.ndarray]:
    """The tokens that are ever drawn, and how often each is."""
    keys = jax.random.split(jax.random.key(0), draws)
    rows = jnp.broadcast_to(jnp.asarray(logits, jnp.float32), (draws, len(logits)))
    tokens, _ = draw(rows, keys, parameters)
    counts = np.bincount(tokens, minlength=len(logits))
    return set(np.flatnonzero(counts).tolist()), counts / draws


@pytest.mark.parametrize("size", [5, 128, 300])
def test_frequencies_are_the_probabilities(size: int) -> None:
    logits = np.random.default_rng(0).normal(size=size) * 2
    _, frequencies = support(logits, SamplingParameters.create(0.7), draws=20_000)
    want = np.exp(logits / 0.7) / np.exp(logits / 0.7).sum()
    np.testing.assert_allclose(frequencies, want, atol=4 * np.sqrt(0.25 / 20_000))


@pytest.mark.parametrize(("top_k", "top_p"), [(3, 1.0), (0, 0.6), (6, 0.8), (1, 1.0), (0, 1e-6)])
def test_the_kept_tokens_are_those_of_transformers(top_k: int, top_p: float) -> None:
    logits = np.random.default_rng(1).normal(size=40) * 1.5
    scores = torch.tensor(logits / 0.9)[None]
    if top_k:
        scores = TopKLogitsWarper(top_k)(None, scores)
    if top_p < 1:
        scores = TopPLogitsWarper(top_p)(None, scores)
    want = torch.softmax(scores, -1)[0].numpy()
    seen, frequencies = support(logits, SamplingParameters.create(0.9, top_p, top_k))
    assert seen == set(np.flatnonzero(want > 0).tolist())
    np.testing.assert_allclose(frequencies, want, atol=0.035)


def test_temperature_zero_is_greedy_and_log_probabilities_are_unfiltered() -> None:
    logits = np.random.default_rng(2).normal(size=(6, 50)).astype(np.float32)
    keys = jax.random.split(jax.random.key(0), 6)
    tokens, chosen = draw(jnp.asarray(logits), keys, SamplingParameters.create(0.0))
    np.testing.assert_array_equal(tokens, logits.argmax(-1))
    plain = torch.log_softmax(torch.tensor(logits), -1).numpy()
    np.testing.assert_allclose(chosen, plain.max(-1), atol=1e-6)
    tokens, chosen = draw(jnp.asarray(logits), keys, SamplingParameters.create(0.5, 0.9, 10))
    np.testing.assert_allclose(chosen, plain[np.arange(6), np.asarray(tokens)], atol=1e-6)


def test_impossible_tokens_are_never_drawn() -> None:
    logits = np.full(260, -np.inf)
    logits[[3, 129, 257]] = [0.0, -1.0, 1.0]
    seen, _ = support(logits, SamplingParameters.create(1.0))
    assert seen == {3, 129, 257}


def test_rows_may_have_parameters_of_their_own() -> None:
    """Each row is drawn as if its parameters were those of all rows."""
    logits = jnp.asarray(np.random.default_rng(3).normal(size=(8, 300)) * 2, jnp.float32)
    keys = jax.random.split(jax.random.key(1), 8)
    own = [(0.0, 1.0, 0), (0.7, 1.0, 0), (1.0, 0.5, 0), (1.3, 1.0, 5), (1.0, 0.8, 20)] * 2
    made = [SamplingParameters.create(*parameters) for parameters in own[:8]]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *made)
    tokens, chosen = draw(logits, keys, stacked)
    for row, parameters in enumerate(made):
        of_all = draw(logits, keys, parameters)
        assert tokens[row] == of_all[0][row] and chosen[row] == of_all[1][row]


def test_settings_are_traced() -> None:
    logits, keys = jnp.zeros((2, 10)), jax.random.split(jax.random.key(0), 2)
    draw(logits, keys, SamplingParameters.create(1.0))
    before = draw._cache_size()
    for parameters in (
        SamplingParameters.create(0.0),
        SamplingParameters.create(0.3, 0.5),
        SamplingParameters.create(2.0, 1.0, 4),
    ):
        draw(logits, keys, parameters)
    assert draw._cache_size() == before
