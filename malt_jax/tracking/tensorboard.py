"""TensorBoard's event files, through tensorboardX."""

from __future__ import annotations

import html
import re
import secrets
from collections.abc import Mapping
from typing import ClassVar

from malt_jax.tracking.tracker import Followed, Table

FOLDER = "tensorboard"
"""Below a run's directory."""


class TensorBoard:
    """Event files in the run's directory. A resumed run adds files, which are shown as one run."""

    module: ClassVar[str] = "tensorboardX"
    remote: ClassVar[bool] = False
    identity: str | None = None

    def __init__(self, run: Followed) -> None:
        from tensorboardX import SummaryWriter

        # Files are named by the second: a run resumed within it would replace its own.
        suffix = f".{secrets.token_hex(4)}"
        self._writer = SummaryWriter(str(run.disk / FOLDER), filename_suffix=suffix)

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(f"{stage}/{name}", float(value), step)

    def table(self, name: str, step: int, table: Table) -> None:
        cells = [[_cell(value) for value in row] for row in table.rows]
        rows = [table.columns, ["---"] * len(table.columns), *cells]
        self._writer.add_text(name, "\n".join(f"| {' | '.join(row)} |" for row in rows), step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self, finished: bool) -> None:
        self._writer.close()


def _cell(value: str | float) -> str:
    """A value as a cell of a Markdown table, in which no text is markup."""
    if not isinstance(value, str):
        return f"{value:g}"
    plain = re.sub(r"([\\`*_{}\[\]()#+.!|~-])", r"\\\1", html.escape(value, quote=False))
    return plain.replace("\n", "<br>")
