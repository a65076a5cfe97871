"""A snapshot of a run, for a terminal."""

from __future__ import annotations

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from malt_jax.progress import duration
from malt_jax.watch.snapshot import DONE, RUNNING, Snapshot, StageView

QUIET = 600.0
"""Seconds without a write after which a run whose lock cannot be seen counts as stopped."""


def state(snapshot: Snapshot) -> str:
    """What the run is doing: "running: ...", "finished: ..." or "stopped ...", in words."""
    name, holds = snapshot.holder
    ago = "" if snapshot.written is None else f"; last write {duration(snapshot.written)} ago"
    stage = snapshot.current
    where = "" if stage is None else f" in {stage.name}"
    if holds:
        return f"running{where}: {name}{ago}"
    if snapshot.finished:
        return "finished: the results are in results.json"
    again = "; the same command continues it"
    if holds is None and snapshot.written is not None and snapshot.written < QUIET:
        return f"probably running{where}: {name}, another machine{ago}"
    if snapshot.written is None:
        return f"stopped before anything was written{again}"
    return f"stopped{where}{ago}{again}"


def is_over(snapshot: Snapshot) -> bool:
    """Whether the run is not at work."""
    return state(snapshot).startswith(("finished", "stopped"))


def show(snapshot: Snapshot) -> RenderableType:
    """The run's state, a table of its stages, and the time left."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column, justify in (("stage", "left"), ("state", "left"), ("done", "right")):
        table.add_column(column, justify=justify)  # type: ignore[arg-type]
    for column in ("rate", "time", "left"):
        table.add_column(column, justify="right")
    current = snapshot.current
    for stage in snapshot.stages:
        table.add_row(*_cells(stage, is_over(snapshot)), style="bold" if stage is current else None)
    lines: list[RenderableType] = [Text(f"{snapshot.path}: {state(snapshot)}"), table]
    if current is not None and current.metrics:
        lines.append(Text(_metrics(current)))
    if current not in (None, snapshot.stages[-1]) and not is_over(snapshot):
        left = snapshot.left
        if left is not None:
            lines.append(Text(f"about {duration(left)} of training left; then the evaluation"))
        else:
            lines.append(Text("time left of the run: not known yet"))
    return Group(*lines)


def _cells(stage: StageView, over: bool) -> list[str]:
    work, begun = stage.work, stage.state in (DONE, RUNNING)
    done = ""
    if work.unit and (begun or work.total is not None):
        done = f"{work.done if begun else 0:,}"
        done += f" / {work.total:,}" if work.total is not None else ""
        done += f" {work.unit}"
    rate, left = work.rate, None if over else work.left
    return [
        stage.name,
        "unfinished" if over and stage.state == RUNNING else stage.state,
        done,
        f"{rate:.3g}/s" if rate and begun else "",
        duration(work.seconds) if begun and work.seconds else "",
        duration(left) if left and stage.state == RUNNING else "",
    ]


def _metrics(stage: StageView) -> str:
    values = [f"{name} {value:.4g}" for name, value in stage.metrics.items() if value is not None]
    return f"update {stage.work.done}: {', '.join(values)}"
