"""What `malt watch` says of a run follows from its files, also while another process works."""

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from upath import UPath

from malt_jax.errors import UserError
from malt_jax.evaluation.store import Store
from malt_jax.files import write_atomically
from malt_jax.runs.directory import RESULTS_FILE, open_run
from malt_jax.runs.lock import LOCK_FILE, holder
from malt_jax.sampling.completions import Completions, Finish
from malt_jax.watch import __main__ as watch
from malt_jax.watch.show import state
from malt_jax.watch.snapshot import DONE, RUNNING, SKIPPED, WAITING, Reader, StageView
from malt_jax.watch.work import Observed, Work
from tests.buckets import emulated
from tests.watch.conftest import SmallRun


def stages(run: SmallRun) -> dict[str, StageView]:
    return {
        stage.name.removeprefix("round-0/"): stage for stage in Reader(run.path).snapshot().stages
    }


def test_stages_rates_and_the_time_left(training: SmallRun) -> None:
    snapshot = Reader(training.path).snapshot()
    found = stages(training)
    assert {name: stage.state for name, stage in found.items()} == {
        "trees": DONE,
        "rows": DONE,
        "generator/sft": DONE,
        "verifier/sft": RUNNING,
        "refiner/sft": WAITING,
        "evaluation": WAITING,
    }
    assert found["trees"].work.done == found["trees"].work.total == 10
    assert found["trees"].work.rate == pytest.approx(10 / 60)
    verifier, refiner = found["verifier/sft"].work, found["refiner/sft"].work
    assert (verifier.done, verifier.total) == (4, 8)
    assert verifier.rate == pytest.approx(0.5) and verifier.left == pytest.approx(8)
    assert refiner.total == 2 and refiner.left == pytest.approx(4)
    assert snapshot.left == pytest.approx(12)
    assert snapshot.current is not None and snapshot.current.metrics == {"loss": 0.25}
    # Watched, the stage is faster.
    assert snapshot.with_rate(2.0).left == pytest.approx(2 + 4)


def test_a_saved_state_tells_the_rate(training: SmallRun) -> None:
    training.begin("round-0/verifier/sft", 6.0, "state-00000003/weights")
    work = stages(training)["verifier/sft"].work
    assert work.rate == pytest.approx(3 / 6) and work.left == pytest.approx(4 / 0.5)


def test_trees_that_are_sampled(run: SmallRun) -> None:
    run.begin("round-0/trees", 16.0, "batch-00000.parquet", "batch-00001.parquet")
    found = stages(run)
    assert found["trees"].state == RUNNING and found["rows"].state == WAITING
    assert (found["trees"].work.done, found["trees"].work.total) == (8, 10)
    assert found["trees"].work.left == pytest.approx(4)
    # How many rows there will be is not known, so neither is the time of training.
    assert Reader(run.path).snapshot().left is None


def test_a_role_without_rows_is_skipped(training: SmallRun) -> None:
    counts = {"rows": 0, "correct": 0, "incorrect": 0, "pairs": 0}
    names = training.config.pipeline.names
    file = training.path / "round-0/rows/counts.json"
    file.write_text(json.dumps({name: counts for name in names}))
    assert stages(training)["refiner/sft"].state == SKIPPED
    assert Reader(training.path).snapshot().left == pytest.approx(8)


def test_the_evaluation_counts_completions(run: SmallRun) -> None:
    store, texts = Store(run.directory), np.array([["a", "b"]], object)
    completions = Completions.of_rows([[1], [2]], (1, 2), [[0.0], [0.0]], [Finish.STOP] * 2)
    store.add(0, ("base",), [(0, 0), (0, 1)], completions, texts, [3, 3], seconds=4.0)
    work = stages(run)["evaluation"].work
    # Nothing is trained: 9 passes of the single model, which has as many calls as MALT with a vote,
    # and 3 passes of each of the other two roles.
    assert (work.done, work.total) == (2, (9 + 3 + 3) * 5)
    assert work.rate == pytest.approx(0.5)


def test_states_in_words(training: SmallRun) -> None:
    reader, here = Reader(training.path), f"process {os.getpid()} on "
    stage = "round-0/verifier/sft"
    with open_run(training.path, training.config):
        assert state(reader.snapshot()).startswith(f"running in {stage}: {here}")
        assert "; last write 16 min" in state(reader.snapshot())
    assert re.fullmatch(
        rf"stopped in {stage}; last write 16 min .* continues it", state(reader.snapshot())
    )
    write_atomically(training.path / LOCK_FILE, "process 7 on elsewhere\n")
    assert state(reader.snapshot()).startswith("stopped")
    os.utime(str(training.path / "metrics.jsonl"))
    assert state(reader.snapshot()).startswith(
        f"probably running in {stage}: process 7 on elsewhere, another machine; last write"
    )
    write_atomically(training.path / RESULTS_FILE, "{}")
    assert state(reader.snapshot()) == "finished: the results are in results.json"


def test_no_run_and_a_run_that_has_just_begun(run: SmallRun, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"is no run directory: it has no config\.yaml"):
        watch.main([str(tmp_path / "nothing"), "--once"])
    assert state(Reader(run.path).snapshot()) == (
        "stopped before anything was written; the same command continues it"
    )


def test_damage_is_no_error(training: SmallRun) -> None:
    (training.path / "round-0/generator/sft/manifest.json").write_text("{")
    with open(training.path / "metrics.jsonl", "a") as file:
        file.write('{"stage": "round-0/ver')
    write_atomically(training.path / "evaluation/.manifest.json", "[]")
    found = stages(training)
    assert found["generator/sft"].state == DONE and found["verifier/sft"].work.done == 4


def test_once_prints_the_table_next_to_the_process_at_work(
    training: SmallRun, capsys: pytest.CaptureFixture[str]
) -> None:
    with open_run(training.path, training.config):
        os.utime(str(training.path / LOCK_FILE), (0, 0))  # it has been at work for long
        watch.main([str(training.path), "--once"])
    text = capsys.readouterr().out
    assert re.search(r"verifier/sft +running +4 / 8 updates +0.5/s +8 s +8 s", text)
    assert "update 4: loss 0.25" in text
    assert "about 12 s of training left; then the evaluation" in text


def test_it_ends_with_the_run(
    training: SmallRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_run(training.path, training.config) as held:
        waits: list[float] = []

        def sleep(seconds: float) -> None:
            waits.append(seconds)
            training.train("verifier", 6, 8)
            if len(waits) == 2:
                held.write(RESULTS_FILE, "{}")
                monkeypatch.setattr("malt_jax.watch.snapshot.holder", lambda _: holder(UPath("no")))

        monkeypatch.setattr(watch.time, "sleep", sleep)
        watch.main([str(training.path), "--interval", "0.5"])
    assert waits == [0.5, 0.5]
    text = capsys.readouterr().out
    assert text.count("running in") == 2 and "finished: the results" in text


def test_asking_who_holds_a_run_does_not_keep_anybody_out(run: SmallRun) -> None:
    assert holder(run.path).holds is False
    with open_run(run.path, run.config):
        assert holder(run.path) == (f"process {os.getpid()} on {os.uname().nodename}", True)
    assert holder(run.path).holds is False


@pytest.fixture
def bucket() -> Iterator[str]:
    pytest.importorskip("gcsfs")
    with emulated() as address:
        yield address


def test_a_run_in_a_bucket(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from malt_jax.files import location

    run = SmallRun(location(f"{bucket}/run"))
    run.finish("round-0/trees", 60.0, **{"inputs__json": '{"questions": "10 with 00"}'})
    run.finish_rows(16)
    run.train("generator", 1, 2)
    reader = Reader(run.path)
    with open_run(run.path, run.config):
        snapshot = reader.snapshot()
        assert state(snapshot).startswith(
            f"running in round-0/generator/sft: process {os.getpid()}"
        )
        assert snapshot.written is not None and snapshot.written < 60
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + 300)
        assert state(reader.snapshot()).startswith("stopped in round-0/generator/sft; last write 5")
    assert holder(run.path) == ("", False)


def test_observed_rates_forget_what_is_long_ago() -> None:
    observed = Observed(window=9)
    assert observed.rate("a", 5, 0.0) is None
    assert observed.rate("a", 7, 4.0) == pytest.approx(0.5)
    assert observed.rate("a", 7, 5.0) == pytest.approx(0.5)
    assert observed.rate("a", 27, 14.0) == pytest.approx(2.0)
    assert observed.rate("a", 47, 20.0) == pytest.approx(2.5)
    assert observed.rate("b", 1, 21.0) is None
    assert Work(3, 10, "updates", seconds=0.0).left is None
