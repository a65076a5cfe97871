"""Drawing a token from logits: temperature, top-k and top-p without sorting the vocabulary."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, Key

_BLOCK = 128
"""Vocabulary entries per block of the two-level inverse of the cumulative distribution."""


class SamplingParameters(flax.struct.PyTreeNode):
    """Parameters of drawing, for all rows or (`*rows` = B) for each row its own.

    All values are traced: changing one compiles nothing.
    """

    temperature: Float[Array, "*rows"]
    """0 is greedy."""
    top_p: Float[Array, "*rows"]
    """Smallest set of tokens with at least this probability; 1 switches it off."""
    top_k: Int[Array, "*rows"]
    """Number of most probable tokens; 0 switches it off."""
    stop_ids: Int[Array, " stops"]
    """Tokens that end a completion."""
    max_tokens: Int[Array, "*rows"]
    """Longest completion."""

    @classmethod
    def create(
        cls,
        temperature: float,
        top_p: float = 1.0,
        top_k: int = 0,
        *,
        stop_ids: Sequence[int] = (),
        max_tokens: int = 0,
    ) -> SamplingParameters:
        """The parameters as arrays."""
        # From NumPy's scalars, which need no program to be compiled.
        return cls(
            jnp.asarray(np.float32(temperature)),
            jnp.asarray(np.float32(top_p)),
            jnp.asarray(np.int32(top_k)),
            jnp.asarray(np.array(sorted(stop_ids), np.int32)),
            jnp.asarray(np.int32(max_tokens)),
        )


def draw(
    logits: Float[Array, "*B V"], keys: Key[Array, "*B"], parameters: SamplingParameters
) -> tuple[Int[Array, "*B"], Float[Array, "*B"]]:
    """Draws one token for every row, each from its own key.

    The temperature is applied first, then top-k, then top-p among what is left, as in transformers.
    Tokens that tie with the last one admitted are admitted too. One uniform number per row is put
    through the inverse of the cumulative distribution, which costs a fraction of the V numbers that
    a categorical draw by Gumbel noise needs. A row does not depend on the parameters of others.

    Returns the tokens and their log-probabilities under the unfiltered distribution at
    temperature 1, which is the policy that training sees.
    """
    log_probabilities = jax.nn.log_softmax(logits.astype(jnp.float32), axis=-1)
    greedy = parameters.temperature <= 0
    temperature = jnp.where(greedy, 1.0, parameters.temperature)
    probabilities = jax.nn.softmax(log_probabilities / _column(temperature), axis=-1)
    top_k, top_p = parameters.top_k, parameters.top_p
    probabilities = jax.lax.cond(
        jnp.any(top_k > 0), lambda p: _keep_top_k(p, top_k), lambda p: p, probabilities
    )
    probabilities = jax.lax.cond(
        jnp.any(top_p < 1), lambda p: _keep_top_p(p, top_p), lambda p: p, probabilities
    )
    uniform = _uniform(keys)
    drawn = jnp.where(greedy, jnp.argmax(logits, axis=-1), _inverse_cdf(probabilities, uniform))
    chosen = jnp.take_along_axis(log_probabilities, drawn[..., None], axis=-1)[..., 0]
    return drawn.astype(jnp.int32), chosen


def _uniform(keys: Key[Array, "*B"]) -> Float[Array, "*B"]:
    flat = jax.vmap(lambda key: jax.random.uniform(key, dtype=jnp.float32))(keys.reshape(-1))
    return flat.reshape(keys.shape)


def _column(x: Float[Array, "*rows"]) -> Float[Array, "..."]:
    """Values of the rows, to be combined with their vocabularies."""
    return x[..., None] if x.ndim else x


def _keep_top_k(
    probabilities: Float[Array, "*B V"], k: Int[Array, "*rows"]
) -> Float[Array, "*B V"]:
    k = jnp.where(k > 0, k, probabilities.shape[-1])

    def enough(kept: Bool[Array, "*B V"]) -> Bool[Array, "*B"]:
        return jnp.sum(kept, axis=-1) >= k

    return _keep_most_probable(probabilities, enough)


def _keep_top_p(
    probabilities: Float[Array, "*B V"], p: Float[Array, "*rows"]
) -> Float[Array, "*B V"]:
    wanted = p * jnp.sum(probabilities, axis=-1)

    def enough(kept: Bool[Array, "*B V"]) -> Bool[Array, "*B"]:
        return jnp.sum(jnp.where(kept, probabilities, 0.0), axis=-1) >= wanted

    kept = _keep_most_probable(probabilities, enough)
    return jnp.where(_column(p) < 1, kept, probabilities)


def _keep_most_probable(
    probabilities: Float[Array, "*B V"],
    enough: Callable[[Bool[Array, "*B V"]], Bool[Array, "*B"]],
) -> Float[Array, "*B V"]:
    """Zeroes the tokens below the highest threshold that still keeps `enough` of them.

    The threshold is found by bisection over the bit patterns of non-negative floats, whose order is
    that of the numbers: exact after 31 passes over the vocabulary, where a sort would take more.
    """
    bits = jax.lax.bitcast_convert_type(probabilities, jnp.int32)

    def halve(_: Int[Array, ""], bounds: tuple[Array, Array]) -> tuple[Array, Array]:
        low, high = bounds
        middle = low + (high - low) // 2
        keeps = enough(bits >= middle[..., None])
        return jnp.where(keeps, middle, low), jnp.where(keeps, high, middle)

    low = jnp.zeros(probabilities.shape[:-1], jnp.int32)
    high = jnp.max(bits, axis=-1) + 1
    threshold, _ = jax.lax.fori_loop(0, 31, halve, (low, high))
    return jnp.where(bits >= threshold[..., None], probabilities, 0.0)


def _inverse_cdf(weights: Float[Array, "*B V"], uniform: Float[Array, "*B"]) -> Int[Array, "*B"]:
    """First index whose cumulative weight exceeds uniform * total; never one of weight 0."""
    padding = -weights.shape[-1] % _BLOCK
    if padding:
        weights = jnp.pad(weights, [(0, 0)] * (weights.ndim - 1) + [(0, padding)])
    blocks = weights.reshape(*weights.shape[:-1], -1, _BLOCK)
    cumulative = jnp.cumsum(jnp.sum(blocks, axis=-1), axis=-1)
    block, rest = _locate(cumulative, uniform * cumulative[..., -1])
    inside = jnp.take_along_axis(blocks, block[..., None, None], axis=-2)[..., 0, :]
    index, _ = _locate(jnp.cumsum(inside, axis=-1), rest)
    return block * _BLOCK + index


def _locate(
    cumulative: Float[Array, "*B N"], target: Float[Array, "*B"]
) -> tuple[Int[Array, "*B"], Float[Array, "*B"]]:
    """Index of the first entry above the target, and how far the target is into its step."""
    # Rounding may lift the target to the total, where no entry is above it.
    target = jnp.minimum(target, jnp.nextafter(cumulative[..., -1], jnp.float32(0)))
    index = jnp.sum(cumulative <= target[..., None], axis=-1, dtype=jnp.int32)
    before = jnp.take_along_axis(cumulative, jnp.maximum(index - 1, 0)[..., None], axis=-1)[..., 0]
    return index, target - jnp.where(index > 0, before, 0.0)
