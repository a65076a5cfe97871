"""Runs in a bucket: the same stages as on a disk, and a lock that outlives nobody for long."""

import json
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from upath import UPath

from malt_jax.config import Config, load_config
from malt_jax.errors import UserError
from malt_jax.files import files_below, location, names_in, remove_tree, write_atomically
from malt_jax.runs import lock
from malt_jax.runs.checkpoints import StateStore, restore_tree, save_tree
from malt_jax.runs.directory import CONFIG_FILE, MANIFEST, RunDirectory, open_run
from malt_jax.runs.lock import LOCK_FILE
from malt_jax.runs.metrics import METRICS_FILE, Metrics
from malt_jax.tracking.tensorboard import FOLDER as TENSORBOARD
from tests.buckets import emulated


@pytest.fixture(scope="module")
def bucket() -> Iterator[str]:
    with emulated() as address:
        yield address


@pytest.fixture
def place(bucket: str, request: pytest.FixtureRequest) -> UPath:
    return location(f"{bucket}/{request.node.name}/run")


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks whose holders are declared dead within a second."""
    monkeypatch.setattr(lock, "_BEAT", 0.1)
    monkeypatch.setattr(lock, "_SILENCE", 0.8)
    monkeypatch.setattr(lock, "_SETTLED", 0.3)


def test_addresses(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert str(location(f"{bucket}/a/b")) == f"{bucket}/a/b"
    assert str(location(Path(f"{bucket}/a"))) == f"{bucket}/a", "pathlib leaves one slash of two"
    assert location("runs/a") == Path("runs/a")
    with pytest.raises(UserError, match=r"^s3://bucket/run: a run is in a directory .* gs://"):
        location("s3://bucket/run")
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"malt_jax\[gcs\]"):
        location(f"{bucket}/a")


def test_files(place: UPath) -> None:
    assert names_in(place, "*") == [] and files_below(place) == []
    for content in (b"\x00old", "grüße\n"):
        write_atomically(place / "a/file", content)
    write_atomically(place / "a/.hidden", "")
    assert (place / "a/file").read_text(encoding="utf-8") == "grüße\n"
    assert names_in(place, "*") == ["a"] and names_in(place / "a", "f*") == ["file"]
    assert files_below(place) == ["a/.hidden", "a/file"]
    remove_tree(place / "a")
    remove_tree(place / "a")
    assert files_below(place) == []


def test_a_stage_is_complete_with_its_manifest(place: UPath) -> None:
    with open_run(place, Config()) as run:
        with pytest.raises(KeyboardInterrupt), run.stage("round-0/trees") as stage:
            stage._began -= 100.0
            stage.write("batch-0", b"0")
            raise KeyboardInterrupt
        assert not run.is_done("round-0/trees")
    with open_run(place, Config()) as run:
        with run.stage("round-0/trees") as stage:
            assert stage.has("batch-0") and not stage.has("batch-1")
            stage.write("batch-1", b"1")
        assert run.is_done("round-0/trees") and run.seconds("round-0/trees") >= 100.0
    assert files_below(place / "round-0/trees") == ["batch-0", "batch-1", MANIFEST]
    again = RunDirectory.read(str(place))
    assert (again.finished("round-0/trees") / "batch-1").read_bytes() == b"1"
    write_atomically(place / "round-0/trees/batch-1", b"2")
    with pytest.raises(UserError, match="batch-1 is damaged: its checksum is another"):
        RunDirectory.read(place).is_done("round-0/trees")


def test_what_is_no_run_or_another_is_refused(bucket: str, place: UPath) -> None:
    with pytest.raises(UserError, match="is no run directory"):
        RunDirectory.read(place)
    with open_run(place, Config()):
        pass
    other = load_config(None, ["seed=1"])
    with pytest.raises(UserError, match="seed: 0 -> 1"), open_run(place, other):
        pass
    write_atomically(place / "other/thesis.tex", "")
    with pytest.raises(UserError, match="it is no run"), open_run(place / "other", Config()):
        pass
    missing = "gs://no-such-bucket/run"
    with pytest.raises(UserError, match=f"cannot use {missing}"), open_run(missing, Config()):
        pass


def test_trees_of_arrays(place: UPath) -> None:
    for scale in (1.0, 2.0):  # the second replaces the first
        tree = {"a": np.arange(6.0, dtype=np.float32).reshape(2, 3) * scale}
        save_tree(place / "weights", tree)
    np.testing.assert_array_equal(restore_tree(place / "weights", tree)["a"], tree["a"])
    with pytest.raises(UserError, match=r"a is float32\[2,3\], not float32\[3\]"):
        restore_tree(place / "weights", {"a": np.zeros(3, np.float32)})


def test_a_training_state_that_was_cut_off_is_not_taken(place: UPath) -> None:
    state = {"w": np.arange(4.0, dtype=np.float32)}
    with open_run(place, Config()) as run, run.stage("sft") as stage:
        StateStore(stage).save(3, state)
        # As a save that was interrupted leaves it: objects, but not the last one.
        for name in files_below(stage.path / "state-00000003"):
            if name != "commit_success.txt":
                content = (stage.path / "state-00000003" / name).read_bytes()
                write_atomically(stage.path / "state-00000004" / name, content)
        again = StateStore(stage)
        assert again.latest_step == 3
        restored = again.restore({"w": np.zeros(4, np.float32)})
        np.testing.assert_array_equal(restored["w"], state["w"])
        again.clear()
        assert stage.names("state-*") == []


def steps(place: UPath) -> list[Any]:
    text = (place / METRICS_FILE).read_text()
    return [json.loads(line)["step"] for line in text.splitlines()]


def test_metrics_are_there_when_they_are_needed(place: UPath) -> None:
    with Metrics(place) as metrics:
        metrics.log("a", 1, {"loss": 1.0})
        metrics.flush()
        assert steps(place) == [1]
        metrics.log("a", 2, {"loss": 1.0})
        assert steps(place) == [1]
        metrics.restart("b")
        assert steps(place) == [1, 2]
        metrics.log("b", 1, {"loss": float("nan")})
    with Metrics(place) as metrics:
        metrics.log("b", 2, {"loss": 1.0})
        metrics.restart("a", after=1)
    assert steps(place) == [1, 1, 2]
    assert names_in(place / TENSORBOARD, "events*")


def test_two_at_once_are_refused(place: UPath, hasty: None) -> None:
    with open_run(place, Config()):
        in_use = pytest.raises(UserError, match=f"in use by process {os.getpid()} on")
        with in_use, open_run(place, Config()):
            pass
        assert RunDirectory.read(place).config == Config()
    assert files_below(place) == [CONFIG_FILE]


def test_a_run_whose_process_is_silent_goes_on(
    place: UPath, hasty: None, caplog: pytest.LogCaptureFixture
) -> None:
    write_atomically(place / LOCK_FILE, "process 7 on elsewhere\n0123 1\n")
    with caplog.at_level(logging.INFO), open_run(place, Config()):
        assert f"process {os.getpid()} on" in (place / LOCK_FILE).read_text()
    assert "process 7 on elsewhere is silent; taking over" in caplog.text


def test_of_two_that_take_over_one_does(place: UPath, hasty: None) -> None:
    write_atomically(place / LOCK_FILE, "process 7 on elsewhere\n0123 1\n")
    holding, refused = [], []

    def take() -> None:
        try:
            with open_run(place, Config()):
                holding.append(True)
                time.sleep(2.0)
        except UserError as error:
            refused.append(str(error))

    threads = [threading.Thread(target=take) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert holding == [True]
    assert len(refused) == 1 and "is in use by" in refused[0]


def test_who_has_lost_the_lock_writes_nothing_more(place: UPath, hasty: None) -> None:
    in_use = pytest.raises(UserError, match="is in use by process 7 on elsewhere")
    with open_run(place, Config()) as run, in_use, run.stage("trees") as stage:
        stage.write("batch-0", b"0")
        write_atomically(place / LOCK_FILE, "process 7 on elsewhere\n0123 1\n")
        time.sleep(0.5)
        stage.write("batch-1", b"1")
    assert "batch-1" not in files_below(place / "trees")
    assert "elsewhere" in (place / LOCK_FILE).read_text(), "the lock of another one stays"


def test_who_cannot_reach_the_bucket_stops(
    place: UPath, hasty: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_run(place, Config()) as run:
        monkeypatch.setattr(lock._Lease, "_content", lambda self: 1 / 0)
        time.sleep(1.2)
        with pytest.raises(UserError, match=r"could not be reached for \d+ s"):
            run.write("results.json", "{}")
