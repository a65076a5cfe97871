"""Log-probabilities of tokens in bounded memory, and the DPO loss."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

CHUNK_LOGITS = 2**26
"""Logits that a device holds at once: 256 MiB of float32."""


class TokenScores(NamedTuple):
    """The model's distribution at given tokens."""

    logps: Float[Array, "*B T"]
    """Log-probability of each token, in nats."""
    entropies: Float[Array, "*B T"]
    """Entropy of the distribution it was drawn from, in nats; carries no gradient."""
    correct: Bool[Array, "*B T"]
    """Whether it is the most probable token."""


def token_scores(
    logits_of: Callable[[Float[Array, "*B T D"]], Float[Array, "*B T V"]],
    hidden: Float[Array, "*B T D"],
    targets: Int[Array, "*B T"],
    *,
    vocab_size: int,
    chunk: int | None = None,
    shards: int = 1,
) -> TokenScores:
    """Scores `targets` under the distributions that `logits_of(hidden)` gives.

    Logits are computed for `chunk` positions at a time (by default as many as CHUNK_LOGITS allows)
    and recomputed in the backward pass, so [B, T, V] never exists. The chunks run along T: the
    leading axes stay split into `shards`, one a device.
    """
    *leading, time = targets.shape
    rows = targets.size // time
    if chunk is None:
        chunk = max(1, CHUNK_LOGITS * shards // (rows * vocab_size))
    if chunk >= time:
        return _score(logits_of, hidden, targets)

    chunks = -(-time // chunk)
    padding = chunks * chunk - time
    hidden = _split(_pad(hidden, -2, padding), -2, chunks)
    targets = _split(_pad(targets, -1, padding), -1, chunks)

    @jax.checkpoint
    def score(hidden: Array, targets: Array) -> TokenScores:
        return _score(logits_of, hidden, targets)

    _, scores = jax.lax.scan(lambda _, x: (None, score(*x)), None, (hidden, targets))
    return TokenScores(
        *(jnp.moveaxis(x, 0, -2).reshape(*leading, chunks * chunk)[..., :time] for x in scores)
    )


def _score(
    logits_of: Callable[[Float[Array, "*B T D"]], Float[Array, "*B T V"]],
    hidden: Float[Array, "*B T D"],
    targets: Int[Array, "*B T"],
) -> TokenScores:
    logits = logits_of(hidden).astype(jnp.float32)
    # Selected by comparison, which fuses; a gather's gradient would be a scatter.
    index = jax.lax.broadcasted_iota(targets.dtype, logits.shape, logits.ndim - 1)
    chosen = index == targets[..., None]
    log_normalizer = jax.nn.logsumexp(logits, axis=-1)
    logps = jnp.sum(jnp.where(chosen, logits, 0.0), axis=-1) - log_normalizer
    fixed = jax.lax.stop_gradient(logits)
    mean_logit = jnp.sum(jax.nn.softmax(fixed, axis=-1) * fixed, axis=-1)
    entropies = jax.lax.stop_gradient(log_normalizer) - mean_logit
    return TokenScores(logps, entropies, jnp.argmax(fixed, axis=-1) == targets)


def _pad(x: Array, axis: int, padding: int) -> Array:
    widths = [(0, 0)] * x.ndim
    widths[axis] = (0, padding)
    return jnp.pad(x, widths)


def _split(x: Array, axis: int, chunks: int) -> Array:
    """Cuts an axis into `chunks` equal pieces along a new leading axis."""
    axis %= x.ndim
    pieces = x.reshape(*x.shape[:axis], chunks, x.shape[axis] // chunks, *x.shape[axis + 1 :])
    return jnp.moveaxis(pieces, axis, 0)


def dpo_losses(
    logps: Float[Array, "*B 2"],
    reference_logps: Float[Array, "*B 2"],
    *,
    beta: float,
    label_smoothing: float = 0.0,
) -> Float[Array, "*B"]:
    """Direct preference optimisation (arXiv 2305.18290, eq. 7), one loss per pair.

    logps, reference_logps: log-probabilities of (chosen, rejected), summed over their tokens.
    label_smoothing: the probability that a preference is reversed (conservative DPO,
        https://ericmitchell.ai/cdpo.pdf).
    """
    rewards = implicit_rewards(logps, reference_logps, beta)
    margins = rewards[..., 0] - rewards[..., 1]
    kept, reversed = jax.nn.log_sigmoid(margins), jax.nn.log_sigmoid(-margins)
    return -(1.0 - label_smoothing) * kept - label_smoothing * reversed


def implicit_rewards(
    logps: Float[Array, "*B n"], reference_logps: Float[Array, "*B n"], beta: float
) -> Float[Array, "*B n"]:
    """beta * log(policy / reference): DPO's reward up to a term of the prompt alone, in nats."""
    return beta * (logps - reference_logps)
