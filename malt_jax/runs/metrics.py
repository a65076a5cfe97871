"""Metrics of a run: one JSON object a line, and TensorBoard event files where that is installed."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from malt_jax.runs.directory import write_atomically

METRICS_FILE = "metrics.jsonl"
TENSORBOARD = "tensorboard"


class Metrics:
    """Appends to `metrics.jsonl` in a run directory: {"stage": ..., "step": ..., NAME: VALUE, ...}.

    With tensorboardX (the extra `tensorboard`), the same values go to `tensorboard/` as STAGE/NAME.
    """

    def __init__(self, run: Path | str, *, writes: bool = True) -> None:
        """`writes` is False in all processes of a run but one: what they log goes nowhere."""
        self._file = Path(run) / METRICS_FILE if writes else Path(os.devnull)
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._forget(None)
        self._lines = open(self._file, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)
        self._board = None
        if not writes:
            return
        try:
            from tensorboardX import SummaryWriter
        except ImportError:
            return
        self._board = SummaryWriter(str(Path(run) / TENSORBOARD))

    def restart(self, stage: str, after: int = 0) -> None:
        """Forgets the lines of a stage that was interrupted, as it begins anew after a step."""
        self._lines.close()
        self._forget(stage, after)
        self._lines = open(self._file, "a", encoding="utf-8")  # noqa: SIM115 (closed by close)

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Writes the values of one step. NaN and infinities, which JSON lacks, become null."""
        record = {"stage": stage, "step": step}
        for name, value in values.items():
            record[name] = _number(value)
            if self._board is not None:
                self._board.add_scalar(f"{stage}/{name}", float(value), step)
        self._lines.write(json.dumps(record, allow_nan=False) + "\n")
        self._lines.flush()

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

    def _forget(self, stage: str | None, after: int = 0) -> None:
        """Leaves out a stage's steps, and a last line that was cut off by the process's end."""
        if self._file.is_file():
            old = self._file.read_bytes()
            whole = old[: old.rfind(b"\n") + 1]
            kept = [line for line in whole.splitlines(True) if not _is_of(line, stage, after)]
            if b"".join(kept) != old:
                write_atomically(self._file, b"".join(kept))


def _is_of(line: bytes, stage: str | None, after: int) -> bool:
    record = json.loads(line)
    return record["stage"] == stage and record["step"] > after


def _number(value: Any) -> int | float | None:
    if isinstance(value, int):
        return value
    return float(value) if math.isfinite(value) else None
