"""Log-probabilities of tokens in bounded memory, and losses of pairs and single completions."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from malt_jax.config import DpoConfig

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


def preference_losses(
    logps: Float[Array, "*B 2"],
    reference_logps: Float[Array, "*B 2"],
    lengths: Int[Array, "*B 2"],
    options: DpoConfig,
) -> Float[Array, "*B"]:
    """The loss of each pair, of the kind that `options.loss` names.

    With h = beta (log(policy / reference) of chosen - of rejected), summed over tokens:

    sigmoid:           -(1 - e) log sigmoid(h) - e log sigmoid(-h): DPO (arXiv 2305.18290, eq. 7),
                       with label smoothing e conservative DPO (https://ericmitchell.ai/cdpo.pdf)
    robust:            (-(1 - e) log sigmoid(h) + e log sigmoid(-h)) / (1 - 2 e), unbiased if labels
                       are reversed with probability e (arXiv 2403.00409)
    ipo:               (h / beta - 1 / (2 beta))^2 with means over tokens (arXiv 2310.12036; the
                       means are its authors' correction)
    length_normalized: sigmoid with means over tokens (arXiv 2411.15124)
    dpop:              sigmoid of h - beta dpop_penalty max(0, log(reference / policy) of chosen):
                       keeps the chosen completion likely (arXiv 2402.13228)

    e is `options.label_smoothing`, which must be a number.

    logps, reference_logps: log-probabilities of (chosen, rejected), summed over their tokens.
    """
    if options.label_smoothing is None:
        raise ValueError("label_smoothing is measured on the pairs before they are trained on")
    ratios = logps - reference_logps
    if options.loss in ("ipo", "length_normalized"):
        ratios = ratios / jnp.maximum(lengths, 1).astype(jnp.float32)
    margins = options.beta * (ratios[..., 0] - ratios[..., 1])
    if options.loss == "ipo":
        return (margins / options.beta - 1 / (2 * options.beta)) ** 2
    if options.loss == "dpop":
        fall = jnp.maximum(0.0, -ratios[..., 0])
        margins = margins - options.beta * options.dpop_penalty * fall
    e = options.label_smoothing
    kept, reversed = jax.nn.log_sigmoid(margins), jax.nn.log_sigmoid(-margins)
    if options.loss == "robust":
        return (-(1.0 - e) * kept + e * reversed) / (1.0 - 2.0 * e)
    return -(1.0 - e) * kept - e * reversed


def kto_losses(
    logps: Float[Array, "*B"],
    reference_logps: Float[Array, "*B"],
    reference_point: Float[Array, "*B"],
    weights: Float[Array, "*B"],
    beta: float,
) -> Float[Array, "*B"]:
    """KTO's loss of single completions (arXiv 2402.01306, eq. 8), weights included.

    With h = beta (log(policy / reference) - reference_point): w (1 - sigmoid(h)) for a desirable
    completion of weight w, and w (1 - sigmoid(-h)) for an undesirable one.

    logps, reference_logps: summed over the tokens of each completion.
    reference_point: estimate of KL(policy || reference), in nats.
    weights: w of a desirable completion, -w of an undesirable one, 0 for padding.
    """
    h = beta * (logps - reference_logps - reference_point)
    return jnp.abs(weights) * jax.nn.sigmoid(-jnp.sign(weights) * h)


def implicit_rewards(
    logps: Float[Array, "*B n"], reference_logps: Float[Array, "*B n"], beta: float
) -> Float[Array, "*B n"]:
    """beta * log(policy / reference): DPO's reward up to a term of the prompt alone, in nats."""
    return beta * (logps - reference_logps)
