"""Decoding: chunks of steps on the device, in a loop on the host."""

from __future__ import annotations

import functools
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Key

from malt_jax.model.levels import Level, level_spec
from malt_jax.model.llama import Llama, Params, forward, next_logits
from malt_jax.sampling.cache import append
from malt_jax.sampling.compaction import Batch, take_questions
from malt_jax.sampling.completions import Completions, Finish
from malt_jax.sampling.token import SamplingParameters, draw
from malt_jax.sharding.calls import Call
from malt_jax.sharding.rules import (
    ArraySpec,
    abstract,
    array_specs,
    batch_shards,
    constrain,
    device_put,
    to_host,
    zeros,
)

ROOM = 64
"""Smallest size of a new cache level: below it another program costs more than it saves."""


class DecodeState(flax.struct.PyTreeNode):
    """Everything that a decode step reads and writes."""

    level: Level
    """Keys and values of the tokens fed so far; its size bounds the steps."""
    tokens: Int[Array, "*tree S"]
    log_probabilities: Float[Array, "*tree S"]
    lengths: Int[Array, "*tree"]
    finish: Int[Array, "*tree"]
    last: Int[Array, "*tree"]
    """The token to feed next: at the start the last token of the prompt."""
    keys: Key[Array, "*tree"]
    """One per node; the token at position t is drawn with fold_in(key, t)."""
    step: Int[Array, ""]

    @property
    def size(self) -> int:
        return self.tokens.shape[-1]


def decode_state_spec(model: Llama, nodes: tuple[int, ...], size: int) -> Any:
    """The ArraySpecs of a state with these node axes and room for `size` tokens a node."""

    def spec(shape: tuple[int, ...], dtype: Any) -> Any:
        return ArraySpec(shape, dtype, P("batch") if shape else P())

    return DecodeState(
        level=level_spec(model, nodes, size),
        tokens=spec((*nodes, size), jnp.int32),
        log_probabilities=spec((*nodes, size), jnp.float32),
        lengths=spec(nodes, jnp.int32),
        finish=spec(nodes, jnp.int32),
        last=spec(nodes, jnp.int32),
        keys=spec(nodes, jax.random.key(0).dtype),
        step=spec((), jnp.int32),
    )


def _constrain(model: Llama, state: DecodeState) -> DecodeState:
    spec = decode_state_spec(model, state.last.shape, state.size)
    return constrain(model.mesh, state, spec)


class PartialCompletions:
    """Completions of a batch that is being decoded.

    The newest tokens stay on the device until they are asked for.
    """

    def __init__(self, nodes: tuple[int, ...], max_tokens: int) -> None:
        self._tokens = np.zeros((*nodes, max_tokens), np.int32)
        self._log_probabilities = np.zeros((*nodes, max_tokens), np.float32)
        self._lengths = np.zeros(nodes, np.int32)
        self._finish = np.zeros(nodes, np.int32)
        self._newest: tuple[Int[np.ndarray, " rows"], DecodeState] | None = None

    def follow(self, rows: Int[np.ndarray, " rows"], state: DecodeState) -> None:
        """Takes `state`, whose first axis are the questions `rows`, as the newest one."""
        self._newest = rows, state

    def copy_to_host(self) -> None:
        """Copies the newest tokens: their questions may leave the batch afterwards."""
        if self._newest is None:
            return
        rows, state = self._newest
        self._tokens[rows, ..., : state.size] = to_host(state.tokens)
        self._log_probabilities[rows, ..., : state.size] = to_host(state.log_probabilities)
        self._lengths[rows] = to_host(state.lengths)
        self._finish[rows] = to_host(state.finish)
        self._newest = None

    def read(self) -> Completions:
        """The completions so far, cut to the longest."""
        self.copy_to_host()
        longest = int(self._lengths.max())
        return Completions(
            self._tokens[..., :longest],
            self._log_probabilities[..., :longest],
            self._lengths,
            self._finish,
        )


def node_keys(
    key: Key[Array, ""],
    questions: Int[np.ndarray, "Q"],
    branching: Sequence[int],
    first_branch: int = 0,
) -> Key[Array, "Q *n"]:
    """A key for every node, a function of the key, the question's id and the path.

    first_branch: number of the first branch below every question.
    """
    keys = jax.vmap(jax.random.fold_in, (None, 0))(key, jnp.asarray(questions, jnp.uint32))
    for depth, branches in enumerate(branching):
        start = first_branch if depth == 0 else 0
        numbers = np.arange(start, start + branches, dtype=np.uint32)
        flat = jax.vmap(
            lambda parent, numbers=numbers: jax.vmap(jax.random.fold_in, (None, 0))(parent, numbers)
        )(keys.reshape(-1))
        keys = flat.reshape(*keys.shape, branches)
    return keys


def cache_sizes(max_tokens: int, chunk: int) -> Iterator[int]:
    """Tokens that the cache of a completion has room for, one size after the other."""
    size = min(max(chunk, ROOM), max_tokens)
    while size < max_tokens:
        yield size
        size = min(2 * size, max_tokens)
    yield size


def decode(
    model: Llama,
    variables: Params,
    ancestors: tuple[Level, ...],
    state: DecodeState,
    parameters: SamplingParameters,
    chunk: int,
    asked: int,
) -> Iterator[PartialCompletions]:
    """Samples one completion for every node, up to `chunk` tokens between two yields.

    ancestors: the cached prompts without their last tokens.
    state:     of `initial_state`, with room for the first of `cache_sizes`; donated.
    asked:     questions after so many are padding, which the loop does not wait for.

    Yields the completions so far, the same object each time; after the last yield they are whole.

    The cache of the new level doubles when it is full, so a step reads little more than what was
    written. Each size of cache and batch is one compiled program. The host decides by `finish`
    alone, which every process reads whole, so all processes run the same programs.
    """
    mesh, max_tokens = model.mesh, int(parameters.max_tokens)
    parameters = device_put(mesh, parameters, P())
    levels = tuple(level_spec(model, level.leading, level.size) for level in ancestors)
    completions = PartialCompletions(state.last.shape, max_tokens)
    batch = Batch.of(len(state.last), batch_shards(mesh), asked)
    larger = itertools.islice(cache_sizes(max_tokens, chunk), 1, None)
    while True:
        if int(state.step) == state.size:
            state = grow(model, state, next(larger))
        state = decode_chunk(model, variables, ancestors, state, parameters, chunk)
        completions.follow(batch.rows, state)
        yield completions
        alive = batch.waited_for(to_host(state.finish) == Finish.RUNNING)
        if not alive.any():
            return
        if (kept := batch.to_keep(alive)) is not None:
            completions.copy_to_host()
            specs = (decode_state_spec(model, state.last.shape, state.size), levels)
            state, ancestors = take_questions(mesh, (state, ancestors), specs, kept)
            batch = batch.take(kept)


def decode_calls(
    model: Llama,
    variables: Params,
    ancestors: tuple[Level, ...],
    nodes: tuple[int, ...],
    parameters: SamplingParameters,
    chunk: int,
    tokens: int,
) -> Iterator[Call]:
    """The compiled programs of `decode`, in order, when all completions have `tokens` tokens.

    variables, ancestors: abstract.
    nodes:                shape of the completions, (Q, n_1, ..., n_d).
    """
    mesh, done = model.mesh, 0
    state: DecodeState
    replicated = abstract(mesh, array_specs(parameters, P()))
    for size in cache_sizes(int(parameters.max_tokens), chunk):
        if done >= tokens:
            return
        if done:
            yield Call(f"grow-{size}", grow, (model, state, size), resident=(variables, ancestors))
        state = abstract(mesh, decode_state_spec(model, nodes, size))
        arguments = (model, variables, ancestors, state, replicated, chunk)
        steps = min(size, tokens) - done
        count = math.ceil(steps / chunk)
        steps = math.ceil(steps / count)
        sampled = math.prod(nodes) * steps
        yield Call(f"decode-{size}", decode_chunk, arguments, count, steps, sampled)
        done = size


@functools.partial(jax.jit, static_argnames=("model", "chunk"), donate_argnames="state")
def decode_chunk(
    model: Llama,
    variables: Params,
    ancestors: tuple[Level, ...],
    state: DecodeState,
    parameters: SamplingParameters,
    chunk: int,
) -> DecodeState:
    """Up to `chunk` steps; fewer when all nodes have finished or the buffers are full.

    Donates `state`. One program per shape of the levels, whatever the sampling parameters.
    """
    end = jnp.minimum(state.step + chunk, state.size)

    def go_on(state: DecodeState) -> Array:
        return (state.step < end) & jnp.any(state.finish == Finish.RUNNING)

    def advance(state: DecodeState) -> DecodeState:
        return _step(model, variables, ancestors, state, parameters)

    return _constrain(model, jax.lax.while_loop(go_on, advance, state))


def _step(
    model: Llama,
    variables: Params,
    ancestors: tuple[Level, ...],
    state: DecodeState,
    parameters: SamplingParameters,
) -> DecodeState:
    ones = jnp.ones(state.last.shape, jnp.int32)
    hidden, token_level = forward(
        model, variables, state.last[..., None], ones, (*ancestors, state.level)
    )
    # As rows of one matrix, because the short axes of the nodes would be padded to whole tiles.
    rows, keys = hidden.reshape(-1, hidden.shape[-1]), state.keys.reshape(-1)
    steps = jnp.broadcast_to(state.step, keys.shape)
    drawn = draw_next(model, variables, rows, keys, steps, parameters)
    tokens, log_probabilities, finish = (x.reshape(state.last.shape) for x in drawn)
    running = state.finish == Finish.RUNNING

    def record(buffer: Array, value: Array) -> Array:
        update = jnp.where(running, value, jnp.zeros_like(value))[..., None]
        return jax.lax.dynamic_update_slice_in_dim(buffer, update, state.step, buffer.ndim - 1)

    state = state.replace(
        level=append(state.level, token_level, state.step),
        tokens=record(state.tokens, tokens),
        log_probabilities=record(state.log_probabilities, log_probabilities),
        lengths=state.lengths + running.astype(jnp.int32),
        finish=jnp.where(running, finish, state.finish),
        last=tokens,
        step=state.step + 1,
    )
    return _constrain(model, state)


def draw_next(
    model: Llama,
    variables: Params,
    hidden: Float[Array, "B D"],
    keys: Key[Array, "B"],
    positions: Int[Array, "B"],
    parameters: SamplingParameters,
) -> tuple[Int[Array, "B"], Float[Array, "B"], Int[Array, "B"]]:
    """The next token of every row, from the final hidden state of its last token.

    keys:      of the completions; the token at position t is drawn with fold_in(key, t).
    positions: of the tokens to draw, from 0.

    Returns the tokens, their log-probabilities as `draw` does, and the completions' `Finish`.
    """
    # Drawing reads the whole vocabulary several times.
    logits = constrain(model.mesh, next_logits(model, variables, hidden), P("batch"))
    position_keys = jax.vmap(jax.random.fold_in)(keys, positions)
    tokens, log_probabilities = draw(logits, position_keys, parameters)
    stop_ids = jnp.broadcast_to(parameters.stop_ids, (*tokens.shape, parameters.stop_ids.size))
    stopped = jnp.any(tokens[..., None] == stop_ids, axis=-1)
    exhausted = positions + 1 >= parameters.max_tokens
    finish = jnp.where(stopped, Finish.STOP, jnp.where(exhausted, Finish.LENGTH, Finish.RUNNING))
    return tokens, log_probabilities, finish.astype(jnp.int32)


@functools.partial(jax.jit, static_argnames=("model", "size"))
def initial_state(
    model: Llama, first: Int[Array, "*tree"], keys: Key[Array, "*tree"], size: int
) -> DecodeState:
    """Nothing decoded yet, and room for `size` tokens a node.

    first: the last token of each node's prompt.
    keys:  one per node; the token at position t is drawn with fold_in(key, t).
    """
    spec = decode_state_spec(model, first.shape, size)
    # Zeros: nothing is decoded, and every node is RUNNING.
    state: DecodeState = zeros(spec.replace(last=(), keys=())).replace(last=first, keys=keys)
    return _constrain(model, state)


@functools.partial(jax.jit, static_argnames=("model", "size"))
def grow(model: Llama, state: DecodeState, size: int) -> DecodeState:
    """Makes room for `size` tokens a node."""
    more = size - state.size

    def widen(buffer: Array, axis: int) -> Array:
        padding = [(0, 0)] * buffer.ndim
        padding[axis] = (0, more)
        return jnp.pad(buffer, padding)

    level = state.level.replace(
        keys=widen(state.level.keys, -1), values=widen(state.level.values, -2)
    )
    state = state.replace(
        level=level,
        tokens=widen(state.tokens, -1),
        log_probabilities=widen(state.log_probabilities, -1),
    )
    return _constrain(model, state)
