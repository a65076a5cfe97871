"""Progress of long work: a live line on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.text import Text

PLAIN_INTERVAL = 10.0
"""Seconds between two lines where the output is not a terminal."""
_WINDOW = 60.0
"""Rates are those of the last so many seconds: compilation at the start is soon forgotten."""


class Progress:
    """Shows what is done of a total, rates, the time left, and values such as a loss.

        with Progress("sampling trees", total=64, unit="questions") as progress:
            progress.update(done=16, tokens=9000)

    A terminal gets one line that is renewed; other outputs get a line every `PLAIN_INTERVAL`
    seconds at most. Both end with a line of totals. All of it goes to standard error.

    start: what an interrupted run had done already.
    quiet: shows nothing, as in all processes of a run but one.
    console, clock: for tests.
    """

    def __init__(
        self,
        label: str,
        total: int,
        unit: str,
        *,
        start: int = 0,
        quiet: bool = False,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label, self._total, self._unit = label, total, unit
        self._start = self._done = start
        self._tokens = 0
        self._fields: dict[str, float | str] = {}
        self._console = console or Console(stderr=True, quiet=quiet)
        self._clock = clock
        self._began = clock()
        self._shown = self._began
        self._history = deque([(self._began, start, 0)])
        self._live: Live | None = None

    def update(self, *, done: int, tokens: int | None = None, **fields: float | str) -> None:
        """Takes the state of the work.

        Args:
          done: how much of `total` is done, all told.
          tokens: tokens since this Progress was made; shown as a rate.
          **fields: values to show as they are ("loss").
        """
        self._done = done
        self._tokens = self._tokens if tokens is None else tokens
        self._fields |= fields
        now = self._clock()
        self._history.append((now, self._done, self._tokens))
        while len(self._history) > 2 and self._history[1][0] < now - _WINDOW:
            self._history.popleft()
        if self._live is None and now - self._shown >= PLAIN_INTERVAL:
            self._shown = now
            self._console.print(Text(self._line(now)), soft_wrap=True)

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            # Drawn by a thread of its own: the line is right also during a long step.
            self._live = Live(
                get_renderable=lambda: Text(self._line(self._clock()), no_wrap=True),
                console=self._console,
                refresh_per_second=2,
                transient=True,
            )
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
        self._console.print(Text(self._summary(stopped=kind is not None)), soft_wrap=True)

    def _line(self, now: float) -> str:
        parts = [f"{self._label}: {self._done}/{self._total} {self._unit}"]
        then, done, tokens = self._history[0]
        seconds = now - then
        rate = (self._done - done) / seconds if seconds > 0 else 0.0
        parts += self._rates(self._done - done, self._tokens - tokens, seconds)
        parts += self._values()
        if rate > 0:
            parts.append(f"{duration((self._total - self._done) / rate)} left")
        return ", ".join(parts)

    def _summary(self, stopped: bool) -> str:
        seconds = self._clock() - self._began
        count = f"{self._done}/{self._total}" if stopped else f"{self._done}"
        parts = [f"{self._label}: {count} {self._unit} in {duration(seconds)}"]
        parts += self._rates(self._done - self._start, self._tokens, seconds)
        parts += self._values() + ["stopped"] * stopped
        return ", ".join(parts)

    def _rates(self, done: int, tokens: int, seconds: float) -> list[str]:
        if seconds <= 0 or (done <= 0 and tokens <= 0):
            return []
        rates = [f"{_short(done / seconds)} {self._unit}/s"]
        return rates + [f"{_short(tokens / seconds)} tokens/s"] * (tokens > 0)

    def _values(self) -> list[str]:
        return [
            f"{name} {value if isinstance(value, str) else _short(value)}"
            for name, value in self._fields.items()
        ]


def duration(seconds: float) -> str:
    """Seconds for people: "8 s", "3 min 20 s", "5 h 12 min"."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def _short(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"
