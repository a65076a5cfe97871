"""A run's plan: what its programs need, whether that is there, what the run amounts to."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from malt_jax.checkpoints.checkpoint import StoredCheckpoint
from malt_jax.config import Config
from malt_jax.errors import UserError
from malt_jax.malt.experiment import mesh_requests
from malt_jax.model.config import LlamaConfig
from malt_jax.planning.chips import CHIPS, Chip
from malt_jax.planning.estimate import Compile, Estimate, estimates, shard_bytes
from malt_jax.planning.programs import Program, programs
from malt_jax.planning.topologies import (
    Topology,
    compilations_at_once,
    describe_devices,
    usable_hbm,
)
from malt_jax.planning.workload import Assumptions, Workload, workload
from malt_jax.sharding.mesh import Hardware, Meshes, Sizes, build, choose

SAMPLING_STAGES = ("trees", "evaluation")


@dataclasses.dataclass(frozen=True)
class Place:
    """The devices that a run is planned for."""

    name: str
    devices: tuple[Any, ...]
    chips: int
    chip: Chip | None
    """None where no peak numbers are known."""
    hbm_limit: int | None
    """Bytes of a device that a program may use; None where nothing tells."""


def place_of(topology: Topology | None) -> Place:
    """The devices of a topology, or those at hand. Raises UserError as `describe_devices`."""
    devices = jax.devices() if topology is None else describe_devices(topology)
    kind = devices[0].device_kind
    if topology is None:
        name, chips = f"{len(devices)} x {kind}", len(devices)
    else:
        name, chips = topology.name, topology.chips
    return Place(name, tuple(devices), chips, CHIPS.get(kind), usable_hbm(devices[0]))


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is planned: a configuration with its model's shape and the size of the run."""

    config: Config
    shape: LlamaConfig
    dtype: Any
    load: Workload

    @classmethod
    def of(cls, config: Config, assumed: Assumptions, place: Place) -> Subject:
        """Reads the model's shape, tokenizer and prompts, and no weights. Raises UserError."""
        dtype = config.model.resolve_dtype(place.devices[0].platform)
        stored = StoredCheckpoint(config.model.name, config.model.tokenizer)
        return cls(
            config,
            stored.config,
            jnp.dtype(dtype),
            workload(config, stored.tokenizer, assumed),
        )

    def programs(self, place: Place) -> tuple[Sizes, Sizes, list[Program]]:
        """The sizes of the meshes for sampling and for training, and the programs on them.

        Raises UserError for a mesh that does not fit.
        """
        hardware = Hardware.of(place.devices, place.hbm_limit)
        requests = mesh_requests(self.config, self.shape, self.dtype)
        sampling, training = choose(*requests, hardware)
        meshes = Meshes(*(build(sizes, place.devices) for sizes in (sampling, training)))
        listed = programs(self.config, self.shape, self.dtype, meshes, self.load)
        return sampling, training, listed


def plan(
    subject: Subject,
    place: Place,
    compile: Compile,
    only: Sequence[str] = ("",),
    on_done: Callable[[int, int, str], None] = lambda done, total, last: None,
) -> Plan:
    """Compiles the programs of a run.

    only:    parts of the names of the programs that are wanted.
    on_done: called with the number of programs that are done, first with 0, the number of all, and
        the name of the last one done.

    Raises UserError for a mesh that does not fit, and if no program is wanted.
    """
    sampling, training, listed = subject.programs(place)
    wanted = [p for p in listed if any(part in p.name for part in only)]
    if not wanted:
        names = ", ".join(program.name for program in listed)
        raise UserError(f"--only {' '.join(only)}: no program has such a name; there are {names}")
    listed = wanted
    on_done(0, len(listed), "")
    found = estimates(
        listed,
        place.hbm_limit,
        place.chip,
        compile,
        workers=compilations_at_once(place.devices[0]),
        on_done=lambda done, last: on_done(done, len(listed), last.name),
    )
    return Plan(
        place, subject.config, subject.shape, subject.load, sampling, training, tuple(found)
    )


@dataclasses.dataclass(frozen=True)
class Plan:
    """What a run on some devices needs."""

    place: Place
    config: Config
    shape: LlamaConfig
    load: Workload
    sampling: Sizes
    training: Sizes
    estimates: tuple[Estimate, ...]

    @property
    def fits(self) -> bool:
        return all(estimate.fits for estimate in self.estimates)

    def hours(self, stage: str | None = None) -> float | None:
        """Hours at the chip's peaks, of all programs or of those of one stage."""
        total = 0.0
        for estimate in self.estimates:
            if estimate.seconds is None:
                return None
            if stage in (None, estimate.program.stage):
                total += estimate.program.calls * estimate.seconds
        return total / 3600

    def totals(self, price: float | None) -> dict[str, Any]:
        """What the run amounts to. price: of one chip for an hour."""
        called = [(e.program, e.program.calls) for e in self.estimates]
        sampled = sum(p.tokens * n for p, n in called if p.stage in SAMPLING_STAGES)
        trained = sum(p.tokens * n for p, n in called if p.stage not in SAMPLING_STAGES)
        updates = sum(n for p, n in called if p.updates)
        hours = self.hours()
        chip_hours = None if hours is None else hours * self.place.chips
        totals = {
            "sampled_tokens": sampled,
            "trained_tokens": trained,
            "tokens": sampled + trained,
            "steps": updates,
            "hours": hours,
            "chips": self.place.chips,
            "chip_hours": chip_hours,
        }
        if price is not None:
            totals["dollars"] = None if chip_hours is None else chip_hours * price
        return totals

    def to_json(self, price: float | None) -> dict[str, Any]:
        """The plan as one JSON object; bytes, operations and seconds are those of one call on one
        device."""
        return {
            "topology": self.place.name,
            "model": self.config.model.name,
            "parameters": self.shape.num_parameters,
            "sampling_mesh": self.sampling._asdict(),
            "training_mesh": self.training._asdict(),
            "assumed": {
                "completion_tokens": self.load.completion_tokens,
                "train_questions": self.load.train_questions,
                "test_questions": self.load.test_questions,
                "rows": dict(zip(self._roles, self.load.rows, strict=True)),
                "pairs": dict(zip(self._roles, self.load.pairs, strict=True)),
            },
            "fits": self.fits,
            "programs": [self._program(estimate) for estimate in self.estimates],
            "run": self.totals(price),
        }

    @property
    def _roles(self) -> list[str]:
        return [role.name for role in self.load.roles]

    def _program(self, estimate: Estimate) -> dict[str, Any]:
        memory = estimate.memory
        described = {
            "name": estimate.program.name,
            "fits": estimate.fits,
            "hbm_bytes": estimate.hbm_bytes,
            "hbm_limit_bytes": self.place.hbm_limit,
            "hbm": None if memory is None else dataclasses.asdict(memory),
            "flops": estimate.work.flops,
            "bytes_accessed": estimate.work.bytes_accessed,
            "network_bytes": estimate.network_bytes,
            "roofline_seconds": estimate.seconds,
            "bound_by": estimate.binds,
            "calls": estimate.program.calls,
        }
        if not estimate.fits:
            described["remedies"] = remedies(self, estimate)
        return described


def remedies(plan: Plan, estimate: Estimate) -> list[str]:
    """What would make a program fit, by its memory's growth with batch and mesh."""
    limit = plan.place.hbm_limit
    if estimate.fits or limit is None:
        return []
    config, stage = plan.config, estimate.program.stage
    found = []
    fixed = _weight_bytes(estimate)
    growing = max(1, estimate.hbm_bytes - fixed)
    share = (limit - fixed) / growing
    if stage in SAMPLING_STAGES:
        section, sizes = "sampling_mesh", plan.sampling
        option = "sampling" if stage == "trees" else "evaluation"
        now = getattr(config, option).questions_per_batch
        if (fewer := _smaller(now, share, sizes.batch)) is not None:
            found.append(f"{option}.questions_per_batch={fewer}")
    else:
        section, sizes = "training_mesh", plan.training
        options = getattr(config, stage)
        now = options.micro_batch_size or options.batch_size
        if (fewer := _smaller(now, share, sizes.batch)) is not None and now % fewer == 0:
            found.append(f"{stage}.micro_batch_size={fewer}")
        if not config.training.remat:
            found.append("training.remat=true")
    more = [
        f"{section}.{axis}={2 * size}"
        for axis, size in (("tensor", sizes.tensor), ("fsdp", sizes.fsdp))
        if sizes.data > 1 or (axis == "tensor" and sizes.fsdp > 1)
    ]
    found += more[:1] if share > 0 else more
    return found or ["more devices, or a smaller model"]


def _weight_bytes(estimate: Estimate) -> int:
    """Bytes of the arguments that do not grow with the batch: weights and optimiser state."""
    arrays = [x for x in jax.tree.leaves(estimate.program.weights) if hasattr(x, "shape")]
    return sum(shard_bytes(array) for array in arrays)


def _smaller(now: int, share: float, multiple: int) -> int | None:
    """The largest power of two times `multiple` below `now` for which memory would suffice."""
    best = None
    size = multiple
    while size < now and size <= now * share:
        best = size
        size *= 2
    return best
