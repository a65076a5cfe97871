"""TPU topologies to compile for without having them, by the names that Google Cloud uses."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import re
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from malt_jax.command import expect_no_tpu
from malt_jax.errors import UserError

_PLANE = ("1x1", "2x2", "2x4", "4x4", "4x8", "8x8", "8x16", "16x16")
_SPACE = (
    *("2x2x1", "2x2x2", "2x2x4", "2x4x4", "4x4x4", "4x4x8", "4x8x8", "8x8x8"),
    *("8x8x16", "8x16x16"),
)
SHAPES: dict[str, tuple[str, ...]] = {
    "v4": _SPACE,
    "v5e": _PLANE,
    "v5p": _SPACE,
    "v6e": _PLANE,
    "tpu7x": _SPACE,
}
"""Shapes of a slice, in chips, by generation; those that the generations' pages of
https://docs.cloud.google.com/tpu/docs list."""

_SIZES = {"": 0, "K": 1, "M": 2, "G": 3, "T": 4}


@dataclasses.dataclass(frozen=True)
class Topology:
    """One or several equal slices of a TPU pod."""

    generation: str
    shape: str
    slices: int = 1

    @property
    def name(self) -> str:
        slices = f"{self.slices} x " if self.slices > 1 else ""
        return f"{slices}{self.generation}:{self.shape}"

    @property
    def chips(self) -> int:
        count = self.slices
        for side in self.shape.split("x"):
            count *= int(side)
        return count


def parse_topology(name: str, slices: int = 1) -> Topology:
    """The topology with a name such as "v5e:4x4".

    Raises UserError for one that does not exist, listing those that do.
    """
    generation, _, shape = name.strip().lower().partition(":")
    if shape not in SHAPES.get(generation, ()):
        listed = "\n".join(f"  {known}: {', '.join(SHAPES[known])}" for known in SHAPES)
        raise UserError(
            f"--topology {name!r} does not exist. Write GENERATION:SHAPE, the shape in chips, such"
            f" as v5e:4x4. There are:\n{listed}"
        )
    if slices < 1:
        raise UserError(f"--slices is {slices}, but must be 1 or more")
    return Topology(generation, shape, slices)


def describe_devices(topology: Topology) -> list[Any]:
    """The topology's devices, for the compiler alone: nothing can run on them.

    Raises UserError when libtpu, which holds the compiler, is not installed or refuses.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise UserError(
            f"compiling for {topology.name} needs libtpu, Google's TPU compiler, which any Linux"
            " machine can run: pip install 'jax[tpu]', or make install EXTRAS=tpu"
        )
    expect_no_tpu()
    options: dict[str, Any] = {}
    if topology.shape == "1x1":
        options["chips_per_host_bounds"] = (1, 1, 1)
    if topology.generation == "v4":  # as on real machines, both cores of a chip are one device
        options["chip_config_name"] = "megacore"
    if topology.slices > 1:
        options["num_slices"] = topology.slices
    name = f"{topology.generation}:{topology.shape}"
    try:
        described = topologies.get_topology_desc(name, "tpu", **options)
    except (RuntimeError, ValueError) as error:
        raise UserError(f"libtpu cannot describe {topology.name}: {error}") from None
    return list(described.devices)


def usable_hbm(device: Any) -> int | None:
    """Bytes of a device's memory that a program may use; None where nothing tells.

    The TPU's compiler is asked for a program that fits nowhere; its refusal names the limit. Other
    devices report their allocator's limit themselves.
    """
    if device.platform != "tpu":
        statistics = device.memory_stats() or {}
        return statistics.get("bytes_limit")
    size = jax.ShapeDtypeStruct((1 << 45,), jnp.int8, sharding=SingleDeviceSharding(device))
    try:
        jax.jit(lambda x: x * 2).lower(size).compile()
    except jax.errors.JaxRuntimeError as error:
        if excess := out_of_memory(str(error)):
            return excess[1]
    return None


def compilations_at_once(device: Any) -> int:
    """How many programs its compiler can compile side by side.

    The one for tpu7x in libtpu 0.0.42 overflowed a stack in 4 of 7 attempts with two programs at
    once, which ends the process, and in none of 10 with one.
    """
    return 1 if device.device_kind == "TPU7x" else os.cpu_count() or 1


def out_of_memory(message: str) -> tuple[int, int] | None:
    """Bytes needed and bytes available, of a compiler's message about too little memory."""
    number = r"([\d.]+)([KMGT]?)"
    for pattern in (
        rf"Used {number} of {number} hbm",
        rf"\({number}\) exceeds available HBM \({number}\)",
        rf"{number}i?B? exceeds {number}",
    ):
        if found := re.search(pattern, message):
            need, need_unit, limit, limit_unit = found.groups()
            return _bytes(need, need_unit), _bytes(limit, limit_unit)
    return None


def _bytes(number: str, unit: str) -> int:
    return round(float(number) * 1024 ** _SIZES[unit])
