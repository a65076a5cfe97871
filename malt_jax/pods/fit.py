"""The search for the batch sizes and meshes with which a run fits and is fastest."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

from malt_jax.config import Config, MeshConfig
from malt_jax.errors import UserError
from malt_jax.pods import mesh
from malt_jax.pods.costs import work
from malt_jax.pods.estimate import Compile, argument_bytes, estimated
from malt_jax.pods.mesh import Hardware, fitting
from malt_jax.pods.planning import Place, Subject
from malt_jax.pods.programs import Program

logger = logging.getLogger(__name__)

Candidate = TypeVar("Candidate")

MOST_QUESTIONS = 128
"""Questions in a batch beyond which the search does not go."""


def fastest_that_fits(subject: Subject, place: Place, compile: Compile) -> Subject:
    """The configuration changed in its questions_per_batch, micro_batch_size and two meshes.

    Sampling and learning are searched one after the other, for the least roofline time of their
    largest programs per token. What a candidate's devices send each other is known when it is
    compiled, and without that its time is a lower bound: candidates are compiled in the order of
    their bounds until the next one's is no less than the least time found. Meshes that the
    configuration fixes stay; results do not depend on any of this.

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
    for what, candidates in (("sampling", _sampling), ("learning", _learning)):
        found = cheapest_that_fits(
            list(candidates(subject, hardware)),
            functools.partial(_bound, place, what),
            functools.partial(_cost, place, what, compile),
        )
        if found is None:
            raise UserError(
                f"--fit: {what} fits on {place.name} with no batch size and mesh; take more devices"
                " or a smaller model"
            )
        subject = found
    return subject


def cheapest_that_fits(
    candidates: Sequence[Candidate],
    bound: Callable[[Candidate], float | None],
    cost: Callable[[Candidate], float | None],
) -> Candidate | None:
    """The candidate of least cost, of equal ones the first.

    bound: a cost that a candidate has at least; None leaves it out.
    cost:  what it costs, None if it does not fit. Expensive, so not asked where the bound tells.
    """
    bounds = [bound(candidate) for candidate in candidates]
    order = sorted((least, index) for index, least in enumerate(bounds) if least is not None)
    best: tuple[float, Candidate] | None = None
    for least, index in order:
        if best is not None and least >= best[0]:
            break
        found = cost(candidates[index])
        if found is not None and (best is None or found < best[0]):
            best = (found, candidates[index])
    return None if best is None else best[1]


def _sampling(subject: Subject, hardware: Hardware) -> Iterator[Subject]:
    config = subject.config
    meshes = fitting("sampling_mesh", config.sampling_mesh, config, subject.shape, hardware)
    # Of equal bounds the first counts, and gathers along "fsdp" are in no bound.
    for sizes in sorted(meshes, key=lambda sizes: sizes.fsdp):
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
            meshes = fitting(
                "learning_mesh", config.learning_mesh, smaller, subject.shape, hardware
            )
        except UserError:  # no mesh for so few rows
            continue
        for sizes in meshes:
            changed = dataclasses.replace(smaller, learning_mesh=MeshConfig(*sizes))
            yield dataclasses.replace(subject, config=changed)


def _largest(subject: Subject, place: Place, what: str) -> list[Program]:
    """The programs of the most tokens: of the last role, or of the longest rows."""
    listed = subject.programs(place)[2]
    if what == "sampling":
        last = f"trees/{subject.load.roles[-1].name}/"
        of_role = [program for program in listed if program.name.startswith(last)]
        decodes = [program for program in of_role if program.tokens]
        prefills = [program for program in of_role if "/prefill-" in program.name]
        return [decodes[-1], prefills[-1]]
    updates = [program for program in listed if program.updates]
    return [max(updates, key=lambda program: program.tokens)]


def _bound(place: Place, what: str, subject: Subject) -> float | None:
    """Roofline seconds per token of the first of the largest programs, without communication; None
    if even its arguments are more than there is."""
    program = _largest(subject, place, what)[0]
    if place.hbm_limit is not None and argument_bytes(program) > place.hbm_limit:
        return None
    assert place.chip is not None
    traced = program.function.trace(*program.arguments)
    done = work(traced.jaxpr.jaxpr, program.mesh, program.loop_steps)
    return place.chip.seconds(done.flops, done.bytes_accessed)[0] / program.tokens


def _cost(place: Place, what: str, compile: Compile, subject: Subject) -> float | None:
    """Roofline seconds per token of the first of the largest programs; None if one does not fit."""
    costs = []
    for program in _largest(subject, place, what):
        found = estimated(program, place.hbm_limit, place.chip, compile)
        assert found.seconds is not None
        logger.info(
            "%s on %s with %s: %.2f GiB, which %s; %.1f ms, bound by %s",
            *(program.name, program.mesh, _batch(subject.config, what), found.hbm_bytes / 2**30),
            *("fits" if found.fits else "does not fit", found.seconds * 1e3, found.binds),
        )
        if not found.fits:
            return None
        costs.append(found.seconds / max(1, program.tokens))
    return costs[0]


def _batch(config: Config, what: str) -> str:
    if what == "sampling":
        return f"sampling.questions_per_batch={config.sampling.questions_per_batch}"
    return f"micro_batch_size={config.sft.micro_batch_size}"
