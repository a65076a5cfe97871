"""The trackers of a run. A tracker that fails costs a warning, never the run."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import queue
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from upath import UPath

from malt_jax.config import TrackingConfig
from malt_jax.errors import UserError, import_extra
from malt_jax.files import in_bucket, parse_json_object, write_atomically
from malt_jax.tracking.mlflow import URI, Mlflow
from malt_jax.tracking.tensorboard import TensorBoard
from malt_jax.tracking.tracker import Followed, Table, Tracker
from malt_jax.tracking.trackio import Trackio
from malt_jax.tracking.weights_and_biases import WeightsAndBiases

logger = logging.getLogger(__name__)

TRACKERS: dict[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
    "trackio": Trackio,
    "mlflow": Mlflow,
}
"""By the names in `tracking.trackers`, which are also the names of extras."""

IDENTITIES = "trackers.json"
"""In a run's directory: the identity of its run in each tracker."""

_WAITING = 10_000
"""Calls that a tracker may be behind before it counts as lost."""
_PATIENCE = 120.0
"""Seconds that a tracker has at the end of a run to send what is left."""


class Trackers:
    """The open trackers of a run. No method raises, or waits for a network."""

    def __init__(self, guarded: Sequence[_Guarded] = ()) -> None:
        self._all = guarded

    def log(self, stage: str, step: int, values: Mapping[str, float]) -> None:
        """Shows the values of one step of a stage."""
        for each in self._all:
            each.call(lambda tracker: tracker.log(stage, step, values))

    def table(self, name: str, step: int, table: Table) -> None:
        """Shows a table."""
        for each in self._all:
            each.call(lambda tracker: tracker.table(name, step, table))

    def flush(self) -> None:
        """Returns when the files of local trackers are written."""
        for each in self._all:
            each.call(lambda tracker: tracker.flush())

    def close(self, finished: bool = True) -> None:
        """Ends all trackers, and gives those behind a network some time to send what is left."""
        for each in self._all:
            each.close(finished)


class _Guarded:
    """A tracker whose first error is a warning and its last call."""

    def __init__(self, name: str, tracker: Tracker) -> None:
        self._name, self._tracker = name, tracker
        self._over = False
        self._last: Callable[[Tracker], None] = lambda _: None
        self._calls: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(_WAITING)
        self._thread: threading.Thread | None = None
        if tracker.remote:
            self._thread = threading.Thread(target=self._work, name=name, daemon=True)
            self._thread.start()

    def call(self, action: Callable[[Tracker], None]) -> None:
        if self._over:
            return
        if self._thread is None:
            self._try(action)
            return
        try:
            self._calls.put_nowait(action)
        except queue.Full:
            self._fail(f"it is {_WAITING} calls behind")

    def close(self, finished: bool) -> None:
        # Also a tracker that has failed: it may still send what it had taken.
        self._last = lambda tracker: tracker.close(finished)
        if self._thread is None:
            self._try(self._last)
        else:
            with contextlib.suppress(queue.Full):
                self._calls.put_nowait(None)
            self._thread.join(_PATIENCE)
            if self._thread.is_alive():
                self._fail(f"it has not sent everything after {_PATIENCE:.0f} s")
        self._over = True

    def _work(self) -> None:
        while (action := self._calls.get()) is not None:
            if not self._over:
                self._try(action)
        self._try(self._last)

    def _try(self, action: Callable[[Tracker], None]) -> None:
        try:
            action(self._tracker)
        except Exception as error:
            self._fail(_line(error))

    def _fail(self, problem: str) -> None:
        if not self._over:
            self._over = True
            _warn(self._name, problem)


def require_trackers(config: TrackingConfig, run: UPath) -> None:
    """Raises UserError when a tracker of the options is not installed or cannot follow this run."""
    for name in config.trackers:
        if name in TRACKERS:
            import_extra(TRACKERS[name].module, name)
    if "mlflow" in config.trackers and in_bucket(run) and URI not in os.environ:
        raise UserError(f"tracking.trackers: mlflow keeps no files in a bucket: set {URI}")


def open_trackers(
    config: TrackingConfig, run: UPath, disk: Path, options: Mapping[str, Any]
) -> Trackers:
    """Starts the trackers that the options name; call it in the one process that tracks.

    disk: the run's directory, or a copy of it that goes to its bucket.
    options: the value of every option of the run by its full name.

    A tracker that cannot start (no network, a wrong key) is left out with a warning. A resumed run
    goes on in the same run of a tracker (`IDENTITIES`).

    Raises UserError as `require_trackers` does.
    """
    require_trackers(config, run)
    identities = _identities(run)
    found: dict[str, Tracker] = {}
    asked = set(config.trackers) | ({"tensorboard"} if "auto" in config.trackers else set())
    for name in filter(asked.__contains__, TRACKERS):
        title = config.name or run.absolute().name
        known = identities.get(name)
        try:
            found[name] = TRACKERS[name](Followed(title, config.project, options, disk, known))
        except Exception as error:
            if name in config.trackers or not isinstance(error, ImportError):
                _warn(name, _line(error))
    given = {name: each.identity for name, each in found.items() if each.identity is not None}
    if not given.items() <= identities.items():
        write_atomically(run / IDENTITIES, json.dumps({**identities, **given}, indent=1) + "\n")
    return Trackers([_Guarded(name, each) for name, each in found.items()])


def _identities(run: UPath) -> dict[str, str]:
    file = run / IDENTITIES
    try:
        content = parse_json_object(file.read_bytes(), str(file)) if file.exists() else {}
    except (OSError, UserError) as error:
        logger.warning("%s is left out, so the trackers start runs of their own", error)
        return {}
    return {name: value for name, value in content.items() if isinstance(value, str)}


def _warn(name: str, problem: str) -> None:
    logger.warning("the tracker %s is left out from here on: %s", name, problem)


def _line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:300]}" if lines else type(error).__name__
