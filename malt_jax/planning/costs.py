"""Work and communication of a program on one device, read from its jaxpr and from its HLO."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from malt_jax.sharding.mesh import Sizes


class Work(NamedTuple):
    """Work of one device in one call of a program."""

    flops: float
    """Operations of its matrix products."""
    bytes_accessed: float
    """Bytes that its matrix products read and write."""

    def plus(self, other: Work, times: float = 1) -> Work:
        return Work(
            self.flops + times * other.flops,
            self.bytes_accessed + times * other.bytes_accessed,
        )


def work(jaxpr: Any, mesh: Sizes, loop_steps: int = 1) -> Work:
    """The work of all matrix products of a program, on one device of a mesh.

    A product of [B, M, K] and [B, K, N] takes 2·B·M·N·K operations; its operands are read and its
    result is written once, and everything else is taken to be fused with one of these. Every
    iteration of a scan counts, `loop_steps` iterations of a while loop, of a conditional the
    costliest branch, and what a backward pass computes again. (XLA's own analysis of a compiled
    program counts the body of a loop once.)

    Weights, which are matrices in products without batch axes, are split over "tensor" alone, since
    "fsdp" gathers them; all else is taken to be split evenly over all devices.
    """
    total = Work(0.0, 0.0)
    for equation in jaxpr.eqns:
        name, parameters = equation.primitive.name, equation.params
        if name == "dot_general":
            total = total.plus(_product(equation, mesh))
        elif name == "cond":
            branches = [work(branch.jaxpr, mesh, loop_steps) for branch in parameters["branches"]]
            total = total.plus(max(branches))
        else:
            times = {"scan": parameters.get("length", 1), "while": loop_steps}.get(name, 1)
            for part in _jaxprs(parameters.values()):
                total = total.plus(work(part, mesh, loop_steps), times)
    return total


def _product(equation: Any, mesh: Sizes) -> Work:
    (contracted, _), (batch, _) = equation.params["dimension_numbers"]
    left, result = equation.invars[0].aval, equation.outvars[0].aval
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


_ITEM_BITS = {"pred": 8, "bf16": 16}
_ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+|f8\w+|c64|c128)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*)$")
_OPERATION = re.compile(r"(?:^|[\s)}\]])([a-z][a-z0-9-]*)\(([^()]*)\)(.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")


def received_bytes(hlo: str, loop_steps: int = 1) -> float:
    """Bytes that one device receives from others in one call of a program.

    hlo:        text of the compiled module, after partitioning.
    loop_steps: iterations of a loop whose condition is no count.

    Of n devices with S bytes each, every device receives (n-1)·S in an all-gather, S·(n-1)/n in a
    reduce-scatter and an all-to-all, twice that in an all-reduce, which is the one after the other,
    and S in a permutation. No algorithm does with less (Chan, Heimlich, Purkayastha, van de Geijn
    2007, "Collective communication: theory, practice, and experience").
    Loops count with their iterations, a conditional with the branch that moves most.
    """
    computations, entry = _computations(hlo)
    devices = _number(r"num_partitions=(\d+)", hlo) or 1

    @functools.cache
    def moved(name: str) -> float:
        lines, shapes = computations[name]
        return sum(_collective_bytes(line, shapes, devices) + inside(line) for line in lines)

    def inside(instruction: _Instruction) -> float:
        if instruction.operation.endswith(("-done", "-update")):
            return 0.0
        if branches := _BRANCHES.search(instruction.attributes):
            return max(moved(name.strip().lstrip("%")) for name in branches[1].split(","))
        called = dict(_CALLED.findall(instruction.attributes))
        if instruction.operation == "conditional":
            return max(map(moved, called.values()))
        total = sum(map(moved, called.values()))
        if instruction.operation == "while":
            total *= _iterations(instruction, computations[called["condition"]]) or loop_steps
        return total

    return moved(entry)


class _Instruction(NamedTuple):
    operation: str
    operands: tuple[str, ...]
    attributes: str
    text: str


class _Computation(NamedTuple):
    lines: list[_Instruction]
    shapes: dict[str, str]
    """The type of every value."""


def _computations(hlo: str) -> tuple[dict[str, _Computation], str]:
    """The computations of a module by name, and the name of the first to run."""
    found: dict[str, _Computation] = {}
    entry, current = "", _Computation([], {})
    for line in hlo.splitlines():
        if begins := _COMPUTATION.match(line):
            current = found[begins[2]] = _Computation([], {})
            entry = begins[2] if begins[1] else entry
        elif (instruction := _INSTRUCTION.match(line)) and (
            operation := _OPERATION.search(instruction[2])
        ):
            name, text = instruction.groups()
            current.shapes[name] = text[: operation.start(1)]
            operands = tuple(re.findall(r"%?([\w.-]+)(?:,|$)", operation[2]))
            current.lines.append(_Instruction(operation[1], operands, operation[3], line))
    return found, entry


def _collective_bytes(instruction: _Instruction, shapes: Mapping[str, str], devices: int) -> float:
    size = sum(_bytes(shapes.get(name, "")) for name in instruction.operands)
    n = _group_size(instruction.attributes, devices)
    match instruction.operation.removesuffix("-start"):
        case "all-gather":
            return (n - 1) * size
        case "all-reduce":
            return 2 * (n - 1) / n * size
        case "reduce-scatter" | "all-to-all" | "ragged-all-to-all":
            return (n - 1) / n * size
        case "collective-permute" | "collective-broadcast":
            return size
    return 0.0


def _group_size(attributes: str, devices: int) -> int:
    """The number of devices that take part, in any of the notations for groups."""
    if groups := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return groups[1].count(",") + 1
    if groups := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(groups[1])
    if groups := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", groups[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", groups[2]))
    return devices


def _iterations(loop: _Instruction, condition: _Computation) -> int | None:
    """Iterations of a loop that counts up to a constant from 0."""
    if known := _number(r'"known_trip_count":\{"n":"(\d+)"\}', loop.attributes):
        return known
    root = condition.lines[-1]
    constants = [_number(r"constant\((\d+)\)", line.text) for line in condition.lines]
    counts = [constant for constant in constants if constant is not None]
    compares = root.operation == "compare" or "compare" in root.text.partition(" = ")[0]
    return counts[0] if compares and len(counts) == 1 else None


def _number(pattern: str, text: str) -> int | None:
    found = re.search(pattern, text)
    return int(found[1]) if found else None


def _bytes(shape: str) -> float:
    total = 0.0
    for kind, sides in _ARRAY.findall(shape):
        bits = _ITEM_BITS.get(kind) or int(re.findall(r"\d+", kind)[0])
        total += bits / 8 * math.prod(int(side) for side in sides.split(",") if side)
    return total
