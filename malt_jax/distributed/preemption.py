"""SIGTERM, which announces that a machine is taken away, as a request that loops look at."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_requested = threading.Event()


@contextlib.contextmanager
def noticed() -> Iterator[None]:
    """Within the block the first SIGTERM sets a flag; a second one ends the process as usual.

    Python takes signals in its main thread alone; in another one nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _requested.clear()
    previous = signal.signal(signal.SIGTERM, _note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


def requested() -> bool:
    """Whether SIGTERM has come."""
    return _requested.is_set()


def _note(number: int, frame: FrameType | None) -> None:
    _requested.set()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
