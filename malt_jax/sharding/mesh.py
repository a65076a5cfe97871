"""Meshes of devices: the sizes that fit a model, the choice among them, and the meshes."""

from __future__ import annotations

import dataclasses
import logging
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh

from malt_jax.config import MESH_AXES, MeshConfig
from malt_jax.errors import UserError
from malt_jax.sharding.rules import RULES

logger = logging.getLogger(__name__)

SAMPLING_SHARE = 1 / 3
"""Of a device's memory that the weights may take when sampling. The rest is for the cache, the
temporary arrays of a step, and training's copy of the weights."""
TRAINING_SHARE = 1 / 16
"""Of a device's memory up to which copies of trained weights are worth the all-gathers saved."""

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
    """Parts of each weight, all-gathered when its layer is computed."""
    tensor: int
    """Parts of heads, feed-forward and vocabulary, which are never gathered."""

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

    def device_bytes(self, sizes: Sizes) -> float:
        return self.weight_bytes / (sizes.fsdp * sizes.tensor)


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

    def excess(request: MeshRequest, sizes: Sizes, share: float) -> float:
        return max(0.0, request.device_bytes(sizes) - share * hardware.memory)

    def sampling_rank(sizes: Sizes) -> tuple[float, ...]:
        idle = sampling.questions % sizes.batch != 0
        return excess(sampling, sizes, SAMPLING_SHARE), sizes.fsdp, idle, sizes.tensor

    def training_rank(sizes: Sizes) -> tuple[float, ...]:
        return excess(training, sizes, TRAINING_SHARE), sizes.tensor, sizes.fsdp

    chosen = (
        min(fitting(sampling, hardware), key=sampling_rank),
        min(fitting(training, hardware), key=training_rank),
    )
    for request, sizes in zip((sampling, training), chosen, strict=True):
        if hardware.devices > 1:
            logger.info(
                "%s on %d devices: %s. Weights%s of %.1f GB take %.2f GB of each device's %.1f GB",
                *(request.section.removesuffix("_mesh"), hardware.devices, sizes),
                " and optimizer state" if request.weight_bytes > sampling.weight_bytes else "",
                *(request.weight_bytes / 1e9, request.device_bytes(sizes) / 1e9),
                hardware.memory / 1e9,
            )
    return chosen


def fitting(request: MeshRequest, hardware: Hardware) -> list[Sizes]:
    """All sizes that agree with the options and divide model, batches and devices.

    Raises UserError, which names the number to change, when there are none.
    """
    section, options = request.section, dataclasses.asdict(request.options)
    given = {name: size for name, size in options.items() if size is not None}
    count = hardware.devices
    possible = [
        Sizes(data, fsdp, count // data // fsdp)
        for data in _divisors(count, count)
        for fsdp in _divisors(count // data, count)
    ]
    possible = [sizes for sizes in possible if given.items() <= sizes._asdict().items()]
    if not possible:
        product = " x ".join(f"{section}.{name}={size}" for name, size in given.items())
        raise UserError(
            f"{product} cannot make up the {count} devices: the product of data, fsdp"
            " and tensor must be their number. Change one of them, or leave one out (null) to have"
            " it chosen."
        )
    problems = {sizes: list(_problems(request, sizes, hardware)) for sizes in possible}
    if good := [sizes for sizes in possible if not problems[sizes]]:
        return good
    closest = min(possible, key=lambda sizes: len(problems[sizes]))
    raise UserError(
        f"{section}: no mesh of {count} devices fits"
        + (f" with {_listed(f'{name}={size}' for name, size in given.items())}" if given else "")
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
                f" set it to a divisor, {_listed(_divisors(size, hardware.devices))}"
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
                f" {option}={rows}: make {option} a multiple of {sizes.batch}, or set data and"
                f" fsdp so that their product is one of {_listed(_divisors(rows, rows))}"
            )


def _divisors(number: int, limit: int) -> list[int]:
    return [n for n in range(1, min(number, limit) + 1) if number % n == 0]


def _listed(items: Iterable[object]) -> str:
    return ", ".join(map(str, items))


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
