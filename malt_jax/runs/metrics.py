"""Metrics of a run: one JSON object a line, and TensorBoard event files where that is installed."""

from __future__ import annotations

import json
import math
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from upath import UPath

from malt_jax.files import in_bucket, location, write_atomically
from malt_jax.runs.growing_file import GrowingFile, growing

METRICS_FILE = "metrics.jsonl"
TENSORBOARD = "tensorboard"
_INTERVAL = 30.0
"""Seconds between two flushes."""


class Metrics:
    """Appends to `metrics.jsonl` in a run directory: {"stage": ..., "step": ..., NAME: VALUE, ...}.

    With tensorboardX (the extra `tensorboard`), the same values go to `tensorboard/` as STAGE/NAME.
    In a bucket both are some seconds behind.
    """

    def __init__(self, run: str | os.PathLike[str] | UPath, *, writes: bool = True) -> None:
        """`writes` is False in all processes of a run but one: what they log goes nowhere."""
        run = location(run)
        self._file = run / METRICS_FILE if writes else UPath(os.devnull)
        self._lines = self._opened(None, 0)
        self._board = _Board.of(run / TENSORBOARD) if writes else None
        self._flushed = time.monotonic()

    def restart(self, stage: str, after: int = 0) -> None:
        """Forgets the lines of a stage that was interrupted, as it begins anew after a step."""
        self._lines.close()
        self._lines = self._opened(stage, after)

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Writes the values of one step. NaN and infinities, which JSON lacks, become null."""
        record = {"stage": stage, "step": step}
        for name, value in values.items():
            record[name] = _number(value)
            if self._board is not None:
                self._board.add(f"{stage}/{name}", float(value), step)
        self._lines.write(json.dumps(record, allow_nan=False) + "\n")
        if time.monotonic() - self._flushed > _INTERVAL:
            self.flush()

    def flush(self) -> None:
        """Returns when everybody can read what was logged."""
        self._lines.flush()
        if self._board is not None:
            self._board.flush()
        self._flushed = time.monotonic()

    def close(self) -> None:
        """Closes the files; nothing can be logged afterwards."""
        self._lines.close()
        if self._board is not None:
            self._board.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _opened(self, stage: str | None, after: int) -> GrowingFile:
        """The file without a stage's steps, and without a last line that was cut off by the
        process's end."""
        old = self._file.read_bytes() if self._file.exists() else b""
        whole = old[: old.rfind(b"\n") + 1]
        kept = b"".join(x for x in whole.splitlines(True) if not _is_of(x, stage, after))
        if kept != old:
            write_atomically(self._file, kept)
        return growing(self._file, kept)


class _Board:
    """TensorBoard's files, which for a bucket are written on the disk and copied."""

    def __init__(self, writer: Any, disk: tempfile.TemporaryDirectory[str] | None, to: UPath):
        self._writer, self._disk, self._to = writer, disk, to

    @staticmethod
    def of(directory: UPath) -> _Board | None:
        """None where tensorboardX is not installed."""
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            return None
        if not in_bucket(directory):
            return _Board(SummaryWriter(str(directory)), None, directory)
        disk = tempfile.TemporaryDirectory(prefix="malt_jax-tensorboard-")
        return _Board(SummaryWriter(disk.name), disk, directory)

    def add(self, name: str, value: float, step: int) -> None:
        self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self._writer.flush()
        self._copy()

    def close(self) -> None:
        self._writer.close()
        self._copy()
        if self._disk is not None:
            self._disk.cleanup()

    def _copy(self) -> None:
        if self._disk is not None:
            for file in Path(self._disk.name).iterdir():
                write_atomically(self._to / file.name, file.read_bytes())


def _is_of(line: bytes, stage: str | None, after: int) -> bool:
    record = json.loads(line)
    return record["stage"] == stage and record["step"] > after


def _number(value: Any) -> int | float | None:
    if isinstance(value, int):
        return value
    return float(value) if math.isfinite(value) else None
