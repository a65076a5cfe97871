"""Whole runs by one, two and four processes: the same trees, adapters and results."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from upath import UPath

from malt_jax import train
from malt_jax.config import load_config
from malt_jax.files import location, names_in, remove_tree
from malt_jax.malt.experiment import Experiment, prepare
from malt_jax.malt.round import Trained, restore_trained
from malt_jax.model.llama import Params
from malt_jax.runs.directory import CONFIG_FILE, RunDirectory
from tests.buckets import emulated
from tests.distributed.several import start, wait

pytestmark = pytest.mark.slow

LEARNING_RATE = 1e-2
# Trees and passes of the evaluation have the same shapes, so that few programs are compiled.
SMALL = [
    "task.train_questions=8",
    "task.test_questions=4",
    "pipeline.roles=[{name: generator, branching: 2}, {name: verifier, branching: 1}]",
    "training.dpo_roles=[generator]",
    "sampling.questions_per_batch=4",
    "evaluation.questions_per_batch=4",
    "evaluation.votes=2",
    "sampling.max_tokens=16",
    "sampling.chunk=16",
    *(f"{stage}.batch_size=4" for stage in ("sft", "dpo")),
    *(f"{stage}.epochs=1" for stage in ("sft", "dpo")),
    *(f"{stage}.warmup_share=0.0" for stage in ("sft", "dpo")),
    *(f"{stage}.learning_rate={LEARNING_RATE}" for stage in ("sft", "dpo")),
]


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("one") / "run"
    train.main(["--run-dir", str(directory), *SMALL])
    return directory


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> UPath:
    return run_by(2, tmp_path_factory)


@pytest.fixture(scope="module", params=[2, 4])
def several(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> UPath:
    if request.param == 2:
        return request.getfixturevalue("two")
    return run_by(request.param, tmp_path_factory)


@pytest.fixture(scope="module")
def in_a_bucket(tmp_path_factory: pytest.TempPathFactory) -> Iterator[UPath]:
    with emulated() as bucket:
        yield run_by(2, tmp_path_factory, location(f"{bucket}/runs/by-2"))


def run_by(
    count: int, tmp_path_factory: pytest.TempPathFactory, directory: UPath | None = None
) -> UPath:
    here = tmp_path_factory.mktemp(f"by-{count}")
    directory = directory or UPath(here / "run")
    command = ["-m", "malt_jax.train", "--run-dir", str(directory), *SMALL]
    programs = str(here / "programs")
    ended = wait(start(command, count, JAX_COMPILATION_CACHE_DIR=programs), 1200)
    for index, process in enumerate(ended):
        assert process.status == 0, process.errors
        assert f"[{index}/{count}] INFO sampling on {count} devices" in process.errors
        # Progress and the table are the first one's.
        assert ("round 0: trees" in process.errors) == (index == 0)
        assert ("malt+mv" in process.output) == (index == 0)
    return directory


def nodes(run: Path | UPath) -> list[dict[str, Any]]:
    folder = UPath(run) / "round-0/trees"
    files = [folder / name for name in names_in(folder, "*.parquet")]
    tables = [pq.read_table(pa.BufferReader(file.read_bytes())) for file in files]
    return [
        {name: row[name] for name in ("question", "path", "role", "ids", "finish", "value")}
        for table in tables
        for row in table.to_pylist()
    ]


def results(run: Path | UPath) -> dict[str, Any]:
    content = json.loads((run / "results.json").read_text())
    timed = ("seconds", "config", "training")
    systems = content.pop("systems")
    for system in systems.values():
        system.pop("seconds")
    return {"systems": systems} | {k: v for k, v in content.items() if k not in timed}


def require_equal_training(run: Path | UPath, other: Path | UPath) -> None:
    """Metrics may differ in their last digits, as the adapters do."""
    of_run, of_other = (
        json.loads((each / "results.json").read_text())["training"] for each in (run, other)
    )
    assert of_run.keys() == of_other.keys()
    for stage, values in of_run.items():
        assert values == pytest.approx(of_other[stage], rel=1e-4, abs=1e-5), stage


def test_trees_are_the_same_token_for_token(one: Path, several: Path) -> None:
    assert nodes(one) == nodes(several)
    assert len(nodes(one)) == 8 * (2 + 2)
    # So that a run by one process can reuse the trees of several.
    inputs = [(run / "round-0/trees/inputs.json").read_text() for run in (one, several)]
    assert inputs[0] == inputs[1]


def test_adapters_are_the_same_but_for_the_order_of_sums(one: Path, several: Path) -> None:
    # Processes add the gradients of their rows to each other's: float32 sums in another order,
    # different in the last digits. AdamW divides by the gradient's size, so that the updates differ
    # as little, except where the gradient itself is almost 0 and may even have the other sign: the
    # first update is then the learning rate in the one direction or in the other.
    experiment = prepare(load_config(one / CONFIG_FILE))
    runs = [trained(experiment, run) for run in (one, several)]
    untrained = experiment.policy.init(experiment.base, jax.random.key(0))
    assert (several / "round-0/generator/dpo").is_dir()
    for stage in ("sft", "final"):
        alone, together = (getattr(run, stage) for run in runs)
        assert alone.keys() == together.keys()
        for role in alone:
            assert np.abs(flat(alone[role]) - flat(untrained)).max() > LEARNING_RATE / 2
            differences = np.abs(flat(alone[role]) - flat(together[role]))
            assert differences.max() < 2 * LEARNING_RATE
            assert np.quantile(differences, 0.999) < LEARNING_RATE / 100


def trained(experiment: Experiment, run: Path | UPath) -> Trained:
    like = experiment.policy.like()
    directory = RunDirectory.read(run)
    return restore_trained(directory, directory.config, like)


def flat(tree: Params) -> np.ndarray:
    return np.concatenate([np.asarray(leaf).reshape(-1) for leaf in jax.tree.leaves(tree)])


def test_results_are_the_same(one: Path, several: Path) -> None:
    assert results(one) == results(several)
    require_equal_training(one, several)


def test_a_run_begun_by_two_processes_is_finished_by_one(two: Path, tmp_path: Path) -> None:
    directory = Path(shutil.copytree(two, tmp_path / "run"))
    for stage in ("round-0/generator/dpo", "evaluation"):
        shutil.rmtree(directory / stage)
    (directory / "results.json").unlink()
    # As it is when the last batch is being sampled.
    (directory / "round-0/trees/manifest.json").unlink()
    (directory / "round-0/trees/batch-00001.parquet").unlink()
    shutil.rmtree(directory / "round-0/rows")
    train.main(["--run-dir", str(directory), *SMALL])
    assert nodes(directory) == nodes(two)
    assert results(directory) == results(two)
    require_equal_training(directory, two)


def test_a_run_in_a_bucket_is_the_same_and_goes_on(two: UPath, in_a_bucket: UPath) -> None:
    assert nodes(in_a_bucket) == nodes(two) and results(in_a_bucket) == results(two)
    # Two processes write their parts of a checkpoint: the last digits are those of two again.
    experiment = prepare(load_config(two / CONFIG_FILE))
    on_disk, above = (trained(experiment, run).final for run in (two, in_a_bucket))
    for role in on_disk:
        np.testing.assert_array_equal(flat(on_disk[role]), flat(above[role]))
    assert names_in(in_a_bucket, ".*") == [], "no lock is left"
    for lost in ("round-0/generator/dpo", "evaluation"):
        remove_tree(in_a_bucket / lost)
    (in_a_bucket / "results.json").unlink()
    train.main(["--run-dir", str(in_a_bucket), *SMALL])
    assert results(in_a_bucket) == results(two)
