"""Decoding: chunks of steps on the device, in a loop on the host."""

from __future__ import annotations

import dataclasses
import enum
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int, Key

from malt_jax.model.levels import Level, level_axes, level_spec
from malt_jax.model.llama import Llama, Params, forward, next_logits
from malt_jax.sampling.cache import append
from malt_jax.sampling.token import SamplingParameters, draw
from malt_jax.sharding.rules import batch_shards, constrain, device_put, to_host, zeros

ROOM = 64
"""Tokens that a new cache level holds at least; below, another program costs more than it saves."""
HALVINGS = 2
"""Times that a batch may shrink to half of its questions; each size is another program."""


class Finish(enum.IntEnum):
    """Why a completion ended."""

    RUNNING = 0
    STOP = 1
    """It drew a stop token, which is its last token."""
    LENGTH = 2
    """It reached the limit of tokens."""


@dataclasses.dataclass(frozen=True)
class Completions:
    """Completions of every node at one depth; the leading axes are (Q, n_1, ..., n_d)."""

    tokens: Int[np.ndarray, "*N T"]
    """Sampled ids, the stop token included; zeros behind the length."""
    log_probabilities: Float[np.ndarray, "*N T"]
    """Of each token under the model at temperature 1, over the whole vocabulary."""
    lengths: Int[np.ndarray, "*N"]
    finish: Int[np.ndarray, "*N"]
    """Values of `Finish`."""

    def ids(self, *node: int) -> list[int]:
        """The sampled ids of one node, the stop token included."""
        return self.tokens[node][: self.lengths[node]].tolist()

    def of_questions(self, count: int) -> Completions:
        """The completions of the first questions."""
        return Completions(
            self.tokens[:count],
            self.log_probabilities[:count],
            self.lengths[:count],
            self.finish[:count],
        )


class DecodeState(flax.struct.PyTreeNode):
    """Everything that a decode step reads and writes."""

    level: Level
    """Keys and values of the tokens fed so far; its size bounds the steps."""
    tokens: Int[Array, "*N S"]
    log_probabilities: Float[Array, "*N S"]
    lengths: Int[Array, "*N"]
    finish: Int[Array, "*N"]
    last: Int[Array, "*N"]
    """The token to feed next: at the start the last token of the prompt."""
    step: Int[Array, ""]

    @property
    def size(self) -> int:
        return self.tokens.shape[-1]

    @property
    def axes(self) -> DecodeState:
        """The logical axes of every array."""
        axes: Any = {name: P("batch") for name in self.__dataclass_fields__}
        return DecodeState(**axes | {"level": level_axes(self.last.ndim), "step": P()})


def node_keys(
    key: Key[Array, ""],
    questions: Int[np.ndarray, "Q"],
    branching: Sequence[int],
    first_branch: int = 0,
) -> Key[Array, "Q *n"]:
    """A key for every node: a function of the key, the question's id and the path, nothing else.

    first_branch: number of the first branch below every question, for trees that get more of them.
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
    first: Int[np.ndarray, "*N"],
    keys: Key[Array, "*N"],
    parameters: SamplingParameters,
    *,
    stop_ids: Sequence[int],
    max_tokens: int,
    chunk: int,
    fill: int = 0,
    on_chunk: Callable[[DecodeState], None] | None = None,
) -> Completions:
    """Samples one completion for every node.

    ancestors: the cached prompt, all but its last token.
    first:     the last token of each node's prompt, the first one fed.
    keys:      one per node; the token at position t is drawn with fold_in(key, t).
    fill:      questions at the end that only fill up the batch; nobody waits for them.
    on_chunk:  called on the host after every `chunk` steps, for progress and streaming.

    The cache of the new level starts with room for ROOM tokens or one chunk and doubles when it is
    full, so a step reads little more than what was written. When half of the questions have
    finished all their completions, the others go on without them; so sampling does not pay the
    longest completion's steps for all. Each size is one compiled program. On a mesh every part of
    the batch keeps half of its own questions, so that none has to move to another device.

    All that the host decides follows from which completions have finished, which every process
    reads in whole: so all processes run the same programs.
    """
    mesh = model.mesh
    shards = batch_shards(mesh)
    stops = device_put(mesh, np.array(sorted(stop_ids), np.int32), P())
    limit = device_put(mesh, np.int32(max_tokens), P())
    keys, first = device_put(mesh, (keys, first.astype(np.int32)), P("batch"))
    parameters = device_put(mesh, parameters, P())
    sizes = cache_sizes(max_tokens, chunk)
    state = initial_state(model, first, next(sizes))
    done = _Results(first.shape, max_tokens)
    rows = np.arange(len(first))
    fewest = max(1, len(rows) >> HALVINGS)
    while True:
        if int(state.step) == state.size:
            state = grow(state, next(sizes), mesh)
        state = decode_chunk(
            model, variables, ancestors, state, keys, parameters, stops, limit, chunk
        )
        if on_chunk is not None:
            on_chunk(state)
        running = to_host(state.finish).reshape(shards, len(rows) // shards, -1) == Finish.RUNNING
        alive = running.any(axis=-1) & (rows < len(first) - fill).reshape(running.shape[:2])
        if not alive.any():
            break
        half = -(-alive.shape[1] // 2)
        if fewest <= half * shards < len(rows) and alive.sum(axis=1).max() <= half:
            done.record(rows, state)
            # Finished questions fill up the half, so that its size does not depend on their number.
            kept = np.sort(np.argsort(~alive, axis=1, kind="stable")[:, :half])
            part = device_put(mesh, kept, P("batch"))
            state, ancestors, keys = _of_questions(state, ancestors, keys, part, mesh)
            rows = np.take_along_axis(rows.reshape(alive.shape), kept, axis=1).reshape(-1)
    done.record(rows, state)
    return done.completions()


class _Results:
    """What has been sampled for all questions, on the host."""

    def __init__(self, nodes: tuple[int, ...], max_tokens: int) -> None:
        self.tokens = np.zeros((*nodes, max_tokens), np.int32)
        self.log_probabilities = np.zeros((*nodes, max_tokens), np.float32)
        self.lengths = np.zeros(nodes, np.int32)
        self.finish = np.zeros(nodes, np.int32)

    def record(self, rows: Int[np.ndarray, " R"], state: DecodeState) -> None:
        """Takes over what `state` holds; its rows are those of the questions given."""
        size = state.size
        self.tokens[rows, ..., :size] = to_host(state.tokens)
        self.log_probabilities[rows, ..., :size] = to_host(state.log_probabilities)
        self.lengths[rows] = to_host(state.lengths)
        self.finish[rows] = to_host(state.finish)

    def completions(self) -> Completions:
        longest = int(self.lengths.max())
        return Completions(
            tokens=self.tokens[..., :longest],
            log_probabilities=self.log_probabilities[..., :longest],
            lengths=self.lengths,
            finish=self.finish,
        )


@functools.partial(jax.jit, static_argnames=("model", "chunk"), donate_argnames="state")
def decode_chunk(
    model: Llama,
    variables: Params,
    ancestors: tuple[Level, ...],
    state: DecodeState,
    keys: Key[Array, "*N"],
    parameters: SamplingParameters,
    stop_ids: Int[Array, "stops"],
    max_tokens: Int[Array, ""],
    chunk: int,
) -> DecodeState:
    """Up to `chunk` steps; fewer when all nodes have finished or the buffers are full.

    Donates `state`. One program per shape of the levels, whatever the sampling settings.
    """
    end = jnp.minimum(state.step + chunk, state.size)

    def go_on(state: DecodeState) -> Array:
        return (state.step < end) & jnp.any(state.finish == Finish.RUNNING)

    def advance(state: DecodeState) -> DecodeState:
        return _step(model, variables, ancestors, state, keys, parameters, stop_ids, max_tokens)

    return constrain(model.mesh, jax.lax.while_loop(go_on, advance, state), state.axes)


def _step(
    model: Llama,
    variables: Params,
    ancestors: tuple[Level, ...],
    state: DecodeState,
    keys: Key[Array, "*N"],
    parameters: SamplingParameters,
    stop_ids: Int[Array, "stops"],
    max_tokens: Int[Array, ""],
) -> DecodeState:
    ones = jnp.ones(state.last.shape, jnp.int32)
    hidden, token_level = forward(
        model, variables, state.last[..., None], ones, (*ancestors, state.level)
    )
    # As rows of one matrix, because the short axes of the nodes would be padded to whole tiles.
    rows = hidden.reshape(-1, hidden.shape[-1])
    # Drawing looks at the whole vocabulary, several times.
    logits = constrain(model.mesh, next_logits(model, variables, rows), P("batch"))
    position_keys = jax.vmap(jax.random.fold_in, (0, None))(keys.reshape(-1), state.step)
    drawn = draw(logits, position_keys, parameters)
    tokens, log_probabilities = (x.reshape(state.last.shape) for x in drawn)

    running = state.finish == Finish.RUNNING
    stopped = jnp.any(
        tokens[..., None] == jnp.broadcast_to(stop_ids, (*tokens.shape, stop_ids.size)), axis=-1
    )
    exhausted = state.step + 1 >= max_tokens
    finish = jnp.where(stopped, Finish.STOP, jnp.where(exhausted, Finish.LENGTH, Finish.RUNNING))

    def record(buffer: Array, value: Array) -> Array:
        update = jnp.where(running, value, jnp.zeros_like(value))[..., None]
        return jax.lax.dynamic_update_slice_in_dim(buffer, update, state.step, buffer.ndim - 1)

    state = DecodeState(
        level=append(state.level, token_level, state.step),
        tokens=record(state.tokens, tokens),
        log_probabilities=record(state.log_probabilities, log_probabilities),
        lengths=state.lengths + running.astype(jnp.int32),
        finish=jnp.where(running, finish, state.finish).astype(jnp.int32),
        last=tokens,
        step=state.step + 1,
    )
    return constrain(model.mesh, state, state.axes)


@functools.partial(jax.jit, static_argnames=("model", "size"))
def initial_state(model: Llama, first: Int[Array, "*N"], size: int) -> DecodeState:
    """Nothing decoded yet, and room for `size` tokens a node."""
    state = DecodeState(
        level=zeros(level_spec(model, first.shape, size)),
        tokens=jnp.zeros((*first.shape, size), jnp.int32),
        log_probabilities=jnp.zeros((*first.shape, size), jnp.float32),
        lengths=jnp.zeros(first.shape, jnp.int32),
        finish=jnp.full(first.shape, Finish.RUNNING, jnp.int32),
        last=first,
        step=jnp.int32(0),
    )
    return constrain(model.mesh, state, state.axes)


@functools.partial(jax.jit, static_argnames="mesh")
def _of_questions(
    state: DecodeState,
    ancestors: tuple[Level, ...],
    keys: Key[Array, "*N"],
    kept: Int[Array, "shards R"],
    mesh: Mesh | None,
) -> tuple[DecodeState, tuple[Level, ...], Key[Array, "*M"]]:
    """The part of a batch that belongs to some of its questions: to those that are `kept` of each
    of its shards, counted within the shard."""
    shards, rows = kept.shape

    def of(x: Array, axis: int = 0) -> Array:
        before, after = x.shape[:axis], x.shape[axis + 1 :]
        split = x.reshape(*before, shards, x.shape[axis] // shards, *after)
        taken = jax.vmap(lambda part, rows: jnp.take(part, rows, axis=axis), (axis, 0), axis)(
            split, kept
        )
        return taken.reshape(*before, shards * rows, *after)

    def of_level(level: Level) -> Level:
        if not level.leading:
            return level
        part = Level(of(level.keys, 1), of(level.values, 1), of(level.lengths))
        return constrain(mesh, part, level_axes(len(level.leading)))

    part = DecodeState(
        level=of_level(state.level),
        tokens=of(state.tokens),
        log_probabilities=of(state.log_probabilities),
        lengths=of(state.lengths),
        finish=of(state.finish),
        last=of(state.last),
        step=state.step,
    )
    return (
        constrain(mesh, part, part.axes),
        tuple(of_level(level) for level in ancestors),
        constrain(mesh, of(keys), P("batch")),
    )


@functools.partial(jax.jit, static_argnames=("size", "mesh"))
def grow(state: DecodeState, size: int, mesh: Mesh | None) -> DecodeState:
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
    return constrain(mesh, state, state.axes)
