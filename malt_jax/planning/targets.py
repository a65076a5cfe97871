"""The devices that a run is planned for: local ones, or a TPU topology that need not be there."""

from __future__ import annotations

import importlib.util
import math
import os
import re
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding

from malt_jax.command import expect_no_tpu
from malt_jax.errors import UserError


class Chip(NamedTuple):
    """Published peak numbers of one JAX device; a tpu7x chip is two devices."""

    name: str
    flops: float
    """bfloat16 operations per second, without sparsity."""
    hbm_bandwidth: float
    """Bytes per second."""
    interconnect: float
    """Bytes per second that a device can receive from those of its slice or machine over all of its
    links: half of what is published as bidirectional."""

    def seconds(
        self, flops: float, bytes_accessed: float, network_bytes: float = 0.0
    ) -> tuple[float, str]:
        """The least time for so much work on one device, and its limit: "compute", "memory" or
        "network".

        The roofline model (Williams, Waterman, Patterson 2009): the slowest of the limits, as if
        they overlapped perfectly and nothing else took time.
        """
        times = {
            "compute": flops / self.flops,
            "memory": bytes_accessed / self.hbm_bandwidth,
            "network": network_bytes / self.interconnect,
        }
        limit = max(times, key=times.__getitem__)
        return times[limit], limit


# https://docs.cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e,tpu7x}, arXiv 2304.01433 for v4, and
# NVIDIA's datasheets of the A100, H100 and H200. A tpu7x chip has 2,307 TFLOP/s, 7,380 GB/s and
# 1,200 GB/s both ways.
CHIPS: dict[str, Chip] = {
    "TPU v4": Chip("v4", 275e12, 1200e9, 300e9),
    "TPU v5 lite": Chip("v5e", 197e12, 819e9, 200e9),
    "TPU v5": Chip("v5p", 459e12, 2765e9, 600e9),
    "TPU v6 lite": Chip("v6e", 918e12, 1640e9, 400e9),
    "TPU7x": Chip("tpu7x", 2307e12 / 2, 7380e9 / 2, 600e9 / 2),
    "NVIDIA A100-SXM4-80GB": Chip("A100 80GB", 312e12, 2039e9, 300e9),
    "NVIDIA H100 80GB HBM3": Chip("H100 SXM", 989.4e12, 3350e9, 450e9),
    "NVIDIA H200": Chip("H200 SXM", 989.4e12, 4800e9, 450e9),
}
"""By JAX's `device_kind`."""

_PLANE = "1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"
_SPACE = "2x2x1, 2x2x2, 2x2x4, 2x4x4, 4x4x4, 4x4x8, 4x8x8, 8x8x8, 8x8x16, 8x16x16"
SHAPES = {"v4": _SPACE, "v5e": _PLANE, "v5p": _SPACE, "v6e": _PLANE, "tpu7x": _SPACE}
"""Shapes of a slice in chips, by generation; source: the pages above."""


class Topology(NamedTuple):
    """One or several equal slices of a TPU pod."""

    generation: str
    shape: str
    slices: int = 1

    @classmethod
    def parse(cls, name: str, slices: int = 1) -> Topology:
        """The topology with a name such as "v5e:4x4", as Google Cloud writes it.

        Raises UserError for one that does not exist, listing those that do.
        """
        generation, _, shape = name.strip().lower().partition(":")
        if generation not in SHAPES or shape not in SHAPES[generation].split(", "):
            listed = "\n".join(f"  {known}: {shapes}" for known, shapes in SHAPES.items())
            raise UserError(
                f"--topology {name!r} does not exist. Write GENERATION:SHAPE, the shape in chips,"
                f" such as v5e:4x4. There are:\n{listed}"
            )
        if slices < 1:
            raise UserError(f"--slices is {slices}, but must be 1 or more")
        return cls(generation, shape, slices)

    @property
    def name(self) -> str:
        slices = f"{self.slices} x " if self.slices > 1 else ""
        return f"{slices}{self.generation}:{self.shape}"

    @property
    def chips(self) -> int:
        return self.slices * math.prod(map(int, self.shape.split("x")))

    def devices(self) -> list[Any]:
        """Its devices, for the compiler alone: nothing can run on them.

        Raises UserError when libtpu, which holds the compiler, is not installed or refuses.
        """
        if importlib.util.find_spec("libtpu") is None:
            raise UserError(
                f"compiling for {self.name} needs libtpu, Google's TPU compiler, which any Linux"
                " machine can run: pip install 'jax[tpu]', or make install EXTRAS=tpu"
            )
        expect_no_tpu()
        options: dict[str, Any] = {}
        if self.shape == "1x1":
            options["chips_per_host_bounds"] = (1, 1, 1)
        if self.generation == "v4":  # as on real machines, both cores of a chip are one device
            options["chip_config_name"] = "megacore"
        if self.slices > 1:
            options["num_slices"] = self.slices
        name = f"{self.generation}:{self.shape}"
        try:
            described = topologies.get_topology_desc(name, "tpu", **options)
        except (RuntimeError, ValueError) as error:
            raise UserError(f"libtpu cannot describe {self.name}: {error}") from None
        return list(described.devices)


class Target(NamedTuple):
    """The devices that a run is planned for, all of one kind."""

    name: str
    devices: tuple[Any, ...]
    chips: int
    chip: Chip | None
    """None for devices without known peak numbers."""
    hbm_limit: int | None
    """Bytes of a device that a program may use; None where the device does not tell."""

    @classmethod
    def of(cls, topology: Topology | None) -> Target:
        """The devices of a topology, or the local ones. Raises UserError as `Topology.devices`."""
        devices = jax.devices() if topology is None else topology.devices()
        kind = devices[0].device_kind
        if topology is None:
            name, chips = f"{len(devices)} x {kind}", len(devices)
        else:
            name, chips = topology.name, topology.chips
        return cls(name, tuple(devices), chips, CHIPS.get(kind), usable_hbm(devices[0]))

    @property
    def compilations_at_once(self) -> int:
        """How many programs its compiler can compile in parallel.

        That for tpu7x in libtpu 0.0.42 overflowed a stack in 4 of 7 attempts with two programs at
        once, which ends the process, and in none of 10 with one.
        """
        return 1 if self.devices[0].device_kind == "TPU7x" else os.cpu_count() or 1


def usable_hbm(device: Any) -> int | None:
    """Bytes of a device's memory that a program may use; None where the device does not tell.

    The TPU's compiler is asked for a program that fits nowhere; its refusal names the limit. Other
    devices report the limit of their allocator.
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
    return round(float(number) * 1024 ** " KMGT".index(unit or " "))
