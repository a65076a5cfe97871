"""Trackio: a database on this machine, or a Hugging Face Space."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import ClassVar

from malt_jax.tracking.tracker import Followed, Table, named


class Trackio:
    """A run of trackio. Its own variables hold: TRACKIO_DIR, TRACKIO_SPACE_ID, ..."""

    module: ClassVar[str] = "trackio"
    remote: ClassVar[bool] = True

    def __init__(self, run: Followed) -> None:
        import trackio

        self._trackio = trackio
        # A run is resumed by its name, so two runs must not share one.
        self.identity: str | None = run.identity or f"{run.name}-{secrets.token_hex(3)}"
        self._run = trackio.init(
            run.project,
            name=self.identity,
            config=dict(run.options),
            resume="allow",
            embed=False,
        )

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        self._run.log(named(stage, values), step=step)

    def table(self, name: str, step: int, table: Table) -> None:
        rows = [list(row) for row in table.rows]
        shown = self._trackio.Table(columns=list(table.columns), data=rows)
        self._run.log({name: shown}, step=step)

    def flush(self) -> None:
        """trackio writes by itself."""

    def close(self, finished: bool) -> None:
        self._run.finish()
