"""Attention over levels against a plain softmax; rotary frequencies against transformers'."""

import copy
import itertools

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest
import torch
import transformers
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from malt_jax.model.attention import Ancestor, attend
from malt_jax.model.config import LlamaConfig
from malt_jax.model.rope import inverse_frequencies
from tests.model.test_config import LLAMA_31_8B

KV_HEADS, GROUP, WIDTH, TIME = 2, 3, 8, 5


def reference(queries, keys, values, context, window=10**6, softcap=1e6):
    """One node's attention, head by head, in float64: `context` are (keys, values) before it."""
    past_keys = np.concatenate([k for k, _ in context] + [keys], axis=-1)
    past_values = np.concatenate([v for _, v in context] + [values], axis=-2)
    before = past_keys.shape[-1] - TIME
    out = np.zeros(queries.shape)
    for t, kv, g in np.ndindex(TIME, KV_HEADS, GROUP):
        seen = before + t + 1
        latest = slice(max(0, seen - window), seen)
        logits = queries[t, kv, g] @ past_keys[kv, :, latest] / np.sqrt(WIDTH)
        logits = softcap * np.tanh(logits / softcap)
        weights = np.exp(logits - logits.max())
        out[t, kv, g] = weights @ past_values[kv, latest] / weights.sum()
    return out


@pytest.mark.parametrize("window", [None, 1, 2, 4, 7, 100])
@pytest.mark.parametrize("lengths", ["ragged", "empty ancestors"])
def test_merged_softmaxes_equal_one_softmax(lengths: str, window: int | None) -> None:
    """Windows that end within the level, within an ancestor of some nodes, and before them all."""
    rng = np.random.default_rng(0)
    shapes = [(2,), (2, 3), (2, 3, 2)]
    sizes = [7, 4, 6]

    def normal(*shape):
        return rng.normal(size=shape)

    segments = []
    for shape, size in zip(shapes, sizes, strict=True):
        length = rng.integers(1, size + 1, shape)
        if lengths == "empty ancestors":
            length[:, ...] = 0 if len(shape) == 2 else length
        segments.append(
            Ancestor(
                normal(*shape, KV_HEADS, WIDTH, size), normal(*shape, KV_HEADS, size, WIDTH), length
            )
        )
    leading = (2, 3, 2, 3)
    queries = normal(*leading, TIME, KV_HEADS, GROUP, WIDTH)
    keys = normal(*leading, KV_HEADS, WIDTH, TIME)
    values = normal(*leading, KV_HEADS, TIME, WIDTH)

    float32 = [jax.tree.map(lambda x: jnp.asarray(x, _kind(x)), s) for s in segments]
    inputs = [jnp.asarray(x, jnp.float32) for x in (queries, keys, values)]
    options = {} if window is None else {"window": jnp.int32(window), "softcap": 1.5}
    wanted = {} if window is None else {"window": window, "softcap": 1.5}
    got = jax.jit(attend, static_argnames="softcap")(*inputs, float32, **options)
    for node in itertools.product(*map(range, leading)):
        context = []
        for segment in segments:
            place = node[: segment.lengths.ndim]
            valid = segment.lengths[place]
            context.append((segment.keys[place][..., :valid], segment.values[place][:, :valid]))
        want = reference(queries[node], keys[node], values[node], context, **wanted)
        np.testing.assert_allclose(got[node], want, atol=2e-6)


def _kind(x: np.ndarray) -> type:
    return jnp.int32 if x.dtype.kind == "i" else jnp.float32


def test_large_logits_do_not_overflow() -> None:
    ones = jnp.ones((1, 2, KV_HEADS, GROUP, WIDTH), jnp.float32)
    keys = 1e4 * jnp.ones((1, KV_HEADS, WIDTH, 2), jnp.float32)
    values = jnp.ones((1, KV_HEADS, 2, WIDTH), jnp.float32)
    ancestor = Ancestor(-keys, 2 * values, jnp.array([2]))
    np.testing.assert_allclose(jax.jit(attend)(ones, keys, values, [ancestor]), 1.0)


def test_a_wrong_shape_is_an_error_in_tests() -> None:
    queries = jnp.ones((3, TIME, KV_HEADS, GROUP, WIDTH))
    keys = jnp.ones((3, KV_HEADS, WIDTH, TIME))
    with pytest.raises(jaxtyping.TypeCheckError, match="'values'"):
        attend(queries, keys, jnp.ones((3, KV_HEADS, TIME, WIDTH + 1)), [])


def test_llama3_frequencies_are_transformers_own() -> None:
    theirs, _ = ROPE_INIT_FUNCTIONS["llama3"](
        transformers.LlamaConfig(**copy.deepcopy(LLAMA_31_8B)), torch.device("cpu")
    )
    ours = inverse_frequencies(LlamaConfig.from_huggingface(LLAMA_31_8B))
    np.testing.assert_allclose(ours, theirs.numpy(), rtol=2e-7)


def test_the_scaling_slows_most_frequencies() -> None:
    """Fluent text comes out without it, so only a number can tell that it is there."""
    scaled = inverse_frequencies(LlamaConfig.from_huggingface(LLAMA_31_8B))
    plain = inverse_frequencies(LlamaConfig.from_huggingface({**LLAMA_31_8B, "rope_scaling": None}))
    assert np.sum(scaled < 0.9 * plain) > 20
    np.testing.assert_allclose(scaled[-1], plain[-1] / 8, rtol=1e-6)
    np.testing.assert_array_equal(scaled[:10], plain[:10])
