"""Continuous batching on the host: jobs wait, enter free slots, decode together and leave."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Key, UInt32

from malt_jax.model.levels import Level
from malt_jax.model.llama import Llama, Params
from malt_jax.sampling.cache import pad_segments, prefill, segment_specs
from malt_jax.sampling.completions import Finish
from malt_jax.sampling.token import SamplingParameters
from malt_jax.serving.slots import (
    Drawn,
    Entry,
    decode_slots,
    enter,
    free_slots,
    leave,
    resize,
    variables_of,
)
from malt_jax.sharding.rules import batch_shards, device_put, to_host

SMALLEST = 128
"""Tokens that a slot has room for at least: below them another program costs more than it saves."""


@dataclasses.dataclass(frozen=True)
class Weights:
    """A model in memory, with the adapters of several roles or with none.

    variables: the base model, and the adapters as `join_adapters` joins them.
    adapters:  their number.
    """

    model: Llama
    variables: Params
    adapters: int = 0


@dataclasses.dataclass(frozen=True)
class Job:
    """One completion to be drawn.

    prompt:  token ids, at least one.
    weights: number of the model, where there are several.
    adapter: number of the adapter; -1: the base model.
    path:    folded into the server's key, number by number: the key of the completion.
    """

    prompt: Sequence[int]
    weights: int
    adapter: int
    path: tuple[int, ...]
    temperature: float
    top_p: float
    top_k: int
    max_tokens: int
    """Of the completion; the slots have to have room for it and the prompt."""


@dataclasses.dataclass(eq=False)
class Ticket:
    """A job in the engine.

    deliver:   called, in the engine's thread, with new tokens and whether they are the last. None
               instead of the latter: the job was dropped, because the engine has stopped.
    cancelled: nobody waits for it any more. Any thread may set it.
    """

    job: Job
    deliver: Callable[[list[int], Finish | None], None]
    cancelled: bool = False
    drawn: int = 0
    """Tokens so far."""


@jax.jit
def job_key(key: Key[Array, ""], path: UInt32[Array, "P"]) -> Key[Array, ""]:
    """The key with the numbers of a path folded in, one after the other."""
    for number in path:
        key = jax.random.fold_in(key, number)
    return key


class Batch:
    """The slots of one model, and the jobs in them.

    Not safe for several threads: all methods belong to one.
    """

    def __init__(
        self,
        weights: Weights,
        key: Key[Array, ""],
        stop_ids: Sequence[int],
        slots: int,
        chunk: int,
    ) -> None:
        """slots: raised to a multiple of the mesh's shards.
        chunk:    tokens that are decoded before jobs may enter or leave.
        """
        model = weights.model
        self._weights, self._key, self._chunk = weights, key, chunk
        self._shards = batch_shards(model.mesh)
        slots += -slots % self._shards
        self._rows: list[Ticket | None] = [None] * slots
        self._prefilling: dict[int, Params] = {}
        """The variables of a prefill by adapter number."""
        self._stop_ids = device_put(model.mesh, jnp.asarray([*stop_ids], jnp.int32), P())
        self._slots = free_slots(model, slots, SMALLEST, self._stop_ids)

    @property
    def tickets(self) -> list[Ticket]:
        """The jobs in slots."""
        return [ticket for ticket in self._rows if ticket is not None]

    @property
    def size(self) -> int:
        """Tokens that a slot has room for."""
        return self._slots.size

    def advance(self, waiting: deque[Ticket]) -> None:
        """Lets cancelled jobs leave and waiting ones enter, and decodes one chunk."""
        self._leave()
        for row in range(len(self._rows)):
            while self._rows[row] is None and waiting:
                ticket = waiting.popleft()
                if not ticket.cancelled:
                    self._enter(row, ticket)
        if self.tickets:
            self._decode()

    def _leave(self) -> None:
        leaving = np.array([ticket is not None and ticket.cancelled for ticket in self._rows])
        if leaving.any():
            self._slots = leave(self._weights.model, self._slots, jnp.asarray(leaving))
            self._rows = [
                None if left else ticket for left, ticket in zip(leaving, self._rows, strict=True)
            ]

    def _enter(self, row: int, ticket: Ticket) -> None:
        self._rows[row] = ticket
        job, model = ticket.job, self._weights.model
        prompt = self._prefill(job)
        self._fit(prompt.size)
        path = jnp.asarray(np.array(job.path, np.uint32))
        parameters = SamplingParameters.create(
            job.temperature, job.top_p, job.top_k, max_tokens=job.max_tokens
        )
        entry = Entry(
            last=jnp.int32(job.prompt[-1]),
            key=job_key(self._key, path),
            adapter=jnp.int32(job.adapter),
            drawn=jnp.int32(0),
            running=jnp.bool_(True),
            parameters=parameters,
        )
        self._slots = enter(model, self._slots, jnp.int32(row), prompt, entry)

    def _prefill(self, job: Job) -> Level:
        """The cache of a prompt without its last token, once a shard of the mesh."""
        weights, mesh = self._weights, self._weights.model.mesh
        rows = [job.prompt[:-1]] * self._shards
        tokens, lengths = pad_segments(rows, (self._shards,))
        specs = segment_specs((self._shards,), tokens.shape[-1])
        tokens, lengths = device_put(mesh, (tokens, lengths), specs)
        if job.adapter not in self._prefilling:
            index = jnp.full(self._shards, job.adapter, jnp.int32)
            found = variables_of(weights.variables, weights.adapters, index)
            self._prefilling[job.adapter] = found
        return prefill(weights.model, self._prefilling[job.adapter], tokens, lengths, ())

    def _decode(self) -> None:
        self._fit()
        weights = self._weights
        self._slots, drawn = decode_slots(
            weights.model, weights.variables, self._slots, weights.adapters, self._chunk
        )
        host: Drawn = to_host(drawn)
        for row, ticket in enumerate(self._rows):
            if ticket is None:
                continue
            finish = Finish(int(host.finish[row]))
            if finish != Finish.RUNNING:
                self._rows[row] = None
            new = host.tokens[row, : host.counts[row]].tolist()
            ticket.drawn += len(new)
            ticket.deliver(new, finish)

    def _fit(self, prompt: int = 0) -> None:
        """Gives the slots room for a new prompt, and for a chunk more than the longest job has.

        The room is a power of two. It shrinks to a quarter at once, not by halves, so that jobs
        that come and go do not make it change back and forth.
        """
        used = [len(x.job.prompt) + x.drawn for x in self.tickets]
        needed = max(prompt, max(used, default=0) + self._chunk, SMALLEST)
        size = 1 << (needed - 1).bit_length()
        if size > self.size or 4 * size <= self.size:
            self._slots = resize(self._weights.model, self._slots, size)

    def warm_up(self, jobs: Sequence[Job]) -> None:
        """Runs jobs, so that the programs for prompts of their lengths are compiled."""
        waiting = deque(Ticket(job, lambda *_: None) for job in jobs)
        while waiting or self.tickets:
            self.advance(waiting)
