"""The state of a run, read from its files while another process writes them."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from upath import UPath

from malt_jax.errors import UserError
from malt_jax.evaluation.store import FOLDER
from malt_jax.files import in_bucket, modified, parse_json_object, reached
from malt_jax.malt.round import Phase, TrainingStage, phases
from malt_jax.runs.directory import RESULTS_FILE, RunDirectory
from malt_jax.runs.lock import LOCK_FILE, Holder, holder
from malt_jax.runs.metrics import METRICS_FILE, Curves, read_metrics
from malt_jax.runs.stage import MANIFEST, UNFINISHED, Manifest
from malt_jax.training.loop import total_updates
from malt_jax.watch.evaluation import Counted, evaluation_work
from malt_jax.watch.work import Work

DONE, RUNNING, WAITING, SKIPPED = "done", "running", "waiting", "nothing to train on"


@dataclasses.dataclass(frozen=True)
class StageView:
    """One stage of a run."""

    name: str
    state: str
    """DONE, RUNNING (begun, whether or not a process is at work), WAITING or SKIPPED."""
    work: Work
    metrics: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    """Of the last update."""


class Snapshot(NamedTuple):
    """A run at one moment."""

    path: UPath
    stages: list[StageView]
    """All stages in order; the evaluation is the last one."""
    holder: Holder
    written: float | None
    """Seconds since the last write; None: nothing was written yet."""
    finished: bool
    """results.json is there."""

    @property
    def current(self) -> StageView | None:
        """The stage at work."""
        return next((stage for stage in self.stages if stage.state == RUNNING), None)

    def with_rate(self, rate: float | None) -> Snapshot:
        """The snapshot with the rate of the current stage, in units a second; None: as it is."""
        current = self.current
        if current is None or rate is None:
            return self
        work = dataclasses.replace(current.work, seen=rate)
        seen = dataclasses.replace(current, work=work)
        return self._replace(stages=[seen if s is current else s for s in self.stages])

    @property
    def left(self) -> float | None:
        """Seconds until the last training stage has ended; None where that cannot be told."""
        lefts = [stage.work.left for stage in self.stages[:-1] if stage.state in (RUNNING, WAITING)]
        known = [left for left in lefts if left is not None]
        return sum(known) if len(known) == len(lefts) else None


class Reader:
    """Reads snapshots of one run. What cannot change any more is read once."""

    def __init__(self, path: UPath) -> None:
        """Raises UserError when there is no run at `path`."""
        self._run = RunDirectory.read(path)
        self._manifests: dict[str, Manifest] = {}
        self._counted: Counted = {}

    def snapshot(self) -> Snapshot:
        """The state now.

        Raises UserError when the run cannot be reached.
        """
        path = self._run.path
        with reached(path):
            held = holder(path)
            curves = _quietly_read(path)
            stages = [view for phase in self._phases() for view in self._views(phase, curves)]
            stages = _with_estimates(_with_seconds(path, _with_skipped(stages)))
            stages.append(self._evaluation(stages))
            finished = (path / RESULTS_FILE).exists()
            return Snapshot(path, stages, held, _age(path, stages), finished)

    def _phases(self) -> list[Phase]:
        config = self._run.config
        return [phase for number in range(config.rounds) for phase in phases(config, number)]

    def _views(self, phase: Phase, curves: Curves) -> list[StageView]:
        rows = self._view(phase.rows, Work())
        counts = self._counts(phase.rows) if rows.state == DONE else {}
        training = [self._training(stage, counts, curves) for stage in phase.stages]
        return [self._trees(phase.trees), rows, *training]

    def _view(self, name: str, work: Work, metrics: Mapping[str, Any] | None = None) -> StageView:
        """A stage with its state, and the seconds of its manifest."""
        manifest, state = self._manifest(name)
        if manifest is not None and work.seconds is None and work.rated is None:
            work = dataclasses.replace(work, seconds=manifest.seconds)
        if state == WAITING and work.done:
            state = RUNNING
        if state == DONE and work.total is not None:
            work = dataclasses.replace(work, done=work.total)
        return StageView(name, state, work, metrics or {})

    def _trees(self, name: str) -> StageView:
        size, total = self._run.config.sampling.questions_per_batch, self._questions(name)
        manifest, _ = self._manifest(name)
        files = manifest.files if manifest is not None else {}
        batches = sum(file.startswith("batch-") for file in files)
        done = batches * size if total is None else min(batches * size, total)
        return self._view(name, Work(done, total, "questions"))

    def _training(
        self, stage: TrainingStage, counts: Mapping[str, Any], curves: Curves
    ) -> StageView:
        records = curves.get(stage.name, [])
        last = dict(records[-1]) if records else {}
        done, total = int(last.get("step", 0)), last.get("steps")
        if total is None:
            total = _updates(stage, counts.get(self._run.config.pipeline.names[stage.depth]))
        manifest, state = self._manifest(stage.name)
        saved = _saved_step(manifest) if state == RUNNING else None
        # Between two saved states only metrics.jsonl tells how far the stage is, and not when.
        seconds = manifest.seconds if manifest is not None and saved else None
        work = Work(done, total, "updates", seconds, rated=saved)
        metrics = {k: v for k, v in last.items() if k not in ("stage", "step", "steps", "epoch")}
        return self._view(stage.name, work, metrics)

    def _evaluation(self, stages: Sequence[StageView]) -> StageView:
        manifest, state = self._manifest(FOLDER)
        files = [] if manifest is None else sorted(manifest.files)
        trained = [stage.name for stage in stages if stage.state == DONE]
        work = evaluation_work(self._run, trained, files, self._counted)
        if (self._run.path / RESULTS_FILE).exists():
            state = DONE
        return StageView(FOLDER, state, work)

    def _manifest(self, name: str) -> tuple[Manifest | None, str]:
        if name in self._manifests:
            return self._manifests[name], DONE
        for file, state in ((MANIFEST, DONE), (UNFINISHED, RUNNING)):
            try:
                manifest = Manifest.read(self._run.path / name / file)
            except FileNotFoundError:
                continue
            except (UserError, ValueError):
                return None, state  # `malt doctor` says what is wrong with it
            if state == DONE:
                self._manifests[name] = manifest
            return manifest, state
        return None, WAITING

    def _questions(self, trees: str) -> int | None:
        """The number of questions of a round's trees, as far as it is known."""
        limit = self._run.config.task.train_questions
        try:
            file = self._run.path / trees / "inputs.json"
            asked = str(parse_json_object(file.read_bytes(), str(file)).get("questions", ""))
            return int(asked.partition(" ")[0])
        except (OSError, UserError, ValueError):
            return limit

    def _counts(self, rows: str) -> Mapping[str, Any]:
        file = self._run.path / rows / "counts.json"
        try:
            return parse_json_object(file.read_bytes(), str(file))
        except (OSError, UserError):
            return {}


def _updates(stage: TrainingStage, counts: Any) -> int | None:
    """The updates of a stage that has not begun; None where its rows are not known."""
    try:
        sft = stage.objective.name == "sft"
        figures = [int(counts[name]) for name in ("correct", "incorrect", "pairs")]
        rows = int(counts["rows"]) if sft else stage.objective.count_rows(*figures)
    except (TypeError, KeyError, ValueError):
        return None
    return total_updates(stage.objective.options, rows) if rows else 0


def _saved_step(manifest: Manifest | None) -> int:
    """The update after which the last training state was saved; 0: none was."""
    names = [] if manifest is None else [n.partition("/")[0] for n in manifest.files]
    steps = [n.removeprefix("state-") for n in names if n.startswith("state-")]
    return max((int(step) for step in steps if step.isdigit()), default=0)


def _with_skipped(stages: Sequence[StageView]) -> list[StageView]:
    """Marks the stages without rows: those of 0 updates, and those that a later stage overtook."""
    last = max((i for i, stage in enumerate(stages) if stage.state != WAITING), default=-1)
    return [
        dataclasses.replace(stage, state=SKIPPED)
        if stage.state == WAITING and (i < last or stage.work.total == 0)
        else stage
        for i, stage in enumerate(stages)
    ]


def _with_seconds(path: UPath, stages: Sequence[StageView]) -> list[StageView]:
    """Gives a training stage that has saved nothing yet the seconds of its updates, from the times
    of files: it began when the stage before it ended, or when the run was started again."""
    found = []
    began: list[UPath] = [] if in_bucket(path) else [path / LOCK_FILE]
    for stage in stages:
        if stage.state == DONE:
            began.append(path / stage.name / MANIFEST)
        elif stage.state == RUNNING and stage.work.unit == "updates" and not stage.work.seconds:
            begin, last = _latest(began), _latest([path / METRICS_FILE])
            if begin is not None and last is not None and last > begin:
                work = dataclasses.replace(stage.work, seconds=last - begin, rated=None)
                stage = dataclasses.replace(stage, work=work)
        found.append(stage)
    return found


def _with_estimates(stages: Sequence[StageView]) -> list[StageView]:
    """Gives stages that wait the rate of the last stage of their kind that has one."""
    rates: dict[str, float] = {}
    found = []
    for stage in stages:
        kind = stage.name.rpartition("/")[2]
        rate = stage.work.rate
        if rate is not None:
            rates[kind] = rate
        elif stage.work.unit == "updates" and kind in rates:
            stage = dataclasses.replace(
                stage, work=dataclasses.replace(stage.work, guess=rates[kind])
            )
        found.append(stage)
    return found


def _quietly_read(path: UPath) -> Curves:
    """The metrics without warnings: a line that is being written looks like a damaged one."""
    log = logging.getLogger(read_metrics.__module__)
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        return read_metrics(path)
    finally:
        log.setLevel(level)


def _age(path: UPath, stages: Sequence[StageView]) -> float | None:
    """Seconds since a file of the run was written."""
    files = [path / METRICS_FILE, path / RESULTS_FILE, path / FOLDER / UNFINISHED]
    for stage in stages:
        if stage.state in (RUNNING, DONE):
            files.append(path / stage.name / (MANIFEST if stage.state == DONE else UNFINISHED))
    last = _latest(files)
    return None if last is None else max(0.0, time.time() - last)


def _latest(files: Sequence[UPath]) -> float | None:
    """The time of the last change of any of these files; None if none exists."""
    times = []
    for file in files:
        with contextlib.suppress(FileNotFoundError):
            times.append(modified(file))
    return max(times, default=None)
