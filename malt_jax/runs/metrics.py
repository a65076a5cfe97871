"""Metrics of a run: one JSON object a line, and TensorBoard event files where that is installed."""

from __future__ import annotations

import json
import logging
import math
import os
import shutil
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from upath import UPath

from malt_jax.errors import UserError
from malt_jax.files import in_bucket, location, parse_json_object, write_atomically

logger = logging.getLogger(__name__)

METRICS_FILE = "metrics.jsonl"
TENSORBOARD = "tensorboard"
_INTERVAL = 30.0
"""Seconds between two flushes."""


class Metrics:
    """Appends to `metrics.jsonl` in a run directory: {"stage": ..., "step": ..., NAME: VALUE, ...}.

    With tensorboardX (the extra `tensorboard`), the same values go to `tensorboard/` as STAGE/NAME.
    Nothing can be appended in a bucket: there both are written on the disk, and copied by `flush`.
    """

    def __init__(self, run: str | os.PathLike[str] | UPath, *, writes: bool = True) -> None:
        """`writes` is False in all processes of a run but one: what they log goes nowhere."""
        self._run = location(run)
        self._writes = writes
        if not writes:
            return
        self._copied = in_bucket(self._run)
        self._disk = Path(tempfile.mkdtemp(prefix="malt_jax-") if self._copied else str(run))
        self._board = _summary_writer(self._disk / TENSORBOARD)
        self._flushed = time.monotonic()
        self._open(None, 0)

    def restart(self, stage: str, after: int = 0) -> None:
        """Forgets the lines after a step of a stage, which goes on from there."""
        if self._writes:
            self.flush()
            self._lines.close()
            self._open(stage, after)

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Writes the values of one step. NaN and infinities, which JSON lacks, become null."""
        if not self._writes:
            return
        record = {"stage": stage, "step": step}
        for name, value in values.items():
            record[name] = _number(value)
            if self._board is not None:
                self._board.add_scalar(f"{stage}/{name}", float(value), step)
        self._lines.write(json.dumps(record, allow_nan=False).encode() + b"\n")
        self._lines.flush()
        if time.monotonic() - self._flushed > _INTERVAL:
            self.flush()

    def flush(self) -> None:
        """Returns when everybody can read what was logged, also after a crash of the machine."""
        if not self._writes:
            return
        os.fsync(self._lines.fileno())
        if self._board is not None:
            self._board.flush()
        for file in self._disk.rglob("*") if self._copied else ():
            if file.is_file() and file.stat().st_size:
                write_atomically(self._run / str(file.relative_to(self._disk)), file.read_bytes())
        self._flushed = time.monotonic()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._writes:
            if self._board is not None:
                self._board.close()
            self.flush()
            self._lines.close()
            if self._copied:
                shutil.rmtree(self._disk)

    def _open(self, stage: str | None, after: int) -> None:
        """Opens the file, without the lines of a stage after a step, and without damaged ones. The
        last one may have been cut off by the end of a process."""
        file = self._run / METRICS_FILE
        content, kept = file.read_bytes() if file.exists() else b"", b""
        for number, line in enumerate(content.splitlines(keepends=True), start=1):
            place = f"{file}:{number}"
            try:
                if not line.endswith(b"\n"):
                    raise UserError("cut off")
                record = parse_json_object(line, place)
                its_stage, step = record["stage"], record["step"]
                if its_stage != stage or step <= after:
                    kept += line
            except (UserError, KeyError, TypeError) as error:
                logger.warning("%s: the line is damaged and left out (%s)", place, error)
        if kept != content or self._copied:
            write_atomically(self._disk / METRICS_FILE, kept)
        self._lines = (self._disk / METRICS_FILE).open("ab")


def _summary_writer(directory: Path) -> Any:
    """None where tensorboardX is not installed."""
    try:
        from tensorboardX import SummaryWriter
    except ImportError:
        return None
    return SummaryWriter(str(directory))


def _number(value: Any) -> int | float | None:
    if isinstance(value, int):
        return value
    return float(value) if math.isfinite(value) else None
