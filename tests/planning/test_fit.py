"""The search for settings that fit."""

import os
import subprocess
import sys

import jax
import pytest

from malt_jax.config import load_config
from malt_jax.errors import UserError
from malt_jax.planning import fit
from malt_jax.planning.estimate import Compiled, Compiler
from malt_jax.planning.fit import fastest_that_fits
from malt_jax.planning.programs import Assumptions, Workload
from malt_jax.planning.targets import CHIPS, Target
from malt_jax.sharding.calls import device_bytes
from tests.distributed.several import ROOT


@pytest.fixture
def load_and_target() -> tuple[Workload, Target]:
    options = [
        "sampling.max_tokens=16",
        "training.dpo_roles=[]",
        "pipeline.roles=[{name: generator, branching: 2}]",
    ]
    chip = CHIPS["TPU v5 lite"]
    target = Target("one", tuple(jax.devices()[:1]), 1, chip, hbm_limit=2**40)
    return Workload.of(load_config(None, options), Assumptions(question_tokens=8), "cpu"), target


def test_a_larger_batch_is_faster_until_it_does_not_fit(
    load_and_target: tuple[Workload, Target], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fit, "MOST_QUESTIONS", 8)
    load, target = load_and_target
    refused = []

    def compile(program) -> Compiled | int:
        questions = program.call.arguments[3].last.shape[0] if "decode" in program.name else 0
        if questions > 4:
            refused.append(questions)
            return 2**41
        return Compiled(device_bytes(program.call.arguments), 1, 0, 0.0)

    found = fastest_that_fits(load, Compiler(target, compile)).config
    assert found.sampling.questions_per_batch == found.evaluation.questions_per_batch == 4
    assert refused == [8]
    # The whole batch at once is fastest, and fits.
    assert found.sft.micro_batch_size == found.sft.batch_size
    assert (found.sampling_mesh.data, found.training_mesh.tensor) == (1, 1)


def test_arguments_that_are_too_large_are_not_compiled(
    load_and_target: tuple[Workload, Target],
) -> None:
    load, target = load_and_target

    def compile(program) -> int:
        raise AssertionError(program.name)

    with pytest.raises(UserError, match="no batch sizes and meshes fit on one"):
        fastest_that_fits(load, Compiler(target._replace(hbm_limit=1000), compile))


def test_without_peak_numbers_there_is_nothing_to_compare(
    load_and_target: tuple[Workload, Target],
) -> None:
    load, target = load_and_target
    with pytest.raises(UserError, match="no peak numbers of cpu"):
        fastest_that_fits(load, Compiler(target._replace(chip=None), lambda program: 0))


BOUNDS = """
import jax
from malt_jax.config import load_config
from malt_jax.planning.estimate import compiled
from malt_jax.planning.fit import least_received_bytes
from malt_jax.planning.plan import target_meshes
from malt_jax.planning.programs import Assumptions, Workload, programs
from malt_jax.planning.targets import Target

target = Target.of(None)
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
    load = Workload.of(config, Assumptions(question_tokens=32), "cpu")
    for program in programs(load, target_meshes(load, target)):
        chosen = ("trees/verifier/decode-32", "sft/verifier/update", "dpo/verifier/update")
        if program.name in chosen:
            least, read = least_received_bytes(load, program), compiled(program).received
            print(program.name, data, fsdp, tensor, least, read)
"""


TOGETHER = """
from malt_jax.config import load_config
from malt_jax.planning.estimate import Compiled, Compiler
from malt_jax.planning import fit
from malt_jax.planning.fit import fastest_that_fits
from malt_jax.planning.plan import target_meshes
from malt_jax.planning.programs import Assumptions, Workload, programs
from malt_jax.planning.targets import CHIPS, Target
from malt_jax.sharding.calls import device_bytes

fit.MOST_QUESTIONS = 8

def compile(program):
    # Splitting weights costs training much communication, so it likes whole ones best.
    mesh = program.mesh
    received = 1e12 * (mesh.fsdp * mesh.tensor - 1) if program.updates else 0.0
    return Compiled(device_bytes(program.call.arguments), 0, 0, received)

target = Target.of(None)._replace(chip=CHIPS["TPU v5 lite"])
small = ["pipeline.roles=[{name: generator, branching: 2}]", "training.dpo_roles=[]"]
config = load_config(None, [*small, "sampling_mesh={data: 4, fsdp: 1, tensor: 2}"])
for megabytes in (100.0, 4.6):
    limited = target._replace(hbm_limit=int(megabytes * 1e6))
    load = Workload.of(config, Assumptions(question_tokens=32), "cpu")
    compiler = Compiler(limited, compile)
    found = fastest_that_fits(load, compiler)
    mesh = found.config.training_mesh
    listed = programs(found, target_meshes(found, limited))
    fits = all(e.fits for e in compiler.estimates(listed, lambda done, last: None))
    print(megabytes, fits, mesh.fsdp * mesh.tensor)
"""


@pytest.mark.slow
def test_training_leaves_room_for_sampling() -> None:
    lines = on_eight_devices(TOGETHER)
    assert [line[:2] for line in lines] == [["100.0", "True"], ["4.6", "True"]]
    # Where there is little memory, training's copy of the weights has to be split.
    assert int(lines[0][2]) == 1 < int(lines[1][2])


def on_eight_devices(program: str) -> list[list[str]]:
    """The words of every line that a program printed."""
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
