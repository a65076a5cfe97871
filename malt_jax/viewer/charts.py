"""Line charts and plots of points as geometry for SVG, in pixels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Point = tuple[float, float]

_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 10.0, 8.0, 24.0
_MOST_POINTS = 300
_BESIDE = 9.0
"""Between two points over the same x."""

Look = tuple[int, bool]
"""Number of a colour, and whether the line is dashed."""
_TWO: tuple[Look, Look] = ((1, False), (4, True))


@dataclass(frozen=True)
class Tick:
    position: float
    label: str


@dataclass(frozen=True)
class Line:
    """One series; `look` names its colour in the styles."""

    name: str
    look: int
    dashed: bool
    points: tuple[Point, ...]
    last: str
    """The last value."""

    @property
    def path(self) -> str:
        return " ".join(f"{x:.1f},{y:.1f}" for x, y in self.points)


@dataclass(frozen=True)
class Dot:
    """A point with the interval of its y; `look` names its colour and shape."""

    name: str
    look: int
    x: float
    y: float
    high: float
    low: float
    title: str


@dataclass(frozen=True)
class Chart:
    """A chart; positions are pixels from its upper left corner."""

    title: str
    x_label: str
    width: float
    height: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...] = ()
    dots: tuple[Dot, ...] = ()
    families: tuple[tuple[str, int], ...] = ()
    """Names and looks for the legend of the dots."""

    @property
    def frame(self) -> tuple[float, float, float, float]:
        """Left, right, top and bottom of the area of the data."""
        return _LEFT, self.width - _RIGHT, _TOP, self.height - _BOTTOM


@dataclass(frozen=True)
class _Scale:
    """Values to pixels, linear."""

    low: float
    high: float
    start: float
    end: float

    def __call__(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def line_chart(
    title: str,
    series: Mapping[str, Sequence[Point]],
    x_label: str,
    looks: Mapping[str, Look] | None = None,
    width: float = 280,
    height: float = 160,
) -> Chart:
    """Series over steps. Points that are not finite are left out.

    looks: of every series; None: blue, and dashed orange for the second one.
    """
    looks = looks or dict(zip(series, _TWO, strict=False))
    shown = {
        name: _thinned([p for p in points if all(map(math.isfinite, p))])
        for name, points in series.items()
    }
    shown = {name: points for name, points in shown.items() if points}
    xs = [x for points in shown.values() for x, _ in points] or [0.0]
    ys = [y for points in shown.values() for _, y in points] or [0.0]
    x_ticks, y_ticks = _nice(min(xs), max(xs), 4, whole=True), _nice(min(ys), max(ys), 4)
    to_x = _scale(min(xs), max(xs), _LEFT, width - _RIGHT)
    to_y = _scale(min([*ys, y_ticks[0]]), max([*ys, y_ticks[-1]]), height - _BOTTOM, _TOP)
    lines = tuple(
        Line(
            name, *looks[name], tuple((to_x(x), to_y(y)) for x, y in points), f"{points[-1][1]:.3g}"
        )
        for name, points in shown.items()
    )
    return Chart(
        title,
        x_label,
        width,
        height,
        tuple(Tick(to_x(tick), f"{tick:,g}") for tick in x_ticks if min(xs) <= tick <= max(xs)),
        tuple(Tick(to_y(tick), f"{tick:,g}") for tick in y_ticks),
        lines,
    )


def points_over_calls(
    entries: Sequence[tuple[str, int, float, float, tuple[float, float], str]],
    families: Sequence[str],
    width: float = 520,
    height: float = 290,
) -> Chart:
    """Accuracies in percent over the number of calls, whose axis is logarithmic.

    entries:  name, look, calls, accuracy, its interval, and a text, each.
    families: what each look stands for.
    """
    calls = [entry[2] for entry in entries]
    lows = [entry[4][0] for entry in entries]
    highs = [entry[4][1] for entry in entries]
    ticks = _nice(min(lows), max(highs), 6)
    left, right = math.log2(min(calls)), math.log2(max(calls))
    most = max(map(calls.count, calls))
    room = _BESIDE * most / 2
    to_x = _scale(left, right, _LEFT + room, width - _RIGHT - room)
    to_y = _scale(min([*lows, ticks[0]]), max([*highs, ticks[-1]]), height - _BOTTOM, _TOP)
    # Systems with equal calls stand side by side.
    seen: dict[float, int] = {}
    dots = []
    for name, look, count, accuracy, (low, high), text in entries:
        place = seen[count] = seen.get(count, -1) + 1
        shift = _BESIDE * (place - (calls.count(count) - 1) / 2)
        x = to_x(math.log2(count)) + shift
        dots.append(Dot(name, look, x, to_y(accuracy), to_y(high), to_y(low), text))
    return Chart(
        "Accuracy against calls",
        "calls to the model for one answer",
        width,
        height,
        tuple(Tick(to_x(math.log2(c)), f"{c:g}") for c in sorted(set(calls))),
        tuple(Tick(to_y(tick), f"{tick:g}") for tick in ticks),
        dots=tuple(dots),
        families=tuple((families[look], look) for look in sorted({entry[1] for entry in entries})),
    )


def _scale(low: float, high: float, start: float, end: float) -> _Scale:
    if high <= low:
        low, high = low - 0.5, high + 0.5
    return _Scale(low, high, start, end)


def _nice(low: float, high: float, count: int, *, whole: bool = False) -> list[float]:
    """Round values from at most `low` to at least `high`, about `count` of them."""
    span = high - low
    if span <= 0:
        span = abs(high) or 1.0
    step = 10.0 ** math.floor(math.log10(span / count))
    step = next(step * factor for factor in (1, 2, 5, 10) if span / (step * factor) <= count)
    if whole:
        step = max(step, 1.0)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{k * step:.10g}") for k in range(first, max(last, first + 1) + 1)]


def _thinned(points: Sequence[Point]) -> Sequence[Point]:
    """At most `_MOST_POINTS` points, evenly, the last one among them."""
    if len(points) <= _MOST_POINTS:
        return points
    step = math.ceil(len(points) / (_MOST_POINTS - 1))
    kept = list(points[::step])
    return kept if kept[-1] is points[-1] else [*kept, points[-1]]
