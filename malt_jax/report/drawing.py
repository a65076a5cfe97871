"""What the plots are drawn with: axes, points with intervals, lines of systems, rows of names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from malt_jax.report.labels import Label, label_points
from malt_jax.report.style import FAINT, has_vote, look

Entry = Mapping[str, Any]
"""An accuracy and its interval, as results.json has them."""

_BESIDE = 0.05
_CHARACTER = 0.076
"""Width of a character of a label, in inches, rather too much than too little."""
_LONGEST_FOOTER = 118
_SMALLEST_RANGE = 10.0
"""Points of accuracy that an axis shows at least, so that noise does not look like a difference."""


def margin(names: Iterable[str]) -> float:
    """The room, in inches, that the longest of the names needs beside a plot."""
    return 0.3 + _CHARACTER * max(map(len, names))


def new_axes(
    title: str,
    footer: str,
    *,
    note: str = "95 % intervals; filled: with a vote",
    height: float = 4.5,
    left: float = 0.75,
    right: float = 0.25,
    top: float = 0.5,
) -> Axes:
    """One plot in a figure of its own; height and margins in inches."""
    size = width, _ = 7.2, height
    figure = Figure(figsize=size)
    bottom = 0.75
    axes = figure.add_axes(
        (left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height)
    )
    figure.text(0.15 / width, 1 - 0.28 / height, title, size=11, weight="bold")
    faint: dict[str, Any] = {"color": FAINT, "size": 7.5}
    figure.text(1 - 0.15 / width, 1 - 0.28 / height, note, ha="right", **faint)
    if len(footer) > _LONGEST_FOOTER:
        footer = f"...{footer[-_LONGEST_FOOTER:]}"
    figure.text(0.15 / width, 0.12 / height, footer, **faint)
    return axes


def dot(
    axes: Axes,
    place: float,
    entry: Entry,
    system: str,
    *,
    color: str | None = None,
    horizontal: bool = False,
) -> None:
    """An accuracy with its interval: filled with a vote, hollow without."""
    color = color or look(system).color
    bounds = [100 * bound for bound in entry["ci95"]]
    mean = 100 * entry["accuracy"]
    interval, point = ([place, place], bounds), ([place], [mean])
    if horizontal:
        interval, point = (bounds, [place, place]), ([mean], [place])
    axes.plot(*interval, color=color, alpha=0.55, linewidth=1.1)
    axes.plot(
        *point,
        color=color,
        marker=look(system).marker,
        markerfacecolor=color if has_vote(system) else "white",
        zorder=3,
    )


def lines(axes: Axes, series: Mapping[str, Mapping[int, Entry]], ticks: Sequence[str]) -> None:
    """A line for each system over the places on the x axis, with its name at its end."""
    names = list(series)
    labels = []
    for rank, name in enumerate(names):
        offset = _BESIDE * (rank - (len(names) - 1) / 2)
        color = look(name).color
        points = [(place + offset, entry) for place, entry in sorted(series[name].items())]
        axes.plot(
            [x for x, _ in points],
            [100 * entry["accuracy"] for _, entry in points],
            color=color,
            linestyle="-" if has_vote(name) else (0, (4, 2)),
        )
        for x, entry in points:
            dot(axes, x, entry, name)
        labels.append(Label(name, points[-1][0], 100 * points[-1][1]["accuracy"], color))
    axes.set_xticks(range(len(ticks)), ticks)
    axes.set_xlim(-0.3, len(ticks) - 0.7)
    axes.grid(visible=False, axis="x")
    percent_limits(axes)
    label_points(axes, labels, len(ticks) - 0.66)


def percent_limits(axes: Axes) -> None:
    """The y axis for accuracies: what is there, and no more than 0 to 100."""
    axes.margins(y=0.06)
    axes.set_ylim(_within_percents(*axes.get_ylim()))
    axes.set_ylabel("accuracy, %")


def _within_percents(low: float, high: float) -> tuple[float, float]:
    missing = max(0.0, _SMALLEST_RANGE - (high - low))
    low, high = max(low - missing / 2, -2.0), min(high + missing / 2, 102.0)
    return low, high


def rows_of_accuracies(axes: Axes, names: Sequence[str]) -> None:
    """Names as the y axis, and accuracies, which must have been drawn, as the x axis."""
    axes.set_xlim(_within_percents(*axes.get_xlim()))
    rows_of_names(axes, names, "accuracy, %")


def rows_of_names(axes: Axes, names: Sequence[str], label: str) -> None:
    """The y axis as a list of names, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    axes.set_xlabel(label)
