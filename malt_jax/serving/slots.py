"""Decoding for requests that come and go: a batch of slots, and the programs that change it.

A slot is a row of the batch. It is free, or it holds one completion: its prompt and the tokens so
far in one cache level, and sampling parameters of its own. All slots decode together, whatever
their roles and lengths.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Int, Key

from malt_jax.model.levels import Level, level_spec
from malt_jax.model.llama import Llama, Params, forward
from malt_jax.model.lora import select_adapters
from malt_jax.sampling.cache import append_rows
from malt_jax.sampling.completions import Finish
from malt_jax.sampling.decode import draw_next
from malt_jax.sampling.token import SamplingParameters
from malt_jax.sharding.rules import array_specs, constrain, zeros


class Entry(flax.struct.PyTreeNode):
    """One completion, or one a slot (`*B`) with a leading axis."""

    last: Int[Array, "*B"]
    """The token to feed next: at the start the last token of the prompt."""
    key: Key[Array, "*B"]
    """The token at position t is drawn with fold_in(key, t)."""
    adapter: Int[Array, "*B"]
    """The number of its adapter; see `variables_of`."""
    drawn: Int[Array, "*B"]
    """Tokens drawn so far."""
    running: Bool[Array, "*B"]
    parameters: SamplingParameters


class Slots(flax.struct.PyTreeNode):
    """A batch of B slots."""

    level: Level
    """Prompts, and tokens fed so far, [L, B, ...]; lengths of free slots have no meaning."""
    entries: Entry

    @property
    def size(self) -> int:
        """Tokens that a slot has room for."""
        return self.level.size


class Drawn(NamedTuple):
    """Tokens that `decode_slots` drew, [B, chunk]; of each row the first `counts` ones."""

    tokens: Int[Array, "B chunk"]
    counts: Int[Array, "B"]
    finish: Int[Array, "B"]
    """Values of `Finish`; RUNNING for free slots too."""


def variables_of(variables: Params, adapters: int, index: Int[Array, "B"]) -> Params:
    """The model's variables for a batch whose rows have these adapter numbers.

    variables: with the adapters as `join_adapters` joins them, or without any.
    adapters:  their number. Rows with numbers 0 to `adapters` - 1 have that adapter; other numbers
               stand for the base model.
    """
    if adapters == 0:
        return variables
    return {**variables, "adapter": select_adapters(variables["adapter"], index, adapters)}


def slots_spec(model: Llama, slots: int, size: int, stop_ids: int) -> Any:
    """The ArraySpecs of `Slots` with room for `size` tokens a slot."""
    like = jax.eval_shape(lambda: _free_entries(slots, stop_ids))
    axes = jax.tree.map(lambda _: P("batch"), like)
    axes = axes.replace(parameters=axes.parameters.replace(stop_ids=P()))
    specs: Any = Slots(level_spec(model, (slots,), size), array_specs(like, axes))
    return specs


def _free_entries(slots: int, stop_ids: int) -> Entry:
    whole, real = jnp.zeros(slots, jnp.int32), jnp.zeros(slots, jnp.float32)
    parameters = SamplingParameters(real, real, whole, jnp.zeros(stop_ids, jnp.int32), whole)
    keys = jax.random.split(jax.random.key(0), slots)
    return Entry(whole, keys, whole, whole, jnp.zeros(slots, bool), parameters)


@functools.partial(jax.jit, static_argnames=("model", "slots", "size"))
def free_slots(model: Llama, slots: int, size: int, stop_ids: Int[Array, " stops"]) -> Slots:
    """Free slots with room for `size` tokens each.

    stop_ids: tokens that end any completion.
    """
    spec = slots_spec(model, slots, size, stop_ids.size)
    entries = _free_entries(slots, stop_ids.size)
    parameters = entries.parameters.replace(stop_ids=stop_ids)
    made = Slots(zeros(spec.level), entries.replace(parameters=parameters))
    return constrain(model.mesh, made, spec)


@functools.partial(jax.jit, static_argnames="model", donate_argnames="slots")
def enter(model: Llama, slots: Slots, slot: Int[Array, ""], prompt: Level, entry: Entry) -> Slots:
    """Puts a completion into a free slot. Donates `slots`.

    prompt: its first row is the cache of the prompt without the last token; its size is at most
            that of the slots. One program for each pair of sizes.
    """
    at = (0, slot, 0, 0, 0)
    level = Level(
        jax.lax.dynamic_update_slice(slots.level.keys, prompt.keys[:, :1], at),
        jax.lax.dynamic_update_slice(slots.level.values, prompt.values[:, :1], at),
        slots.level.lengths.at[slot].set(prompt.lengths[0]),
    )
    stop_ids = slots.entries.parameters.stop_ids

    def put(rows: Array, value: Array) -> Array:
        return rows.at[slot].set(value)

    entries = jax.tree.map(put, _without_stops(slots.entries), _without_stops(entry))
    entries = entries.replace(parameters=entries.parameters.replace(stop_ids=stop_ids))
    return _constrain(model, Slots(level, entries))


def _without_stops(entry: Entry) -> Entry:
    """The stop ids belong to all slots together."""
    return entry.replace(parameters=entry.parameters.replace(stop_ids=None))


@functools.partial(jax.jit, static_argnames="model", donate_argnames="slots")
def leave(model: Llama, slots: Slots, leaving: Bool[Array, "B"]) -> Slots:
    """Frees slots whose completions nobody waits for any more. Donates `slots`."""
    running = slots.entries.running & ~leaving
    return _constrain(model, slots.replace(entries=slots.entries.replace(running=running)))


@functools.partial(jax.jit, static_argnames=("model", "size"))
def resize(model: Llama, slots: Slots, size: int) -> Slots:
    """The slots with room for `size` tokens each, at least as many as any running one has."""
    level, more = slots.level, size - slots.size

    def to_size(x: Array, axis: int) -> Array:
        if more <= 0:
            return jax.lax.slice_in_dim(x, 0, size, axis=axis)
        return jnp.pad(x, [(0, more if i == axis else 0) for i in range(x.ndim)])

    keys = to_size(level.keys, level.keys.ndim - 1)
    values = to_size(level.values, level.values.ndim - 2)
    return _constrain(model, slots.replace(level=Level(keys, values, level.lengths)))


@functools.partial(jax.jit, static_argnames=("model", "adapters", "chunk"), donate_argnames="slots")
def decode_slots(
    model: Llama, variables: Params, slots: Slots, adapters: int, chunk: int
) -> tuple[Slots, Drawn]:
    """Up to `chunk` steps of all slots; fewer when no slot is running any more. Donates `slots`.

    adapters: as in `variables_of`.

    Every running slot needs room for `chunk` more tokens. One program for each size of the slots.
    """
    weights = variables_of(variables, adapters, slots.entries.adapter)
    count = len(slots.entries.last)

    def go_on(carry: tuple[Slots, Drawn, Array]) -> Array:
        return (carry[2] < chunk) & jnp.any(carry[0].entries.running)

    def advance(carry: tuple[Slots, Drawn, Array]) -> tuple[Slots, Drawn, Array]:
        slots, drawn, step = carry
        running = slots.entries.running
        slots, tokens, finish = _step(model, weights, slots)
        buffer = jax.lax.dynamic_update_slice(drawn.tokens, tokens[:, None], (0, step))
        counts = drawn.counts + running.astype(jnp.int32)
        drawn = Drawn(buffer, counts, jnp.where(running, finish, drawn.finish))
        return slots, drawn, step + 1

    nothing = jnp.zeros(count, jnp.int32)
    drawn = Drawn(jnp.zeros((count, chunk), jnp.int32), nothing, nothing)
    slots, drawn, _ = jax.lax.while_loop(go_on, advance, (slots, drawn, jnp.int32(0)))
    return slots, constrain(model.mesh, drawn, P())


def _step(
    model: Llama, weights: Params, slots: Slots
) -> tuple[Slots, Int[Array, "B"], Int[Array, "B"]]:
    """One step of every slot: the slots, the tokens drawn and the completions' `Finish`."""
    entries = slots.entries
    ones = jnp.ones_like(entries.last)
    hidden, token = forward(model, weights, entries.last[:, None], ones, (slots.level,))
    tokens, _, finish = draw_next(
        model, weights, hidden[:, 0], entries.key, entries.drawn, entries.parameters
    )
    added = entries.running.astype(jnp.int32)
    entries = entries.replace(
        last=jnp.where(entries.running, tokens, entries.last),
        drawn=entries.drawn + added,
        running=entries.running & (finish == Finish.RUNNING),
    )
    level = append_rows(slots.level, token, added)
    return _constrain(model, Slots(level, entries)), tokens, finish


def _constrain(model: Llama, slots: Slots) -> Slots:
    stop_ids = slots.entries.parameters.stop_ids.size
    spec = slots_spec(model, len(slots.entries.last), slots.size, stop_ids)
    return constrain(model.mesh, slots, spec)
