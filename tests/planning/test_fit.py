"""The search for settings that fit."""

import dataclasses
import math
import os
import subprocess
import sys

import jax
import pytest

from malt_jax.config import load_config
from malt_jax.errors import UserError
from malt_jax.planning import fit
from malt_jax.planning.chips import CHIPS
from malt_jax.planning.estimate import Compiled, argument_bytes, remembering
from malt_jax.planning.fit import cheapest_that_fits, fastest_that_fits
from malt_jax.planning.plan import Place, Subject
from malt_jax.planning.workload import Assumptions
from tests.distributed.several import ROOT


def test_the_cheapest_that_fits_is_taken_and_no_more_are_tried() -> None:
    tried = []
    bounds = {9: 1.0, 7: 2.0, 5: 3.0, 4: 3.5, 3: 4.0, 2: 4.0, 1: 6.0, 8: None}
    costs = {9: None, 7: None, 5: 6.0, 4: 4.0, 3: 4.0}

    def cost(candidate: int, below: float) -> float | None:
        tried.append((candidate, below))
        return costs[candidate]

    assert cheapest_that_fits(list(bounds), bounds.__getitem__, cost) == (4.0, 4)
    assert cheapest_that_fits(list(bounds), bounds.__getitem__, cost, below=1.0) is None
    assert tried == [(9, math.inf), (7, math.inf), (5, math.inf), (4, 6.0)]
    assert cheapest_that_fits([9, 8], bounds.__getitem__, lambda *_: None) is None


@pytest.fixture
def subject_and_place() -> tuple[Subject, Place]:
    options = [
        "sampling.max_tokens=16",
        "training.dpo_roles=[]",
        "pipeline.roles=[{name: generator, branching: 2}]",
    ]
    chip = CHIPS["TPU v5 lite"]
    place = Place("one", tuple(jax.devices()[:1]), 1, chip, hbm_limit=2**40)
    return Subject.of(load_config(None, options), Assumptions(question_tokens=8), place), place


def test_a_larger_batch_is_faster_until_it_does_not_fit(
    subject_and_place: tuple[Subject, Place], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "MOST_QUESTIONS", 8)
    subject, place = subject_and_place
    refused = []

    def compile(program) -> Compiled | int:
        questions = program.arguments[3].last.shape[0] if "decode" in program.name else 0
        if questions > 4:
            refused.append(questions)
            return 2**41
        return Compiled(argument_bytes(program), 1, 0, 0.0)

    found = fastest_that_fits(subject, place, remembering(compile)).config
    assert found.sampling.questions_per_batch == found.evaluation.questions_per_batch == 4
    assert refused == [8]
    # The whole batch at once is fastest, and fits.
    assert found.sft.micro_batch_size == found.sft.batch_size
    assert (found.sampling_mesh.data, found.training_mesh.tensor) == (1, 1)


def test_arguments_that_are_too_large_are_not_compiled(
    subject_and_place: tuple[Subject, Place],
) -> None:
    subject, place = subject_and_place

    def compile(program) -> int:
        raise AssertionError(program.name)

    with pytest.raises(UserError, match="sampling fits on one with no batch size and mesh"):
        fastest_that_fits(subject, dataclasses.replace(place, hbm_limit=1000), compile)


def test_without_peak_numbers_there_is_nothing_to_compare(
    subject_and_place: tuple[Subject, Place],
) -> None:
    subject, place = subject_and_place
    with pytest.raises(UserError, match="no peak numbers of cpu"):
        fastest_that_fits(subject, dataclasses.replace(place, chip=None), lambda program: 0)


BOUNDS = """
import jax
from malt_jax.config import load_config
from malt_jax.planning.estimate import compiled
from malt_jax.planning.fit import least_received_bytes
from malt_jax.planning.plan import Subject, place_of
from malt_jax.planning.workload import Assumptions
from tests.distributed.several import ROOT

place = place_of(None)
small = [
    *("sampling.max_tokens=32", "sampling.questions_per_batch=8", "sampling.chunk=16"),
    *("sft.batch_size=16", "sft.micro_batch_size=8", "dpo.batch_size=8"),
    "pipeline.roles=[{name: generator, branching: 2}, {name: verifier, branching: 2}]",
    "training.dpo_roles=[verifier]",
]
for data, fsdp, tensor in ((4, 1, 2), (2, 2, 2)):
    sizes = f"{{data: {data}, fsdp: {fsdp}, tensor: {tensor}}}"
    meshes = [f"sampling_mesh={sizes}", f"training_mesh={sizes}"]
    config = load_config(None, [*small, *meshes])
    subject = Subject.of(config, Assumptions(question_tokens=32), place)
    for program in subject.programs(place)[2]:
        chosen = ("trees/verifier/decode-32", "sft/verifier/update", "dpo/verifier/update")
        if program.name in chosen:
            least, read = least_received_bytes(subject, program), compiled(program).received
            print(program.name, data, fsdp, tensor, least, read)
"""


TOGETHER = """
import dataclasses
from malt_jax.config import load_config
from malt_jax.planning.chips import CHIPS
from malt_jax.planning.estimate import Compiled, argument_bytes, remembering
from malt_jax.planning import fit
from malt_jax.planning.fit import fastest_that_fits
from malt_jax.planning.plan import Subject, place_of, plan
from malt_jax.planning.workload import Assumptions

fit.MOST_QUESTIONS = 8

def compile(program):
    # Splitting weights costs training much communication, so it likes whole ones best.
    mesh = program.mesh
    received = 1e12 * (mesh.fsdp * mesh.tensor - 1) if program.updates else 0.0
    return Compiled(argument_bytes(program), 0, 0, received)

place = dataclasses.replace(place_of(None), chip=CHIPS["TPU v5 lite"])
small = ["pipeline.roles=[{name: generator, branching: 2}]", "training.dpo_roles=[]"]
config = load_config(None, [*small, "sampling_mesh={data: 4, fsdp: 1, tensor: 2}"])
for megabytes in (100.0, 4.6):
    limited = dataclasses.replace(place, hbm_limit=int(megabytes * 1e6))
    subject = Subject.of(config, Assumptions(question_tokens=32), limited)
    found = fastest_that_fits(subject, limited, remembering(compile))
    mesh = found.config.training_mesh
    print(megabytes, plan(found, limited, compile).fits, mesh.fsdp * mesh.tensor)
"""


@pytest.mark.slow
def test_learning_leaves_room_for_sampling() -> None:
    lines = on_eight_devices(TOGETHER)
    assert [line[:2] for line in lines] == [["100.0", "True"], ["4.6", "True"]]
    # Where there is little memory, training's copy of the weights has to be split.
    assert int(lines[0][2]) == 1 < int(lines[1][2])


def on_eight_devices(program: str) -> list[list[str]]:
    """What a program printed, by lines and words."""
    flags = "--xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
    environment = os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr
    return [line.split() for line in done.stdout.splitlines()]


@pytest.mark.slow
def test_devices_receive_no_less_than_the_search_reckons() -> None:
    lines = on_eight_devices(BOUNDS)
    assert len(lines) == 2 * 3
    for name, data, fsdp, tensor, least, read in lines:
        whole = f"{name} on {data} x {fsdp} x {tensor}: {least} of {read}"
        assert float(least) <= float(read), whole
        assert float(least) > float(read) / 5, whole
