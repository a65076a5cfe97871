"""Metrics are lines of JSON, also after a crash."""

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from upath import UPath

from malt_jax.runs.metrics import (
    METRICS_FILE,
    Metrics,
    last_values,
    read_metrics,
)
from malt_jax.tracking.tensorboard import FOLDER as TENSORBOARD


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / METRICS_FILE).read_text().splitlines()]


def test_every_step_is_a_line(tmp_path: Path) -> None:
    with Metrics(tmp_path) as metrics:
        metrics.log("round-0/verifier/sft", 1, {"loss": np.float32(0.5), "rows": 3})
        metrics.log("round-0/verifier/sft", 2, {"loss": float("nan")})
    assert lines(tmp_path) == [
        {"stage": "round-0/verifier/sft", "step": 1, "loss": 0.5, "rows": 3},
        {"stage": "round-0/verifier/sft", "step": 2, "loss": None},
    ]


def test_a_run_that_goes_on_appends(tmp_path: Path) -> None:
    for step in (1, 2):
        with Metrics(tmp_path) as metrics:
            metrics.log("a", step, {"loss": 1.0})
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_a_line_cut_off_by_a_crash_is_removed(tmp_path: Path) -> None:
    with Metrics(tmp_path) as metrics:
        metrics.log("a", 1, {"loss": 1.0})
    with open(tmp_path / METRICS_FILE, "a") as file:
        file.write('{"stage": "a", "st')
    with Metrics(tmp_path) as metrics:
        metrics.log("a", 2, {"loss": 1.0})
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_a_stage_that_begins_anew_loses_its_old_lines_alone(tmp_path: Path) -> None:
    with Metrics(tmp_path) as metrics:
        metrics.log("a", 1, {"loss": 1.0})
        metrics.log("b", 1, {"loss": 2.0})
        metrics.restart("b")
        metrics.log("b", 1, {"loss": 3.0})
    assert [(line["stage"], line["loss"]) for line in lines(tmp_path)] == [("a", 1.0), ("b", 3.0)]


def test_a_stage_that_goes_on_keeps_the_lines_up_to_its_saved_state(tmp_path: Path) -> None:
    with Metrics(tmp_path) as metrics:
        for stage, step in (("a", 1), ("b", 1), ("b", 2), ("b", 3)):
            metrics.log(stage, step, {"loss": 1.0})
        metrics.restart("b", after=2)
    assert [(line["stage"], line["step"]) for line in lines(tmp_path)] == [
        *(("a", 1), ("b", 1), ("b", 2)),
    ]


@pytest.mark.parametrize(
    "damaged", [b'{"stage": "a", "st\xffp": 2}', b"[2]", b'{"stage": "a"}', b""]
)
def test_a_damaged_line_is_named_by_its_number_and_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, damaged: bytes
) -> None:
    with Metrics(tmp_path) as metrics:
        for step in (1, 2, 3):
            metrics.log("a", step, {"loss": 1.0})
    content = (tmp_path / METRICS_FILE).read_bytes().splitlines()
    (tmp_path / METRICS_FILE).write_bytes(b"\n".join([content[0], damaged, content[2], b""]))
    with Metrics(tmp_path) as metrics:
        metrics.log("a", 4, {"loss": 1.0})
    assert f"{METRICS_FILE}:2: the line is damaged and left out" in caplog.text
    assert [line["step"] for line in lines(tmp_path)] == [1, 3, 4]


def test_tensorboard_gets_the_same_values(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    with Metrics(tmp_path) as metrics:
        metrics.log("a", 1, {"loss": 1.0})
    (events,) = (tmp_path / TENSORBOARD).iterdir()
    assert b"a/loss" in events.read_bytes()


def test_without_tensorboard_the_lines_remain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "tensorboardX":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with Metrics(tmp_path) as metrics:
        metrics.log("a", 1, {"loss": 1.0})
    assert len(lines(tmp_path)) == 1 and not (tmp_path / TENSORBOARD).exists()


def test_curves_are_read_stage_by_stage(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert read_metrics(UPath(tmp_path)) == {}
    with Metrics(tmp_path) as metrics:
        for stage, step in (("b", 1), ("a", 2), ("b", 2), ("a", 1)):
            metrics.log(stage, step, {"loss": 0.5 * step})
    damaged = ["[1]", '{"stage": 3, "step": 1}', '{"stage": "a", "step": "2"}', '{"stage": "a']
    with open(tmp_path / METRICS_FILE, "a") as file:
        file.write("\n".join(damaged))
    curves = read_metrics(UPath(tmp_path))
    assert {stage: [r["step"] for r in records] for stage, records in curves.items()} == {
        "b": [1, 2],
        "a": [1, 2],
    }
    assert caplog.text.count("damaged and left out") == len(damaged)


def test_the_end_of_a_stage_is_the_mean_of_its_last_updates(tmp_path: Path) -> None:
    with Metrics(tmp_path) as metrics:
        for step in range(1, 31):
            margin = float("nan") if step == 25 else 0.1
            values = {"loss": float(step), "rewards/margins": margin, "steps": 30, "epoch": 1.0}
            metrics.log("round-0/verifier/dpo", step, values)
        metrics.log("round-0/refiner/sft", 1, {"loss": 2.0, "steps": 1})
    assert last_values(read_metrics(UPath(tmp_path))) == {
        "round-0/verifier/dpo": {
            "updates": 30,
            "loss": pytest.approx(25.5),
            "rewards/margins": None,
        },
        "round-0/refiner/sft": {"updates": 1, "loss": 2.0},
    }
