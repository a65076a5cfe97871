"""The protocol of a tracker, and the facts about a run that it is given."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol


class Table(NamedTuple):
    """A table of texts and numbers; every row has a value for each column."""

    columns: tuple[str, ...]
    rows: Sequence[tuple[str | float, ...]]


class Followed(NamedTuple):
    """The run that a tracker follows."""

    name: str
    project: str
    options: Mapping[str, Any]
    """The value of every option by its full name."""
    disk: Path
    """A directory for files of the tracker: the run's, or a copy of it that goes to its bucket."""
    identity: str | None
    """The `identity` of the tracker in an earlier attempt of this run; None: there is none."""


class Tracker(Protocol):
    """A library that shows the metrics and tables of runs.

    Any method may raise any error: the run goes on without the tracker.
    """

    module: ClassVar[str]
    """The module that has to be installed."""
    remote: ClassVar[bool]
    """Whether calls may wait for a network: they are then made from another thread."""
    identity: str | None
    """Names the tracker's run, so that a resumed run goes on in it; None: nothing to name."""

    def __init__(self, run: Followed) -> None:
        """Starts to follow a run, or goes on where `run.identity` names one."""

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Takes the values of one step of a stage; steps count from 1 in every stage."""

    def table(self, name: str, step: int, table: Table) -> None:
        """Takes a table."""

    def flush(self) -> None:
        """Writes files that a reader may open now."""

    def close(self, finished: bool) -> None:
        """Ends the tracker's run. finished: the run came to its end, not to an error or a stop."""


def named(stage: str, values: Mapping[str, float]) -> dict[str, float]:
    """The finite values under the names STAGE/NAME, such as "round-0/refiner/dpo/logps/chosen"."""
    return {f"{stage}/{name}": value for name, value in values.items() if math.isfinite(value)}
