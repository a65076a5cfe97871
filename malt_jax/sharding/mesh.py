"""Meshes of devices: which sizes fit a model, which are best, and the meshes themselves."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from malt_jax.config import MESH_AXES, MeshConfig
from malt_jax.errors import UserError
from malt_jax.sharding.rules import RULES

logger = logging.getLogger(__name__)

SAMPLING_SHARE = 1 / 3
"""Of a device's memory that the weights may take when sampling; the rest is for the cache, for what
a step computes, and for training's copy of the weights."""
TRAINING_SHARE = 1 / 16
"""Of a device's memory up to which copies of what is trained are worth the gathers they save."""

_LABELS = {
    "heads": "attention heads",
    "kv_heads": "key-value heads",
    "mlp": "feed-forward width",
    "vocab": "vocabulary",
    "embed": "model width",
}


class Sizes(NamedTuple):
    """Lengths of the mesh axes."""

    data: int
    """Copies of the weights; a batch is split over data and fsdp."""
    fsdp: int
    """Parts of each weight that are gathered when its layer is computed."""
    tensor: int
    """Parts of heads, feed-forward and vocabulary, each computed where it lies."""

    @classmethod
    def of(cls, mesh: Mesh | None) -> Sizes:
        return cls(1, 1, 1) if mesh is None else cls(*mesh.shape.values())

    @property
    def devices(self) -> int:
        return math.prod(self)

    @property
    def batch(self) -> int:
        """Parts of a batch."""
        return self.data * self.fsdp

    def __str__(self) -> str:
        return " x ".join(f"{name}={size}" for name, size in self._asdict().items())


@dataclasses.dataclass(frozen=True)
class Hardware:
    """The devices of a run, all of one kind."""

    devices: int
    memory: float
    """Bytes of each."""
    slices: int = 1
    """Groups of TPUs between which the network is slow; only "data" may cross it."""

    @classmethod
    def of(cls, devices: Sequence[Any], memory: float | None = None) -> Hardware:
        """The hardware of these devices; `memory` is needed for absent devices."""
        return cls(
            len(devices), _memory(devices) if memory is None else memory, len(_slices(devices))
        )


@dataclasses.dataclass(frozen=True)
class MeshRequest:
    """The needs of one stage, sampling or training, that its mesh has to meet."""

    section: str
    """The section of the options, for messages."""
    options: MeshConfig
    weight_bytes: int
    """Bytes that "fsdp" and "tensor" split: weights, and the optimizer state of all of them."""
    axis_sizes: Mapping[str, int]
    """Lengths of the model's logical axes; the mesh has to divide each."""
    batch_sizes: Mapping[str, int] = dataclasses.field(default_factory=dict)
    """Rows of a batch by the option that sets them; the mesh has to divide each."""
    questions: int = 1
    """Questions of a batch when sampling, padded where the mesh does not divide them."""


@dataclasses.dataclass(frozen=True)
class Meshes:
    """Two meshes over the same devices."""

    sampling: Mesh
    training: Mesh


def build(sizes: Sizes, devices: Sequence[Any]) -> Mesh:
    """A mesh in which neighbours are connected; between slices of TPUs runs the axis "data"."""
    slices = len(_slices(devices))
    if slices > 1:
        inner = (sizes.data // slices, sizes.fsdp, sizes.tensor)
        grid = mesh_utils.create_hybrid_device_mesh(
            inner, (slices, 1, 1), devices, allow_split_physical_axes=True
        )
    else:
        grid = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    return Mesh(grid, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def choose(sampling: MeshRequest, training: MeshRequest, hardware: Hardware) -> tuple[Sizes, Sizes]:
    """Sizes of the meshes for sampling and for training; sizes that the options fix stay fixed.

    Sampling splits the weights over "tensor" only as far as memory demands, since a decode step is
    too short for more communication than it needs, and copies them along "data". Training splits
    them over "fsdp" as far as the rows of a batch go, and further over "tensor"; it copies only
    models that are small for the devices.

    Raises UserError, which names the number to change, when no sizes fit.
    """

    def sampling_rank(sizes: Sizes) -> tuple[Any, ...]:
        each = sampling.weight_bytes / (sizes.fsdp * sizes.tensor)
        excess = max(0.0, each - SAMPLING_SHARE * hardware.memory)
        idle = sampling.questions % sizes.batch != 0
        return excess, sizes.fsdp, idle, sizes.tensor

    def training_rank(sizes: Sizes) -> tuple[Any, ...]:
        each = training.weight_bytes / (sizes.fsdp * sizes.tensor)
        excess = max(0.0, each - TRAINING_SHARE * hardware.memory)
        return excess, sizes.tensor, sizes.fsdp

    chosen = []
    for stage, request, rank in (
        ("sampling", sampling, sampling_rank),
        ("training", training, training_rank),
    ):
        sizes = min(fitting(request, hardware), key=rank)
        if hardware.devices > 1:
            logger.info(
                "%s on %d devices: %s. Weights%s of %.1f GB take %.2f GB of each device's %.1f GB",
                *(stage, hardware.devices, sizes),
                " and optimizer state" if request.weight_bytes > sampling.weight_bytes else "",
                request.weight_bytes / 1e9,
                request.weight_bytes / (sizes.fsdp * sizes.tensor) / 1e9,
                hardware.memory / 1e9,
            )
        chosen.append(sizes)
    return chosen[0], chosen[1]


def fitting(request: MeshRequest, hardware: Hardware) -> list[Sizes]:
    """All sizes that agree with the options and fit model, batches and devices."""
    section, wanted = request.section, request.options
    possible = [
        sizes
        for sizes in _factorizations(hardware.devices)
        if all(
            fixed in (None, size)
            for fixed, size in zip((wanted.data, wanted.fsdp, wanted.tensor), sizes, strict=True)
        )
    ]
    given = {name: size for name, size in dataclasses.asdict(wanted).items() if size is not None}
    if not possible:
        product = " x ".join(f"{section}.{name}={size}" for name, size in given.items())
        raise UserError(
            f"{product} cannot make up the {hardware.devices} devices: the product of data, fsdp"
            " and tensor must be their number. Change one of them, or leave one out (null) to have"
            " it chosen."
        )
    problems = {sizes: list(_problems(request, sizes, hardware)) for sizes in possible}
    if good := [sizes for sizes in possible if not problems[sizes]]:
        return good
    closest = min(possible, key=lambda sizes: len(problems[sizes]))
    raise UserError(
        f"{section}: no mesh of {hardware.devices} devices fits"
        + (f" with {', '.join(f'{name}={size}' for name, size in given.items())}" if given else "")
        + f"; {closest} comes closest, but:\n  "
        + "\n  ".join(problems[closest])
    )


def _problems(request: MeshRequest, sizes: Sizes, hardware: Hardware) -> Iterator[str]:
    """The reasons why a mesh does not fit, each with the number to change."""
    section = request.section
    for name, size in request.axis_sizes.items():
        (axis,) = RULES[name]
        parts = getattr(sizes, axis)
        if size % parts:
            yield (
                f"{section}.{axis}={parts} does not divide the model's {_LABELS[name]} of {size}:"
                f" set it to a divisor, {_divisors(size, hardware.devices)}"
            )
    if sizes.data % hardware.slices:
        yield (
            f"{section}.data={sizes.data} is not a multiple of the {hardware.slices} slices, and"
            " only data may cross the network between slices"
        )
    for option, rows in request.batch_sizes.items():
        if rows % sizes.batch:
            yield (
                f"{section}.data x {section}.fsdp = {sizes.batch} does not divide"
                f" {option}={rows}: make {option} a multiple of {sizes.batch}, or set"
                f" data and fsdp so that their product is one of {_divisors(rows, rows)}"
            )


def _divisors(number: int, limit: int) -> str:
    found = [str(n) for n in range(1, min(number, limit) + 1) if number % n == 0]
    return ", ".join(found)


def _factorizations(devices: int) -> Iterator[Sizes]:
    for data in range(1, devices + 1):
        if devices % data:
            continue
        rest = devices // data
        yield from (Sizes(data, n, rest // n) for n in range(1, rest + 1) if rest % n == 0)


def _slices(devices: Sequence[Any]) -> set[int]:
    return {getattr(device, "slice_index", 0) for device in devices}


def _memory(devices: Sequence[Any]) -> float:
    """Bytes that a device has; CPUs share their machine's."""
    local = [device for device in devices if device.process_index == jax.process_index()]
    stats = (local or list(devices))[0].memory_stats() or {}
    if "bytes_limit" in stats:
        return float(stats["bytes_limit"])
    machine = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return machine / max(1, len(local))
