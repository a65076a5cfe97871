"""What a program computes and moves on one device, counted in its jaxpr."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

from malt_jax.sharding.mesh import Sizes


@dataclasses.dataclass(frozen=True)
class Work:
    """Work of one device in one call of a program."""

    flops: float
    """Operations of its matrix products."""
    bytes_accessed: float
    """Bytes that its matrix products read and write."""

    def __add__(self, other: Work) -> Work:
        return Work(self.flops + other.flops, self.bytes_accessed + other.bytes_accessed)

    def times(self, count: float) -> Work:
        return Work(count * self.flops, count * self.bytes_accessed)


def work(jaxpr: Any, mesh: Sizes, loop_steps: int = 1) -> Work:
    """The work of all matrix products of a program, on one device of a mesh.

    A product of [B, M, K] and [B, K, N] takes 2·B·M·N·K operations; its operands are read
    and its result is written once, and everything else is taken to be fused with one of these.
    Every iteration of a scan counts, and so does what a backward pass computes again, `loop_steps`
    iterations of a while loop, and of a conditional its costliest branch. (XLA's own analysis of a
    compiled program counts the body of a loop once.)

    Weights, which are matrices in products without batch axes, are split over "tensor" alone, since
    "fsdp" gathers them; all else is taken to be split evenly over all devices.
    """
    total = Work(0.0, 0.0)
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            total += _product(equation, mesh)
        elif name == "cond":
            branches = [work(branch.jaxpr, mesh, loop_steps) for branch in parameters["branches"]]
            total += max(branches, key=lambda branch: branch.flops)
        else:
            times = {"scan": parameters.get("length", 1), "while": loop_steps}.get(name, 1)
            for part in _jaxprs(parameters.values()):
                total += work(part, mesh, loop_steps).times(times)
    return total


def _product(equation: Any, mesh: Sizes) -> Work:
    (contracted, _), (batch, _) = equation.params["dimension_numbers"]
    left = equation.invars[0].aval
    result = equation.outvars[0].aval
    flops = 2.0 * math.prod(result.shape) * math.prod(left.shape[axis] for axis in contracted)
    moved = 0.0
    for variable in (*equation.invars, *equation.outvars):
        array = variable.aval
        is_weight = not batch and array.ndim == 2
        parts = mesh.tensor if is_weight else mesh.devices
        moved += array.size * array.dtype.itemsize / parts
    return Work(flops / mesh.devices, moved)


def _jaxprs(values: Any) -> Iterator[Any]:
    for value in values:
        if hasattr(value, "eqns"):
            yield value
        elif hasattr(value, "jaxpr"):
            yield value.jaxpr
        elif isinstance(value, (tuple, list)):
            yield from _jaxprs(value)
