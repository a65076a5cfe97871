"""An amount of work: how much is done, how fast, and how long the rest takes."""

from __future__ import annotations

import dataclasses
from collections import deque


@dataclasses.dataclass(frozen=True)
class Work:
    """The work of one stage.

    seconds: that the stage has taken, interrupted attempts included, up to its last recorded file.
    rated:   the amount that was done in `seconds`; None: `done`.
    guess:   the rate of another stage of this kind, in units a second.
    seen:    the rate while the stage was watched, in units a second.
    """

    done: int = 0
    total: int | None = None
    unit: str = ""
    seconds: float | None = None
    rated: int | None = None
    guess: float | None = None
    seen: float | None = None

    @property
    def rate(self) -> float | None:
        """Units a second."""
        if self.seen is not None:
            return self.seen
        done = self.done if self.rated is None else self.rated
        return done / self.seconds if self.seconds and done else None

    @property
    def left(self) -> float | None:
        """Seconds until all is done; None where that is not known."""
        if self.total is None:
            return None if self.unit else 0.0
        rest, rate = max(0, self.total - self.done), self.rate or self.guess
        return 0.0 if rest == 0 else rest / rate if rate else None


class Observed:
    """The rate of a stage while it is watched, which leaves compilation and old attempts out."""

    def __init__(self, window: float = 120.0) -> None:
        """window: seconds that count."""
        self._window = window
        self._stage = ""
        self._seen: deque[tuple[float, int]] = deque()

    def rate(self, stage: str, done: int, now: float) -> float | None:
        """Takes what is done of a stage at the time `now`; gives units a second, if any were done
        since the stage is watched."""
        if stage != self._stage or (self._seen and done < self._seen[-1][1]):
            self._stage, self._seen = stage, deque()
        if not self._seen or done > self._seen[-1][1]:
            self._seen.append((now, done))
        while len(self._seen) > 2 and self._seen[1][0] < now - self._window:
            self._seen.popleft()
        (begun, before), (last, after) = self._seen[0], self._seen[-1]
        return (after - before) / (last - begun) if last > begun else None
