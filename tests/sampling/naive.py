"""The slow reference of the sampler: one prompt a row, nothing shared, nothing cached."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, Key

from malt_jax.model.llama import Llama, Params, forward, next_logits
from malt_jax.sampling.completions import Completions, Finish
from malt_jax.sampling.sampler import Segments
from malt_jax.sampling.token import SamplingParameters, draw

_draw = jax.jit(draw)


def decode_naively(
    model: Llama,
    variables: Params,
    prompts: Sequence[Sequence[int]],
    keys: Key[Array, "B"],
    parameters: SamplingParameters,
) -> Completions:
    """Samples one completion for every prompt by running the whole row again for every token.

    The draws use the same keys as `decode.decode`, so both give the same tokens wherever their
    logits agree.
    """
    rows, max_tokens = len(prompts), int(parameters.max_tokens)
    starts = np.array([len(prompt) for prompt in prompts], np.int32)
    tokens = np.zeros((rows, int(starts.max()) + max_tokens), np.int32)
    for index, prompt in enumerate(prompts):
        tokens[index, : len(prompt)] = prompt
    log_probabilities = np.zeros((rows, max_tokens), np.float32)
    lengths = np.zeros(rows, np.int32)
    finish = np.full(rows, int(Finish.RUNNING), np.int32)
    for step in range(max_tokens):
        logits = _last_logits(model, variables, jnp.asarray(tokens), jnp.asarray(starts + step))
        position_keys = jax.vmap(jax.random.fold_in, (0, None))(keys, step)
        drawn, chosen = jax.device_get(_draw(logits, position_keys, parameters))
        for row in np.flatnonzero(finish == Finish.RUNNING).tolist():
            tokens[row, starts[row] + step] = drawn[row]
            log_probabilities[row, step] = chosen[row]
            lengths[row] = step + 1
            if int(drawn[row]) in parameters.stop_ids:
                finish[row] = Finish.STOP
        if (finish != Finish.RUNNING).all():
            break
    finish[finish == Finish.RUNNING] = Finish.LENGTH
    completions = np.zeros((rows, max_tokens), np.int32)
    for row in range(rows):
        end = starts[row] + lengths[row]
        completions[row, : lengths[row]] = tokens[row, starts[row] : end]
    longest = int(lengths.max())
    return Completions(completions[:, :longest], log_probabilities[:, :longest], lengths, finish)


@functools.partial(jax.jit, static_argnames="model")
def _last_logits(
    model: Llama, variables: Params, tokens: Int[Array, "B T"], lengths: Int[Array, "B"]
) -> Float[Array, "B V"]:
    hidden, _ = forward(model, variables, tokens, lengths)
    last = jnp.take_along_axis(hidden, (lengths - 1)[:, None, None], axis=1)[:, 0]
    return next_logits(model, variables, last)


def prompt_rows(levels: Sequence[Segments]) -> list[list[int]]:
    """The whole prompt of every node of the deepest level, one row each, in row-major order."""
    nodes = len(levels[-1])
    below = [nodes // len(segments) for segments in levels]
    return [
        [
            token
            for segments, descendants in zip(levels, below, strict=True)
            for token in segments[node // descendants]
        ]
        for node in range(nodes)
    ]
