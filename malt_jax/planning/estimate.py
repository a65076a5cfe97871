"""The memory and the time of one compiled program of a run."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from typing import Any, Self

import jax

from malt_jax.planning.costs import Work, received_bytes, work
from malt_jax.planning.programs import Program
from malt_jax.planning.targets import Target, out_of_memory
from malt_jax.sharding.calls import Call, device_bytes


@dataclasses.dataclass(frozen=True)
class Compiled:
    """Needs of a compiled program on one device in one call, in bytes."""

    arguments: int
    temporaries: int
    output: int
    """Without the arrays that take the memory of donated arguments."""
    received: float
    """From other devices."""

    @property
    def memory(self) -> int:
        return self.arguments + self.temporaries + self.output


@dataclasses.dataclass(frozen=True)
class Estimate:
    """A program's needs in one call on one device."""

    program: Program
    fits: bool
    compiled: Compiled | None
    """None where the compiler refused; it then told no more than the total."""
    resident: int
    """Bytes of arrays that stay on the device without being arguments."""
    hbm_bytes: int
    """All memory that is taken during the call."""
    work: Work
    seconds: float | None
    """At the chip's published peaks; None where they are not known."""
    limit: str | None
    """The longest of the roofline's times: compute, memory or network."""

    @classmethod
    def of(cls, program: Program, target: Target, needed: Compiled | int, done: Work) -> Estimate:
        resident = device_bytes(program.call.resident)
        compiled = needed if isinstance(needed, Compiled) else None
        received = compiled.received if compiled else 0.0
        seconds, limit = None, None
        if target.chip is not None:
            seconds, limit = target.chip.seconds(done.flops, done.bytes_accessed, received)
        total = resident + (needed.memory if isinstance(needed, Compiled) else needed)
        fits = compiled is not None and (target.hbm_limit is None or total <= target.hbm_limit)
        return cls(program, fits, compiled, resident, total, done, seconds, limit)


def compiled(program: Program) -> Compiled | int:
    """Compiles a program. Returns its needs, or all its memory if that is more than there is."""
    call = program.call
    try:
        executable = call.function.lower(*call.arguments).compile()
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
        received_bytes(executable.as_text(), call.loop_steps),
    )


class Compiler:
    """Compiles programs for a target, equal ones once and several in parallel.

    compile: a function in place of `compiled`, for tests.
    """

    def __init__(
        self, target: Target, compile: Callable[[Program], Compiled | int] | None = None
    ) -> None:
        self.target = target
        self._compile = compile or compiled
        self._pool = ThreadPoolExecutor(target.compilations_at_once)
        self._known: dict[Any, Future[Compiled | int]] = {}
        self._jaxprs: dict[Any, Any] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def start(self, program: Program) -> Future[Compiled | int]:
        """Compiles a program unless an equal one has been."""
        key = _signature(program.call)
        if key not in self._known:
            self._known[key] = self._pool.submit(self._compile, program)
        return self._known[key]

    def work(self, program: Program) -> Work:
        """The work of one call. Equal shapes on different meshes are traced once."""
        call = program.call
        leaves, structure = jax.tree.flatten(call.arguments[1:])  # the first has the mesh
        shapes = [(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x for x in leaves]
        key = call.function, structure, *shapes
        if key not in self._jaxprs:
            self._jaxprs[key] = call.function.trace(*call.arguments).jaxpr.jaxpr
        return work(self._jaxprs[key], program.mesh, call.loop_steps)

    def estimates(
        self, programs: Sequence[Program], on_done: Callable[[int, Program], None]
    ) -> tuple[Estimate, ...]:
        """The needs of programs in their order.

        on_done: called with the number of programs that are done, and the last of them.
        """
        futures = [self.start(program) for program in programs]
        done = 0
        for future in as_completed(set(futures)):
            future.result()  # raises at once
            done += futures.count(future)
            on_done(done, programs[futures.index(future)])
        return tuple(
            Estimate.of(program, self.target, future.result(), self.work(program))
            for program, future in zip(programs, futures, strict=True)
        )


def _signature(call: Call) -> Any:
    """Equal for calls that compile to the same program."""
    leaves, structure = jax.tree.flatten(call.arguments)
    return call.function, structure, call.loop_steps, tuple(leaves)


@contextlib.contextmanager
def least_effort() -> Iterator[None]:
    """Compiler settings for programs that nobody will run.

    The compiler spends as little time on fast code as it can, which halves its time; the memory of
    its programs differs by a few percent (docs/planning.md). No program is kept in JAX's cache.
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
