"""The batch sizes and meshes with which a run fits a target and is estimated to be fastest."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from malt_jax.config import MeshConfig
from malt_jax.errors import UserError
from malt_jax.malt.experiment import create_sampler, mesh_requests, models
from malt_jax.malt.objectives import objectives
from malt_jax.model.llama import Llama
from malt_jax.planning.estimate import Compiler
from malt_jax.planning.programs import (
    Program,
    Workload,
    base_weights,
    sampling_programs,
    training_programs,
)
from malt_jax.planning.targets import Target
from malt_jax.sharding.calls import device_bytes
from malt_jax.sharding.mesh import Hardware, Meshes, Sizes, build, fitting
from malt_jax.training.policy import Policy

MOST_QUESTIONS = 128
"""Largest batch of questions that is considered."""
FINALISTS = 3
"""Combinations that fit, of which the fastest is taken."""


def fastest_that_fits(load: Workload, compiler: Compiler) -> Workload:
    """The run with other values of questions_per_batch, micro_batch_size and the meshes.

    1. Enumerates all meshes and batch sizes of sampling and of training. A mesh that the options
       fix stays fixed.
    2. Leaves out the combinations whose arrays alone need more than a device's memory. Training's
       copy of the base weights counts during sampling unless both use the same.
    3. Ranks the others by the roofline time of their largest programs, with the least time of
       communication on top.
    4. Compiles in this order until FINALISTS combinations fit. Returns the fastest of them, with
       the communication of the compiled programs.

    Raises UserError when nothing fits, or for devices without known peak numbers.
    """
    target = compiler.target
    if target.chip is None:
        raise UserError(
            f"--fit: no peak numbers of {target.devices[0].device_kind} are known to compare"
            " settings by; name a TPU with --topology"
        )
    limit = target.hbm_limit or math.inf
    pairs = [
        (s, t)
        for s, t in itertools.product(_sampling(load, compiler), _training(load, compiler))
        if max(s.arrays + _copy(s, t), t.arrays) <= limit
    ]
    pairs.sort(key=lambda pair: pair[0].seconds + pair[1].seconds)
    finalists: list[tuple[float, Workload]] = []
    for s, t in pairs:
        seconds = t.compiled_seconds(compiler, limit)
        if seconds < math.inf:
            seconds += s.compiled_seconds(compiler, limit - _copy(s, t))
        if seconds < math.inf:
            finalists.append((seconds, _combined(s.load, t.load)))
        if len(finalists) == FINALISTS:
            break
    if not finalists:
        raise UserError(
            f"--fit: no batch sizes and meshes fit on {target.name}; take more devices or a smaller"
            " model"
        )
    return min(finalists, key=lambda finalist: finalist[0])[1]


class _Candidate(NamedTuple):
    """A batch size and a mesh for sampling or for training."""

    load: Workload
    mesh: Sizes
    base: int
    """Bytes of the base weights on one device."""
    own_weights: bool
    """Whether sampling needs other weights than training even on the same mesh."""
    programs: Sequence[tuple[Program, float, float]]
    """The largest programs, each with the number of calls that stands for its stage and the seconds
    of a call without communication."""
    arrays: int
    """Bytes on one device of the largest program's arguments and resident arrays."""
    seconds: float
    """The least time of the stage."""

    def compiled_seconds(self, compiler: Compiler, memory: float) -> float:
        """The time of the stage with the communication of its compiled programs.

        Infinite if one of them needs more memory than there is.
        """
        received = []
        for program, *_ in self.programs:
            needed, resident = compiler.start(program).result(), device_bytes(program.call.resident)
            if isinstance(needed, int) or needed.memory + resident > memory:
                return math.inf
            received.append(needed.received)
        return _seconds(self.programs, received, compiler.target)


def _seconds(
    programs: Sequence[tuple[Program, float, float]], received: Sequence[float], target: Target
) -> float:
    assert target.chip is not None
    rate = target.chip.interconnect
    calls = zip(programs, received, strict=True)
    return sum(count * (alone + network / rate) for (_, count, alone), network in calls)


def _copy(sampling: _Candidate, training: _Candidate) -> int:
    """Bytes of training's weights that stay on each device during sampling."""
    shared = sampling.mesh == training.mesh and not sampling.own_weights
    return 0 if shared else training.base


def _combined(sampling: Workload, training: Workload) -> Workload:
    names = ("sampling", "evaluation", "sampling_mesh")
    sections = {name: getattr(sampling.config, name) for name in names}
    return dataclasses.replace(training, config=dataclasses.replace(training.config, **sections))


def _sampling(load: Workload, compiler: Compiler) -> Iterator[_Candidate]:
    config, target = load.config, compiler.target
    request, _ = mesh_requests(config, load.shape, load.dtype)
    for sizes in fitting(request, Hardware.of(target.devices, target.hbm_limit)):
        questions = sizes.batch
        while questions <= MOST_QUESTIONS:
            changed = dataclasses.replace(
                config,
                sampling=dataclasses.replace(config.sampling, questions_per_batch=questions),
                evaluation=dataclasses.replace(config.evaluation, questions_per_batch=questions),
                sampling_mesh=MeshConfig(*sizes),
            )
            candidate = dataclasses.replace(load, config=changed)
            yield _candidate(candidate, sizes, compiler, _largest_of_sampling)
            questions *= 2


def _training(load: Workload, compiler: Compiler) -> Iterator[_Candidate]:
    target = compiler.target
    stages = [
        (role, objective)
        for role in load.config.pipeline.names
        for objective in objectives(load.config, role)
    ]
    batch = math.gcd(*(objective.options.batch_size for _, objective in stages))
    for micro in (size for size in range(1, batch + 1) if batch % size == 0):
        config = load.config
        for role, objective in stages:
            options = dataclasses.replace(objective.options, micro_batch_size=micro)
            config = config.with_section(role, objective.name, options)
        request = mesh_requests(config, load.shape, load.dtype)[1]
        try:
            meshes = fitting(request, Hardware.of(target.devices, target.hbm_limit))
        except UserError:  # no mesh for so few rows
            continue
        for sizes in meshes:
            changed = dataclasses.replace(config, training_mesh=MeshConfig(*sizes))
            candidate = dataclasses.replace(load, config=changed)
            yield _candidate(candidate, sizes, compiler, _largest_of_training)


Largest = Callable[[Workload, Llama, Llama], list[tuple[Program, float]]]
"""Of a workload and its models for training and for sampling."""


def _candidate(load: Workload, sizes: Sizes, compiler: Compiler, largest: Largest) -> _Candidate:
    target = compiler.target
    assert target.chip is not None
    mesh = build(sizes, target.devices)
    trained, sampled = models(load.config, load.shape, load.dtype, Meshes(mesh, mesh))
    programs = [
        (program, count, target.chip.seconds(*compiler.work(program))[0])
        for program, count in largest(load, trained, sampled)
    ]
    least = [least_received_bytes(load, program) for program, *_ in programs]
    calls = [program.call for program, *_ in programs]
    return _Candidate(
        load,
        sizes,
        device_bytes(base_weights(trained)),
        trained.lora != sampled.lora,
        programs,
        max(device_bytes((call.arguments, call.resident)) for call in calls),
        _seconds(programs, least, target),
    )


def _largest_of_training(
    load: Workload, trained: Llama, sampled: Llama
) -> list[tuple[Program, float]]:
    policy = Policy(trained, load.config.training.method)
    updates = [program for program in training_programs(load, policy) if program.updates]
    return [_for_all(max(updates, key=lambda update: update.call.tokens), updates)]


def _largest_of_sampling(
    load: Workload, trained: Llama, sampled: Llama
) -> list[tuple[Program, float]]:
    """The decodes of most tokens, and the largest prefill and growth of the cache."""
    sampler = create_sampler(load.config, sampled, load.stop_ids)
    trees = list(sampling_programs(load, sampler, "trees"))
    largest = []
    for stage in (trees, sampling_programs(load, sampler, "evaluation")):
        decodes = [program for program in stage if program.call.tokens]
        largest.append(_for_all(decodes[-1], decodes))
    for kind in ("prefill", "grow"):  # the last one of the last role is the largest
        found = [program for program in trees if program.call.name.startswith(kind)][-1:]
        largest += [(program, program.call.count) for program in found]
    return largest


def _for_all(program: Program, others: Sequence[Program]) -> tuple[Program, float]:
    """A program with the number of calls in which it would do the tokens of the others."""
    tokens = sum(other.call.tokens * other.call.count for other in others)
    return program, tokens / program.call.tokens


def least_received_bytes(load: Workload, program: Program) -> float:
    """Bytes that a device receives at least in a call of a decode, a prefill or an update.

    With weights split over "tensor", every layer sums its two outputs, and in the backward pass the
    gradients of its two inputs (Megatron-LM, arXiv 1909.08053); a decode also gathers its logits.
    Weights split over "fsdp" are gathered for every token sampled, and in training forward and
    backward, in every micro-batch.
    """
    shape, item, mesh = load.shape, load.dtype.itemsize, program.mesh
    passes = 2 if program.updates else 1
    others = (mesh.tensor - 1) / mesh.tensor
    tokens = program.call.tokens / (mesh.data * mesh.fsdp)
    # Of the last layer only the keys and values of prompts are needed.
    sums = 2 * passes * (shape.num_layers - 1) * tokens * shape.d_model * item
    logits = 0 if program.updates else tokens * shape.vocab_size * 4
    tables = shape.vocab_size * shape.d_model * (1 if shape.tie_embeddings else 2)
    weights = (shape.num_parameters - tables) * item / mesh.tensor
    gathers = program.call.loop_steps
    if program.updates:
        options = getattr(load.config.of_role(program.role), program.stage)
        gathers = 2 * options.batch_size // (options.micro_batch_size or options.batch_size)
    gathered = gathers * weights * (mesh.fsdp - 1) / mesh.fsdp
    return 2 * others * sums + others * logits + gathered
