"""The search for the batch sizes and meshes with which a run fits and is fastest."""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from malt_jax.config import Config, MeshConfig
from malt_jax.errors import UserError
from malt_jax.malt.experiment import mesh_requests
from malt_jax.planning.costs import work
from malt_jax.planning.estimate import Compile, argument_bytes, estimated
from malt_jax.planning.plan import SAMPLING_STAGES, Place, Subject
from malt_jax.planning.programs import Program
from malt_jax.sharding import mesh
from malt_jax.sharding.mesh import Hardware, fitting

logger = logging.getLogger(__name__)

Candidate = TypeVar("Candidate")

MOST_QUESTIONS = 128
"""Questions in a batch beyond which the search does not go."""


def fastest_that_fits(subject: Subject, place: Place, compile: Compile) -> Subject:
    """The configuration changed in its questions_per_batch, micro_batch_size and two meshes.

    What is sought is the least time of the run, in which all tokens of trees, of the evaluation and
    of the updates go at the rate of the largest program there is for each: the roofline's time of
    computing and memory, and that of communication on top, since a layer mostly waits for the sums
    of the one before. Training's copy of the base weights stays beside sampling, so the two are
    searched together.

    What a candidate's devices send each other is known exactly when it is compiled, and before that
    at least: candidates are compiled in the order of their least times, until the next one's is no
    less than the least exact one found. Meshes that the configuration fixes stay; results do not
    depend on any of this.

    Raises UserError when nothing fits, or no peak numbers of the devices are known.
    """
    if place.chip is None:
        raise UserError(
            f"--fit: no peak numbers of {place.devices[0].device_kind} are known to compare"
            " settings by; name a TPU with --topology"
        )
    hardware = Hardware.of(place.devices, place.hbm_limit)
    # Of a hundred candidates' meshes the log would say nothing that helps.
    logging.getLogger(mesh.__name__).addFilter(_is_warning)
    try:
        return _searched(subject, place, hardware, compile)
    finally:
        logging.getLogger(mesh.__name__).removeFilter(_is_warning)


def _is_warning(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.WARNING


def _searched(subject: Subject, place: Place, hardware: Hardware, compile: Compile) -> Subject:
    samplings = list(_sampling(subject, hardware))
    floors = [_bound(place, "sampling", candidate) for candidate in samplings]
    floor = min((least for least in floors if least is not None), default=math.inf)
    if floor == math.inf:
        raise _fits_nowhere("sampling", place)
    learns, chosen = False, None

    def bound(training: Subject) -> float | None:
        least = _bound(place, "training", training)
        return None if least is None else least + floor

    def cost(training: Subject, below: float) -> float | None:
        nonlocal learns, chosen

        def beside(index: int, below: float) -> float | None:
            both = _with_sampling(training, samplings[index])
            return _cost(place, "sampling", compile, both, below)

        seconds = _cost(place, "training", compile, training, below - floor)
        if seconds is None:
            return None
        learns = True
        indices = range(len(samplings))
        found = cheapest_that_fits(indices, floors.__getitem__, beside, below - seconds)
        if found is None:
            return None
        chosen = _with_sampling(training, samplings[found[1]])
        return seconds + found[0]

    cheapest_that_fits(list(_learning(subject, hardware)), bound, cost)
    if chosen is None:
        raise _fits_nowhere("sampling" if learns else "training", place)
    return chosen


def _fits_nowhere(what: str, place: Place) -> UserError:
    return UserError(
        f"--fit: {what} fits on {place.name} with no batch size and mesh; take more devices or a"
        " smaller model"
    )


def cheapest_that_fits(
    candidates: Sequence[Candidate],
    bound: Callable[[Candidate], float | None],
    cost: Callable[[Candidate, float], float | None],
    below: float = math.inf,
) -> tuple[float, Candidate] | None:
    """The least cost and the candidate that has it, of equal ones the first; None if there is none
    below a limit.

    bound: a cost that a candidate has at least; None leaves it out.
    cost:  what it costs, None if that is not below the second argument or if it does not fit.
           Expensive, so not asked where the bound tells.
    """
    bounds = [bound(candidate) for candidate in candidates]
    order = sorted((least, index) for index, least in enumerate(bounds) if least is not None)
    best = None
    for least, index in order:
        if least >= below:
            break
        found = cost(candidates[index], below)
        if found is not None:
            best, below = (found, candidates[index]), found
    return best


def _sampling(subject: Subject, hardware: Hardware) -> Iterator[Subject]:
    config = subject.config
    request, _ = mesh_requests(config, subject.shape, subject.dtype)
    for sizes in fitting(request, hardware):
        questions = sizes.batch
        while questions <= MOST_QUESTIONS:
            changed = dataclasses.replace(
                config,
                sampling=dataclasses.replace(config.sampling, questions_per_batch=questions),
                evaluation=dataclasses.replace(config.evaluation, questions_per_batch=questions),
                sampling_mesh=MeshConfig(*sizes),
            )
            yield dataclasses.replace(subject, config=changed)
            questions *= 2


def _learning(subject: Subject, hardware: Hardware) -> Iterator[Subject]:
    config = subject.config
    batch = math.gcd(config.sft.batch_size, config.dpo.batch_size)
    for micro in (size for size in range(1, batch + 1) if batch % size == 0):
        sft = dataclasses.replace(config.sft, micro_batch_size=micro)
        dpo = dataclasses.replace(config.dpo, micro_batch_size=micro)
        smaller = dataclasses.replace(config, sft=sft, dpo=dpo)
        try:
            request = mesh_requests(smaller, subject.shape, subject.dtype)[1]
            meshes = fitting(request, hardware)
        except UserError:  # no mesh for so few rows
            continue
        for sizes in meshes:
            changed = dataclasses.replace(smaller, training_mesh=MeshConfig(*sizes))
            yield dataclasses.replace(subject, config=changed)


def _with_sampling(training: Subject, sampling: Subject) -> Subject:
    """A candidate of training with the settings of one of sampling."""
    changed = dataclasses.replace(
        training.config,
        sampling=sampling.config.sampling,
        evaluation=sampling.config.evaluation,
        sampling_mesh=sampling.config.sampling_mesh,
    )
    return dataclasses.replace(training, config=changed)


def _deciding(subject: Subject, place: Place, what: str) -> list[tuple[Program, float]]:
    """The programs that decide about a candidate, each with the number of its calls that the run's
    time is reckoned as: those of the most tokens, of the last role or of the longest rows, for all
    tokens of their stage, the largest prefill, and what enlarges the cache, for its memory."""
    listed = subject.programs(place)[2]
    if what == "training":
        updates = [program for program in listed if program.updates]
        return [_for_all(max(updates, key=lambda program: program.tokens), updates)]
    found = []
    for stage in SAMPLING_STAGES:
        decodes = [program for program in listed if program.stage == stage and program.tokens]
        found += [_for_all(decodes[-1], decodes)] if decodes else []
    role = subject.load.roles[-1].name
    for kind in ("prefill", "grow"):
        largest = [p for p in listed if p.name.startswith(f"trees/{role}/{kind}-")][-1:]
        found += [(program, program.calls) for program in largest]
    return found


def _for_all(program: Program, others: Sequence[Program]) -> tuple[Program, float]:
    return program, sum(other.tokens * other.calls for other in others) / program.tokens


def _bound(place: Place, what: str, subject: Subject) -> float | None:
    """Seconds of a run's sampling or training, at least; None if even the arguments of a program
    are more than there is."""
    assert place.chip is not None
    seconds = 0.0
    for program, calls in _deciding(subject, place, what):
        if place.hbm_limit is not None and argument_bytes(program) > place.hbm_limit:
            return None
        traced = program.function.trace(*program.arguments)
        done = work(traced.jaxpr.jaxpr, program.mesh, program.loop_steps)
        alone = place.chip.seconds(done.flops, done.bytes_accessed)[0]
        network = least_received_bytes(subject, program) / place.chip.interconnect
        seconds += calls * (alone + network)
    return seconds


def least_received_bytes(subject: Subject, program: Program) -> float:
    """Bytes that a device receives at least in a call of a decode, a prefill or an update.

    With weights split over "tensor", every layer sums its two outputs, and in the backward pass the
    gradients of its two inputs (Megatron-LM, arXiv 1909.08053); a decode also collects its logits.
    Weights split over "fsdp" are collected for every token sampled, and in training forward and
    backward, in every micro-batch.
    """
    shape, item, mesh = subject.shape, subject.dtype.itemsize, program.mesh
    passes = 2 if program.updates else 1
    others = (mesh.tensor - 1) / mesh.tensor
    tokens = program.tokens / (mesh.data * mesh.fsdp)
    # Of the last layer only the keys and values of prompts are needed.
    sums = 2 * passes * (shape.num_layers - 1) * tokens * shape.d_model * item
    logits = 0 if program.updates else tokens * shape.vocab_size * 4
    tables = shape.vocab_size * shape.d_model * (1 if shape.tie_embeddings else 2)
    weights = (shape.num_parameters - tables) * item / mesh.tensor
    gathers = program.loop_steps
    if program.updates:
        config = getattr(subject.config, program.stage)
        gathers = 2 * config.batch_size // (config.micro_batch_size or config.batch_size)
    gathered = gathers * weights * (mesh.fsdp - 1) / mesh.fsdp
    return 2 * others * sums + others * logits + gathered


def _cost(
    place: Place, what: str, compile: Compile, subject: Subject, below: float
) -> float | None:
    """Seconds of a run's sampling or training; None if they are not below a limit, or if a program
    does not fit."""
    assert place.chip is not None
    seconds = 0.0
    for program, calls in _deciding(subject, place, what):
        found = estimated(program, place.hbm_limit, place.chip, compile)
        alone = place.chip.seconds(found.work.flops, found.work.bytes_accessed)[0]
        network = (found.network_bytes or 0.0) / place.chip.interconnect
        logger.info(
            "%s on %s with %s: %.2f GiB, which %s; %.1f ms and %.1f ms of communication",
            *(program.name, program.mesh, _batch(subject.config, what), found.hbm_bytes / 2**30),
            *("fits" if found.fits else "does not fit", alone * 1e3, network * 1e3),
        )
        seconds += calls * (alone + network)
        if not found.fits or seconds >= below:
            return None
    return seconds


def _batch(config: Config, what: str) -> str:
    if what == "sampling":
        return f"sampling.questions_per_batch={config.sampling.questions_per_batch}"
    return f"micro_batch_size={config.sft.micro_batch_size}"
