"""What a compiled program moves between devices, read in its text (HLO)."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Mapping

_ITEM_BITS = {"pred": 8, "bf16": 16}
_ARRAY = re.compile(r"\b(pred|bf16|[suf]\d+|f8\w+|c64|c128)\[([\d,]*)\]")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.-]+) = (.*)$")
_OPERATION = re.compile(r"(?:^|[\s)}\]])([a-z][a-z0-9-]*)\(([^()]*)\)(.*)$")
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.-]+) .*\{$")
_CALLED = re.compile(
    r"\b(calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.-]+)"
)
_BRANCHES = re.compile(r"branch_computations=\{([^}]*)\}")
_COLLECTIVE = re.compile(
    r"(all-reduce|all-gather|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute"
    r"|collective-broadcast)(-start)?"
)


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
        here = computations[name]
        return sum(_moved(line, here.shapes, devices) + inside(line) for line in here.lines)

    def inside(instruction: _Instruction) -> float:
        if instruction.operation.endswith(("-done", "-update")):
            return 0.0
        if branches := _BRANCHES.search(instruction.rest):
            return max(moved(name.strip().lstrip("%")) for name in branches[1].split(","))
        called = dict(_CALLED.findall(instruction.rest))
        if instruction.operation == "conditional":
            return max(map(moved, called.values()))
        total = sum(map(moved, called.values()))
        if instruction.operation == "while":
            total *= _trips(instruction, computations[called["condition"]]) or loop_steps
        return total

    return moved(entry)


@dataclasses.dataclass(frozen=True)
class _Instruction:
    name: str
    operation: str
    operands: tuple[str, ...]
    rest: str
    """What is behind the operands: attributes."""
    text: str


@dataclasses.dataclass(frozen=True)
class _Computation:
    lines: list[_Instruction]
    shapes: dict[str, str]
    """The type of every value."""


def _computations(hlo: str) -> tuple[dict[str, _Computation], str]:
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
            current.lines.append(_Instruction(name, operation[1], operands, operation[3], text))
    return found, entry


def _moved(instruction: _Instruction, shapes: Mapping[str, str], devices: int) -> float:
    if not (collective := _COLLECTIVE.fullmatch(instruction.operation)):
        return 0.0
    size = sum(_bytes(shapes.get(name, "")) for name in instruction.operands)
    n = _group_size(instruction.rest, devices)
    match collective[1]:
        case "all-gather":
            return (n - 1) * size
        case "all-reduce":
            return 2 * (n - 1) / n * size
        case "reduce-scatter" | "all-to-all" | "ragged-all-to-all":
            return (n - 1) / n * size
    return size


def _group_size(attributes: str, devices: int) -> int:
    """How many devices take part together, in any of the notations for groups."""
    if groups := re.search(r"replica_groups=\{\{([\d,]+)\}", attributes):
        return groups[1].count(",") + 1
    if groups := re.search(r"replica_groups=\[\d+,(\d+)\]", attributes):
        return int(groups[1])
    if groups := re.search(r"replica_groups=mesh\[([^\]]*)\][^{]*\{([^}]*)\}", attributes):
        sizes = dict(re.findall(r"'([^']+)'=(\d+)", groups[1]))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'([^']+)'", groups[2]))
    return devices


def _trips(instruction: _Instruction, condition: _Computation) -> int | None:
    """Iterations of a loop that counts up to a constant from 0."""
    if known := _number(r'"known_trip_count":\{"n":"(\d+)"\}', instruction.rest):
        return known
    root = condition.lines[-1]
    constants = [_number(r"constant\((\d+)\)", line.text) for line in condition.lines]
    counts = [constant for constant in constants if constant is not None]
    compares = root.operation == "compare" or "compare" in root.name
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
