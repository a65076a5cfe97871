"""A run without a model, made stage by stage."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from upath import UPath

from malt_jax.config import Config, load_config, to_yaml
from malt_jax.files import write_atomically
from malt_jax.runs.directory import CONFIG_FILE, RunDirectory
from malt_jax.runs.metrics import METRICS_FILE, Metrics
from malt_jax.runs.stage import MANIFEST, UNFINISHED, Manifest

OPTIONS = (
    *("task.train_questions=10", "task.test_questions=5", "sampling.questions_per_batch=4"),
    *("training.dpo_roles=[]", "sft.batch_size=8", "sft.epochs=1"),
    "sampling.max_tokens=48",
)


class SmallRun:
    """The directory of a run of three roles with one training stage each."""

    def __init__(self, path: UPath) -> None:
        self.path = path
        self.config: Config = load_config(None, OPTIONS)
        write_atomically(path / CONFIG_FILE, to_yaml(self.config))
        self.directory = RunDirectory(path, self.config)

    def finish(self, name: str, seconds: float = 1.0, **files: str) -> None:
        """Writes a finished stage; in names of files "__" stands for a dot."""
        with self.directory.stage(name) as stage:
            for file, content in files.items():
                stage.write(file.replace("__", "."), content)
        self._set_seconds(name, MANIFEST, seconds)

    def begin(self, name: str, seconds: float, *files: str) -> None:
        """Writes some files of a stage that is not finished."""
        stage = self.directory.growing(name)
        for file in files:
            stage.write(file, "content")
        self._set_seconds(name, UNFINISHED, seconds)

    def finish_rows(self, rows: int) -> None:
        counts = {"rows": rows, "correct": rows, "incorrect": 3, "pairs": 0}
        roles = self.config.pipeline.names
        self.finish("round-0/rows", counts__json=json.dumps({role: counts for role in roles}))

    def train(self, role: str, last: int, total: int) -> None:
        with Metrics(self.path) as metrics:
            for step in range(1, last + 1):
                metrics.log(f"round-0/{role}/sft", step, {"loss": 1.0 / step, "steps": total})

    def age(self, seconds: float) -> None:
        """Makes every file that much older."""
        for file in Path(str(self.path)).rglob("*"):
            if file.is_file():
                changed = file.stat().st_mtime - seconds
                os.utime(file, (changed, changed))

    def _set_seconds(self, name: str, file: str, seconds: float) -> None:
        manifest = Manifest.read(self.path / name / file)
        manifest.seconds = seconds
        manifest.write(self.path / name / file)


@pytest.fixture
def run(tmp_path: Path) -> SmallRun:
    return SmallRun(UPath(tmp_path / "run"))


@pytest.fixture
def training(run: SmallRun) -> SmallRun:
    """The generator is trained, the verifier is at update 4 of 8 after 8 s, the refiner waits."""
    run.finish("round-0/trees", 60.0, **{"inputs__json": '{"questions": "10 with 00"}'})
    run.finish_rows(16)
    run.train("generator", 2, 2)
    run.finish("round-0/generator/sft", 1.0, weights="")
    run.train("verifier", 4, 8)
    path = Path(str(run.path))
    run.age(1000.0)
    began = (path / "round-0/generator/sft" / MANIFEST).stat().st_mtime
    os.utime(path / METRICS_FILE, (began + 8, began + 8))
    return run
