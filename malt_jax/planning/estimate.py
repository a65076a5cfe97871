"""One program of a run, compiled: what it takes of a device's memory and time."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import jax

from malt_jax.planning.chips import Chip
from malt_jax.planning.costs import Work, work
from malt_jax.planning.network import received_bytes
from malt_jax.planning.programs import Program
from malt_jax.planning.topologies import out_of_memory


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What a compiled program needs of one device in one call, in bytes."""

    arguments: int
    temporaries: int
    output: int
    """Without what takes the place of donated arguments."""
    received: float
    """From other devices."""


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of a device that are taken while a program runs."""

    arguments: int
    temporaries: int
    output: int
    beside: int
    """What stays there during the call without being its argument."""

    @property
    def total(self) -> int:
        return self.arguments + self.temporaries + self.output + self.beside


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A program's needs, in one call on one device."""

    program: Program
    fits: bool
    hbm_bytes: int
    memory: Memory | None
    """None where the compiler refused; it then told no more than the total."""
    work: Work
    network_bytes: float | None
    """Bytes received from other devices; None where the compiler refused."""
    seconds: float | None
    """At the chip's published peaks; None where they are not known."""
    binds: str | None
    """The limit that this time is due to: compute, memory or network."""


Compile = Callable[[Program], Compiled | int]
"""What a program needs, or only the total of its memory if that is more than there is; without what
stays beside it."""


def estimates(
    programs: Sequence[Program],
    limit: int | None,
    chip: Chip | None,
    compile: Compile,
    *,
    workers: int,
    on_done: Callable[[int, Program], None],
) -> list[Estimate]:
    """Compiles programs, equal ones once, and returns what they need in the same order.

    on_done: called with the number of programs that are done, and the last of them.
    """
    same: dict[Any, list[int]] = {}
    for index, program in enumerate(programs):
        same.setdefault(_signature(program), []).append(index)
    found: dict[int, Estimate] = {}
    with ThreadPoolExecutor(workers) as pool:
        waiting = {pool.submit(compile, programs[indices[0]]): indices for indices in same.values()}
        for future in as_completed(waiting):
            needed = future.result()
            for index in waiting[future]:
                found[index] = _estimate(programs[index], limit, chip, needed)
            on_done(len(found), programs[waiting[future][0]])
    return [found[index] for index in range(len(programs))]


def compiled(program: Program) -> Compiled | int:
    """What the compiler says that a program needs."""
    try:
        executable = program.function.lower(*program.arguments).compile()
    except jax.errors.JaxRuntimeError as error:
        excess = out_of_memory(str(error))
        if excess is None:
            raise
        return excess[0]
    analysis = executable.memory_analysis()
    return Compiled(
        analysis.argument_size_in_bytes,
        analysis.temp_size_in_bytes,
        max(0, analysis.output_size_in_bytes - analysis.alias_size_in_bytes),
        received_bytes(executable.as_text(), program.loop_steps),
    )


def remembering(compile: Compile) -> Compile:
    """Asks `compile` about equal programs once."""
    known: dict[Any, Compiled | int] = {}

    def once(program: Program) -> Compiled | int:
        signature = _signature(program)
        if signature not in known:
            known[signature] = compile(program)
        return known[signature]

    return once


@contextlib.contextmanager
def for_the_compiler_alone() -> Iterator[None]:
    """Settings for programs that nobody will run.

    The compiler spends as little time on fast code as it can, which halves its time; the memory of
    its programs differs by a few percent (docs/planning.md). None of them is kept.
    """
    settings = {"jax_optimization_level": "O0", "jax_enable_compilation_cache": False}
    before = {name: getattr(jax.config, name) for name in settings}
    try:
        for name, value in settings.items():
            jax.config.update(name, value)
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


def shard_bytes(array: Any) -> int:
    """Bytes of an abstract array on one of its devices."""
    shape = array.shape if array.sharding is None else array.sharding.shard_shape(array.shape)
    item = 8 if jax.dtypes.issubdtype(array.dtype, jax.dtypes.prng_key) else array.dtype.itemsize
    return math.prod(shape) * item


def argument_bytes(program: Program) -> int:
    """Bytes of a program's arguments on one device."""
    leaves = jax.tree.leaves(program.arguments)
    return sum(shard_bytes(x) for x in leaves if hasattr(x, "sharding"))


def estimated(program: Program, limit: int | None, chip: Chip | None, compile: Compile) -> Estimate:
    """Compiles a program and returns what it needs."""
    return _estimate(program, limit, chip, compile(program))


def _estimate(
    program: Program, limit: int | None, chip: Chip | None, needed: Compiled | int
) -> Estimate:
    traced = program.function.trace(*program.arguments)
    done = work(traced.jaxpr.jaxpr, program.mesh, program.loop_steps)
    beside = sum(shard_bytes(x) for x in jax.tree.leaves(program.beside))
    memory, received = None, None
    if isinstance(needed, Compiled):
        memory = Memory(needed.arguments, needed.temporaries, needed.output, beside)
        received = needed.received
        total = memory.total
    else:
        total = needed + beside
    fits = memory is not None and (limit is None or total <= limit)
    seconds, binds = None, None
    if chip is not None:
        seconds, binds = chip.seconds(done.flops, done.bytes_accessed, received or 0.0)
    return Estimate(program, fits, total, memory, done, received, seconds, binds)


def _signature(program: Program) -> Any:
    leaves, structure = jax.tree.flatten(program.arguments)
    return (
        program.function,
        structure,
        program.loop_steps,
        tuple(
            (leaf.shape, leaf.dtype, leaf.sharding)
            if isinstance(leaf, jax.ShapeDtypeStruct)
            else leaf
            for leaf in leaves
        ),
    )
