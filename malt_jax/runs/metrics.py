"""Metrics of a run: one JSON object a line, and the same in the run's trackers."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

from upath import UPath

from malt_jax.config import TrackingConfig
from malt_jax.errors import UserError
from malt_jax.files import in_bucket, location, naming, parse_json_object, reached, write_atomically
from malt_jax.tracking.tracker import Table
from malt_jax.tracking.trackers import Trackers, open_trackers

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
LAST_UPDATES = 10
"""Updates whose mean stands for the end of a stage."""
_INTERVAL = 30.0
"""Seconds between two flushes."""

Curves = Mapping[str, Sequence[Mapping[str, Any]]]
"""Stage -> what was logged after each of its updates: `stage`, `step`, and numbers or None."""


class Metrics:
    """Appends to `metrics.jsonl` in a run directory: {"stage": ..., "step": ..., NAME: VALUE, ...}.

    The same values go to the run's trackers as STAGE/NAME (`malt_jax.tracking`). Nothing can be
    appended in a bucket: there files are written on the disk, and copied by `flush`.
    """

    def __init__(
        self,
        run: str | os.PathLike[str] | UPath,
        *,
        writes: bool = True,
        tracking: TrackingConfig | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> None:
        """
        writes:   False in all processes of a run but one: what they log goes nowhere.
        tracking: the trackers; None: TensorBoard if it is installed.
        options:  of the run, by full name, for the trackers.

        Raises UserError when a tracker is not installed or lacks a setting.
        """
        self._run = location(run)
        self._writes = writes
        if not writes:
            return
        self._copied = in_bucket(self._run)
        self._disk = Path(tempfile.mkdtemp(prefix="malt_jax-") if self._copied else str(run))
        self._trackers: Trackers = open_trackers(
            tracking or TrackingConfig(), self._run, self._disk, options or {}
        )
        self._flushed = time.monotonic()
        self._open(None, 0)

    def restart(self, stage: str, after: int = 0) -> None:
        """Forgets the lines after a step of a stage, which goes on from there."""
        if self._writes:
            self.flush()
            self._close()
            self._open(stage, after)

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Writes the values of one step. NaN and infinities, which JSON lacks, become null."""
        if not self._writes:
            return
        record = {"stage": stage, "step": step}
        for name, value in values.items():
            record[name] = _number(value)
        with naming(self._disk / METRICS_FILE):
            self._lines.write(json.dumps(record, allow_nan=False).encode() + b"\n")
            self._lines.flush()
        self._trackers.log(stage, step, values)
        if time.monotonic() - self._flushed > _INTERVAL:
            self.flush()

    def show(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Shows values in the trackers that belong to no training stage, such as accuracies."""
        if self._writes:
            self._trackers.log(stage, step, values)

    def table(self, name: str, step: int, table: Table) -> None:
        """Shows a table in the trackers, unless it is empty."""
        if self._writes and table.rows:
            self._trackers.table(name, step, table)

    def flush(self) -> None:
        """Returns when everybody can read what was logged, also after a crash of the machine."""
        if not self._writes:
            return
        os.fsync(self._lines.fileno())
        self._trackers.flush()
        for file in self._disk.rglob("*") if self._copied else ():
            if file.is_file() and file.stat().st_size:
                write_atomically(self._run / str(file.relative_to(self._disk)), file.read_bytes())
        self._flushed = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._writes:
            self._trackers.close(finished=kind is None)
            self.flush()
            self._close()
            if self._copied:
                shutil.rmtree(self._disk)

    def _close(self) -> None:
        with naming(self._disk / METRICS_FILE):  # a line that found no room is tried again
            self._lines.close()

    def _open(self, stage: str | None, after: int) -> None:
        """Opens the file, without the lines of a stage after a step, and without damaged ones. The
        last one may have been cut off by the end of a process."""
        file = self._run / METRICS_FILE
        content, kept = file.read_bytes() if file.exists() else b"", b""
        for line, record in _whole_lines(content, file):
            if record["stage"] != stage or record["step"] <= after:
                kept += line
        if kept != content or self._copied:
            write_atomically(self._disk / METRICS_FILE, kept)
        self._lines = (self._disk / METRICS_FILE).open("ab")


def read_metrics(run: UPath) -> Curves:
    """The logged metrics of a run's training stages, in the order of training.

    Empty where nothing was logged. Damaged lines are left out with a warning.
    """
    file = run / METRICS_FILE
    curves: dict[str, list[dict[str, Any]]] = {}
    with reached(run):
        content = file.read_bytes() if file.exists() else b""
    for _, record in _whole_lines(content, file):
        curves.setdefault(record["stage"], []).append(record)
    return {stage: sorted(records, key=lambda r: r["step"]) for stage, records in curves.items()}


def damaged_lines(run: UPath) -> tuple[int, int]:
    """The number of damaged lines of a run's metrics, and of all lines. The log names them."""
    file = run / METRICS_FILE
    with reached(run):
        content = file.read_bytes() if file.exists() else b""
    lines = len(content.splitlines())
    return lines - sum(1 for _ in _whole_lines(content, file)), lines


def last_values(curves: Curves) -> dict[str, dict[str, float | None]]:
    """The field `training` of results.json: updates of every stage, and its metrics at the end.

    These are means over the last LAST_UPDATES updates; None where one of them was no number.
    """
    content: dict[str, dict[str, float | None]] = {}
    for stage, records in curves.items():
        last = records[-LAST_UPDATES:]
        values: dict[str, float | None] = {"updates": records[-1]["step"]}
        for name in last[-1]:
            if name not in ("stage", "step", "steps", "epoch"):
                known = [r[name] for r in last if isinstance(r.get(name), int | float)]
                values[name] = sum(known) / len(known) if len(known) == len(last) else None
        content[stage] = values
    return content


def _whole_lines(content: bytes, file: UPath) -> Iterator[tuple[bytes, dict[str, Any]]]:
    """The lines of a file of metrics with their records, without damaged ones."""
    for number, line in enumerate(content.splitlines(keepends=True), start=1):
        place = f"{file}:{number}"
        try:
            if not line.endswith(b"\n"):
                raise UserError("cut off")
            record = parse_json_object(line, place)
            if not (isinstance(record["stage"], str) and isinstance(record["step"], int)):
                raise TypeError("stage must be a text, step a whole number")
        except (UserError, KeyError, TypeError) as error:
            logger.warning("%s: the line is damaged and left out (%s)", place, error)
            continue
        yield line, record


def _number(value: Any) -> int | float | None:
    if isinstance(value, int):
        return value
    return float(value) if math.isfinite(value) else None
