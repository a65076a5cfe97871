"""Trackers: what each library has stored is what was logged, and none of them can end a run."""

import contextlib
import json
import logging
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import pytest
from tensorboardX.proto.event_pb2 import Event
from upath import UPath

from malt_jax.config import TrackingConfig, load_config
from malt_jax.errors import UserError
from malt_jax.runs.metrics import Metrics, read_metrics
from malt_jax.tracking import trackers
from malt_jax.tracking.tensorboard import FOLDER
from malt_jax.tracking.tracker import Followed, Table
from malt_jax.tracking.trackers import IDENTITIES, open_trackers, require_trackers

STAGE = "round-0/refiner/dpo"
TREES = Table(("question", "role", "path", "text", "value"), [("2+2?", "refiner", "0", "4|*x*", 1)])


def follow(run: Path, *names: str, steps: tuple[int, ...] = (1, 2)) -> None:
    """What a run does with its trackers."""
    tracking = TrackingConfig(trackers=names, project="project", name="first")
    with Metrics(run, tracking=tracking, options={"sft.epochs": 2}) as metrics:
        metrics.table("round-0/trees", 0, TREES)
        for step in steps:
            metrics.log(STAGE, step, {"rewards/margins": 0.25 * step, "loss": float("nan")})
        metrics.show("evaluation", 1, {"accuracy/malt": 0.75})


def identity(run: Path, name: str) -> str:
    return json.loads((run / IDENTITIES).read_text())[name]


def records(file: Path) -> Iterator[bytes]:
    """The records of an event file: length, its checksum, content, its checksum."""
    content = file.read_bytes()
    while content:
        size = int.from_bytes(content[:8], "little")
        yield content[12 : 12 + size]
        content = content[16 + size :]


def test_tensorboard_has_scalars_and_the_trees_as_a_table(tmp_path: Path) -> None:
    follow(tmp_path, "jsonl", "tensorboard")
    follow(tmp_path, "jsonl", "tensorboard", steps=(3,))
    scalars, texts = {}, []
    for file in sorted((tmp_path / FOLDER).iterdir()):
        for event in map(Event.FromString, records(file)):
            for value in event.summary.value:
                if value.HasField("simple_value"):
                    scalars[value.tag, event.step] = value.simple_value
                elif value.HasField("tensor"):
                    texts.append(value.tensor.string_val[0].decode())
    margins = {step: v for (tag, step), v in scalars.items() if tag == f"{STAGE}/rewards/margins"}
    assert margins == {1: 0.25, 2: 0.5, 3: 0.75}
    assert scalars["evaluation/accuracy/malt", 1] == 0.75
    assert texts[0].splitlines()[-1] == r"| 2\+2? | refiner | 0 | 4\|\*x\* | 1 |"


def test_jsonl_alone_writes_nothing_else(tmp_path: Path) -> None:
    follow(tmp_path, "jsonl")
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]
    assert [line["rewards/margins"] for line in read_metrics(UPath(tmp_path))[STAGE]] == [0.25, 0.5]


@pytest.mark.slow
def test_wandb_offline_keeps_one_run_over_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    follow(tmp_path, "wandb")
    known = identity(tmp_path, "wandb")
    follow(tmp_path, "wandb", steps=(3,))
    assert identity(tmp_path, "wandb") == known
    stored = sorted((tmp_path / "wandb").glob(f"offline-run-*-{known}/run-{known}.wandb"))
    content = b"".join(file.read_bytes() for file in stored)
    for name in (f"{STAGE}/rewards/margins", f"{STAGE}/step", "evaluation/accuracy/malt"):
        assert name.encode() in content
    table, _ = (tmp_path / "wandb").glob("offline-run-*/files/media/table/round-0/trees_*.json")
    assert json.loads(table.read_text())["data"] == [["2+2?", "refiner", "0", "4|*x*", 1]]


@pytest.mark.slow
def test_trackio_keeps_one_run_over_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    trackio = pytest.importorskip("trackio")
    run = tmp_path / "run"
    run.mkdir()
    follow(run, "trackio")
    known = identity(run, "trackio")
    assert known.startswith("first-")
    follow(run, "trackio", steps=(3,))
    assert identity(run, "trackio") == known
    (found,) = trackio.Api().runs("project")
    assert found.name == known and found.config["sft.epochs"] == 2
    with contextlib.closing(sqlite3.connect(tmp_path / "trackio" / "project.db")) as database:
        rows = database.execute(
            "SELECT run_name, step, CAST(metrics AS TEXT) FROM metrics"
        ).fetchall()
    name = f"{STAGE}/rewards/margins"
    logged = {step: json.loads(text) for run, step, text in rows if name in text and run == known}
    assert {step: values[name] for step, values in logged.items()} == {1: 0.25, 2: 0.5, 3: 0.75}
    assert any("round-0/trees" in text and "4|*x*" in text for _, _, text in rows)


def test_mlflow_keeps_one_run_over_attempts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    # A store of files takes less time to make than a database.
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    run = tmp_path / "run"
    run.mkdir()
    follow(run, "mlflow")
    known = identity(run, "mlflow")
    follow(run, "mlflow", steps=(3,))
    client = mlflow.MlflowClient()
    (found,) = client.search_runs([client.get_experiment_by_name("project").experiment_id])
    assert found.info.run_id == known and found.info.status == "FINISHED"
    assert found.data.params == {"sft.epochs": "2"}
    history = client.get_metric_history(known, f"{STAGE}/rewards/margins")
    assert {metric.step: metric.value for metric in history} == {1: 0.25, 2: 0.5, 3: 0.75}
    (table,) = (tmp_path / "mlruns").rglob("trees.json")
    assert json.loads(table.read_text())["data"] == [["2+2?", "refiner", "0", "4|*x*", 1]]
    assert json.loads(found.data.tags["mlflow.loggedArtifacts"])[0]["path"] == "round-0/trees.json"


@pytest.mark.slow
def test_mlflow_without_a_server_has_a_database_in_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mlflow = pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    follow(tmp_path, "mlflow")
    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    run = client.get_run(identity(tmp_path, "mlflow"))
    assert run.data.metrics["evaluation/accuracy/malt"] == 0.75
    assert list((tmp_path / "mlartifacts").rglob("trees.json"))


class Fragile:
    """A tracker that cannot start, or that fails at a step."""

    module = "json"
    remote = False
    identity = None
    fails_at = 0
    seen: ClassVar[list[int]] = []

    def __init__(self, run: Followed) -> None:
        if self.fails_at == 0:
            raise ConnectionError("no way\nto it")

    def log(self, stage: str, step: int, values: object) -> None:
        if step == self.fails_at:
            raise PermissionError("wrong key")
        self.seen.append(step)

    def table(self, name: str, step: int, table: Table) -> None:
        pass

    def flush(self) -> None:
        pass

    def close(self, finished: bool) -> None:
        self.seen.append(-1)


@pytest.mark.parametrize("remote", [False, True])
@pytest.mark.parametrize(
    ("fails_at", "problem", "seen"),
    [(0, "ConnectionError: no way", []), (2, "PermissionError: wrong key", [1, -1])],
)
def test_a_tracker_that_fails_is_one_warning_and_the_metrics_go_on(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    remote: bool,
    fails_at: int,
    problem: str,
    seen: list[int],
) -> None:
    kind = type("Kind", (Fragile,), {"fails_at": fails_at, "remote": remote, "seen": []})
    monkeypatch.setitem(trackers.TRACKERS, "wandb", kind)
    follow(tmp_path, "wandb", steps=(1, 2, 3))
    warnings = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert warnings == [f"the tracker wandb is left out from here on: {problem}"]
    assert [value for value in kind.seen if value != 1 or fails_at] == seen
    assert [line["step"] for line in read_metrics(UPath(tmp_path))[STAGE]] == [1, 2, 3]


def test_a_network_that_hangs_holds_nothing_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    ever = threading.Event()
    hanging = {"fails_at": 9, "remote": True, "log": lambda *_: ever.wait(60) or None}
    monkeypatch.setitem(trackers.TRACKERS, "wandb", type("Kind", (Fragile,), hanging))
    monkeypatch.setattr(trackers, "_PATIENCE", 0.1)
    with caplog.at_level(logging.WARNING):
        follow(tmp_path, "wandb")
    ever.set()
    assert "wandb is left out from here on: it has not sent everything after 0 s" in caplog.text
    assert len(read_metrics(UPath(tmp_path))[STAGE]) == 2


def test_what_is_not_installed_is_an_error_with_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    missing = type("Missing", (Fragile,), {"module": "no_such_module"})
    monkeypatch.setitem(trackers.TRACKERS, "trackio", missing)
    with pytest.raises(UserError, match=r"no_such_module is not installed.*EXTRAS=trackio"):
        require_trackers(TrackingConfig(trackers=("jsonl", "trackio")), UPath(tmp_path))
    assert not list(tmp_path.iterdir())


def test_a_bucket_holds_no_database(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlflow")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    with pytest.raises(UserError, match="set MLFLOW_TRACKING_URI"):
        require_trackers(TrackingConfig(trackers=("mlflow",)), UPath("gs://bucket/run"))


def test_damaged_identities_start_new_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given: list[Followed] = []

    class Noting(Fragile):
        fails_at = 9

        def __init__(self, run: Followed) -> None:
            given.append(run)
            self.identity = "mine"  # type: ignore[assignment]

    monkeypatch.setitem(trackers.TRACKERS, "wandb", Noting)
    (tmp_path / IDENTITIES).write_text("{")
    config = TrackingConfig(trackers=("wandb",))
    for _ in range(2):
        open_trackers(config, UPath(tmp_path), tmp_path, {}).close()
    assert [each.identity for each in given] == [None, "mine"]
    assert given[0].name == tmp_path.name and given[0].project == "malt_jax"
    assert "not valid JSON" in caplog.text


def test_trackers_are_checked_options() -> None:
    config = load_config(None, ["tracking.trackers=[jsonl, tensorboard]"])
    assert config.tracking.trackers == ("jsonl", "tensorboard")
    with pytest.raises(UserError, match=r"tracking\.trackers"):
        load_config(None, ["tracking.trackers=[tensorbaord]"])
