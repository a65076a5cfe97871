"""Timing contenders in turn, so that a machine whose speed drifts is fair to all of them."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def compare(contenders: Mapping[str, Callable[[], None]], tokens: int, runs: int) -> None:
    """Prints the median rate of each, and how the first one stands to every other, turn by turn.

    tokens: what one call of any contender processes.
    """
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(runs + 1):
        for name, run in contenders.items():
            start = time.perf_counter()
            run()
            if turn:  # the first one compiles
                seconds[name].append(time.perf_counter() - start)
    for name, times in seconds.items():
        middle = statistics.median(times)
        print(f"{name}: {tokens / middle:.0f} tokens/s (median of {runs}: {middle:.2f} s)")
    first, *others = contenders
    for other in others:
        ratios = [b / a for a, b in zip(seconds[first], seconds[other], strict=True)]
        print(f"{first} is {statistics.median(ratios):.2f} times as fast as {other}")
