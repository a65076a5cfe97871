"""The common look of all plots, and their files as PNG and SVG."""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from upath import UPath

from malt_jax.files import write_atomically
from malt_jax.report.table import one_line

Entry = Mapping[str, Any]
"""An accuracy and its interval, as in results.json."""

INK, FAINT, GAINED, LOST = "#333333", "#8a8a8a", "#0072B2", "#D55E00"
_STYLE = {
    "font.size": 9,
    "axes.edgecolor": FAINT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "legend.frameon": False,
    "figure.dpi": 160,
    # A dollar sign in a name does not start a formula.
    "text.parse_math": False,
    # SVG ids are hashes with this salt; without it they are random.
    "svg.hashsalt": "malt_jax",
}

# Colours of Okabe and Ito, which colour-blind readers can tell apart, some of them darkened.
# Markers tell the families apart in grey.
_LOOKS = {
    "sa": ("#555555", "o"),
    "ma": ("#0072B2", "s"),
    "star-sa": ("#A66F00", "v"),
    "star-ma": ("#00835F", "D"),
    "malt": ("#D55E00", "^"),
    "debate": ("#A85388", "P"),
}
ACCURACY = "accuracy, % (filled markers: with a vote)"


def write_figures(figures: Iterable[tuple[str, Figure]], directory: UPath) -> list[UPath]:
    """Writes figures under their names, and returns the files.

    Equal figures give equal bytes with the same version of matplotlib, whatever the reader's own
    matplotlib settings are. They must be drawn as they are taken from `figures`.
    """
    written = []
    with style.context(["default", _STYLE]):
        for name, figure in figures:
            png, svg = io.BytesIO(), io.BytesIO()
            FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
            FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None})
            for suffix, drawn in (("png", png), ("svg", svg)):
                written.append(directory / f"{name}.{suffix}")
                write_atomically(written[-1], drawn.getvalue())
    return written


def finish(figure: Figure, footer: str) -> Figure:
    """Adds a line of text below a figure, and a legend where something has a label."""
    figure.supxlabel(footer, x=0.02, ha="left", size=7.5, color=FAINT)
    if any(axes.get_legend_handles_labels()[0] for axes in figure.axes):
        figure.legend(loc="outside right upper")
    return figure


def family(system: str) -> str:
    """The name of a system without its vote."""
    return system.partition("+")[0]


def has_vote(system: str) -> bool:
    """Whether an answer of the system is that of a vote; a debate ends with one."""
    return "+mv" in system or system == "debate"


def look(system: str) -> tuple[str, str]:
    """Colour and marker of a system, with or without a vote; ablations look like MALT."""
    return _LOOKS.get(family(system), _LOOKS["malt"])


def new_figure(title: str, *, height: float = 4.5) -> tuple[Figure, Axes]:
    """A figure with one plot, `height` inches high, which makes room for names and a legend."""
    figure = _titled(title, height)
    return figure, figure.add_subplot()


def new_panels(title: str, count: int) -> tuple[Figure, list[Axes]]:
    """A figure with `count` plots, two in a row."""
    rows = -(-count // 2)
    figure = _titled(title, 0.9 + 2.3 * rows)
    return figure, [figure.add_subplot(rows, min(count, 2), n + 1) for n in range(count)]


def _titled(title: str, height: float) -> Figure:
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08)
    figure = Figure(figsize=(7.2, height), layout=layout)
    figure.suptitle(title, x=0.02, ha="left", size=11, weight="bold")
    return figure


def draw_accuracies(
    axes: Axes,
    system: str,
    at: Sequence[float],
    entries: Sequence[Entry],
    *,
    horizontal: bool = False,
    **format: Any,
) -> None:
    """Draws accuracies of a system with their intervals, at places on the other axis.

    format: options of matplotlib's `errorbar` that differ from the system's look.
    """
    means = 100 * np.array([entry["accuracy"] for entry in entries])
    low, high = 100 * np.array([entry["ci95"] for entry in entries]).T
    errors = np.maximum([means - low, high - means], 0)
    color, marker = look(system)
    format = {"color": color, "marker": marker, "linestyle": "", "label": system} | format
    format |= {"ecolor": (format["color"], 0.55), "elinewidth": 1.1, "zorder": 3}
    if not has_vote(system):
        format["markerfacecolor"] = "white"
    if horizontal:
        axes.errorbar(means, at, xerr=errors, **format)
    else:
        axes.errorbar(at, means, yerr=errors, **format)


def percents_upwards(axes: Axes) -> None:
    """Makes the y axis one of accuracies, after they are drawn."""
    axes.set_ylim(_percents(*axes.get_ylim()))
    axes.set_ylabel(ACCURACY)
    axes.grid(axis="y")


def percents_across(axes: Axes, names: Sequence[str]) -> None:
    """Makes the x axis one of accuracies, after they are drawn, and the y axis a list of names."""
    axes.set_xlim(_percents(*axes.get_xlim()))
    name_rows(axes, names, ACCURACY)


def _percents(low: float, high: float) -> tuple[float, float]:
    """Limits of at least 10 points, so that noise does not look like a difference."""
    missing = max(0.0, 10.0 - (high - low))
    return max(low - missing / 2, -2.0), min(high + missing / 2, 102.0)


def name_rows(axes: Axes, names: Sequence[str], label: str) -> None:
    """Makes the y axis a list of names, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_xlabel(label)


def shorten(text: str, longest: int) -> str:
    """Text in one line, with an ellipsis in its middle if it is longer than that."""
    text = one_line(text)
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]}...{text[-half:]}"
