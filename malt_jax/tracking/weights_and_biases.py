"""Weights & Biases, through wandb."""

from __future__ import annotations

import os
import secrets
from collections.abc import Mapping
from typing import ClassVar

from malt_jax.tracking.tracker import Followed, Table, named


class WeightsAndBiases:
    """A run of wandb. Its own variables hold: WANDB_MODE=offline, WANDB_API_KEY, WANDB_ENTITY, ...

    Steps are counted by stage, so STAGE/step is the axis of a stage's curves.
    """

    module: ClassVar[str] = "wandb"
    remote: ClassVar[bool] = True

    def __init__(self, run: Followed) -> None:
        import wandb

        self._wandb = wandb
        self.identity: str | None = run.identity or secrets.token_hex(8)
        self._run = wandb.init(
            project=run.project,
            name=run.name,
            id=self.identity,
            resume=None if run.identity is None else "allow",
            config=dict(run.options),
            dir=os.environ.get("WANDB_DIR", str(run.disk)),
            # It would take the terminal's lines over.
            settings=wandb.Settings(console="off"),
        )
        self._stages: set[str] = set()

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        if stage not in self._stages:
            self._stages.add(stage)
            self._run.define_metric(f"{stage}/*", step_metric=f"{stage}/step")
        self._run.log({**named(stage, values), f"{stage}/step": step})

    def table(self, name: str, step: int, table: Table) -> None:
        rows = [list(row) for row in table.rows]
        self._run.log({name: self._wandb.Table(columns=list(table.columns), data=rows)})

    def flush(self) -> None:
        """wandb sends by itself."""

    def close(self, finished: bool) -> None:
        self._run.finish(exit_code=0 if finished else 1)
