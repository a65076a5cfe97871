"""Plots of a results.json, as PNG and SVG files."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
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
from malt_jax.report.views import headline, one_line, systems_in_groups

Entry = Mapping[str, Any]
"""An accuracy and its interval, as in results.json."""

_INK, _FAINT, _GAINED, _LOST = "#333333", "#8a8a8a", "#0072B2", "#D55E00"
_SMALLEST_RANGE = 10.0
"""Points of accuracy that an axis shows at least, so that noise does not look like a difference."""

_STYLE = {
    "font.size": 9,
    "axes.labelcolor": _INK,
    "axes.labelsize": "medium",
    "axes.edgecolor": _FAINT,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#e6e6e6",
    "grid.linewidth": 0.7,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "text.color": _INK,
    "lines.linewidth": 1.4,
    "lines.markersize": 6,
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
_ABLATION = re.compile(r"malt-(untrained|without|until)-")


def write_plots(content: Mapping[str, Any], directory: UPath) -> list[UPath]:
    """Draws the plots that a results.json has data for, and returns the files.

    Equal content gives equal bytes with the same version of matplotlib, whatever the reader's own
    matplotlib settings are.
    """
    written = []
    with style.context(["default", _STYLE]):
        for name, figure in figures(content):
            png, svg = io.BytesIO(), io.BytesIO()
            FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
            FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None})
            for suffix, drawn in (("png", png), ("svg", svg)):
                written.append(directory / f"{name}.{suffix}")
                write_atomically(written[-1], drawn.getvalue())
    return written


def figures(content: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    """The plots that a results.json has data for, with their names."""
    systems, footer = content["systems"], headline(content)
    compared = _without_ablations(systems)
    if compared:
        yield "accuracy-against-calls", _against_calls(compared, footer)
    if len(compared) < len(systems):
        yield "ablations", _ablations(systems, footer)
    if turns := _without_ablations(content.get("turns", {})):
        yield "accuracy-after-each-role", _after_each_role(turns, footer)
    if content.get("transitions"):
        yield "changed-answers", _changed_answers(content["transitions"], footer)
    for field, values in content.get("groups", {}).items():
        name = re.sub(r"[^a-z0-9]+", "-", field.lower()).strip("-")
        yield f"accuracy-by-{name}", _by_group(field, values, footer)


def _without_ablations(by_system: Mapping[str, Any]) -> dict[str, Any]:
    return {name: entry for name, entry in by_system.items() if not _ABLATION.match(name)}


def _family(system: str) -> str:
    """The name of a system without its vote."""
    return system.partition("+")[0]


def _has_vote(system: str) -> bool:
    """Whether an answer of the system is that of a vote; a debate ends with one."""
    return "+mv" in system or system == "debate"


def _look(system: str) -> tuple[str, str]:
    """Colour and marker of a system, with or without a vote; ablations look like MALT."""
    return _LOOKS.get(_family(system), _LOOKS["malt"])


def _new_figure(
    title: str,
    footer: str,
    *,
    height: float = 4.5,
    note: str = "Bars: 95 % intervals; filled markers: with a vote",
) -> tuple[Figure, Axes]:
    """A figure with one plot; matplotlib makes room for names and legends. `height` in inches."""
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08)
    figure = Figure(figsize=(7.2, height), layout=layout)
    figure.suptitle(title, x=0.02, ha="left", size=11, weight="bold")
    text = f"{_shorten(footer, 70)}. {note}"
    figure.supxlabel(text, x=0.02, ha="left", size=7.5, color=_FAINT)
    return figure, figure.add_subplot()


def _draw(
    axes: Axes,
    system: str,
    at: Sequence[float],
    entries: Sequence[Entry],
    *,
    horizontal: bool = False,
    **format: Any,
) -> None:
    """Draws accuracies of a system with their intervals, at places on the other axis.

    format: options of matplotlib's `errorbar`, beyond the look of the system.
    """
    means = 100 * np.array([entry["accuracy"] for entry in entries])
    low, high = 100 * np.array([entry["ci95"] for entry in entries]).T
    errors = np.maximum([means - low, high - means], 0)
    color, marker = _look(system)
    color = format.pop("color", color)
    format = {
        "color": color,
        "marker": marker,
        "markerfacecolor": color if _has_vote(system) else "white",
        "linestyle": "",
        "ecolor": (color, 0.55),
        "elinewidth": 1.1,
        "zorder": 3,
        "label": system,
        **format,
    }
    if horizontal:
        axes.errorbar(means, at, xerr=errors, **format)
    else:
        axes.errorbar(at, means, yerr=errors, **format)


def _against_calls(systems: Mapping[str, Any], footer: str) -> Figure:
    """Accuracy against calls on a logarithmic axis, with a line for each family."""
    figure, axes = _new_figure("Accuracy against calls of the model", footer)
    by_calls: dict[float, list[str]] = {}
    families: dict[str, list[str]] = {}
    for name, system in systems.items():
        by_calls.setdefault(system["calls"], []).append(name)
        families.setdefault(_family(name), []).append(name)
    # Systems with equal calls stand next to each other.
    step = 0.022 * (math.log10(max(by_calls) / min(by_calls)) or 1.0)
    at = {
        name: math.log10(calls) + step * (rank - (len(names) - 1) / 2)
        for calls, names in by_calls.items()
        for rank, name in enumerate(names)
    }
    for family, names in sorted(
        families.items(), key=lambda item: -max(systems[name]["accuracy"] for name in item[1])
    ):
        names = sorted(names, key=at.__getitem__)
        heights = [100 * systems[name]["accuracy"] for name in names]
        axes.plot([at[name] for name in names], heights, color=_look(family)[0], lw=1, alpha=0.5)
        for name in names:
            label = family if name == names[-1] else None
            _draw(axes, name, [at[name]], [systems[name]], label=label)
    axes.set_xticks([math.log10(calls) for calls in by_calls], [f"{c:g}" for c in by_calls])
    axes.set_xlabel("calls for an answer; lines join a system without and with a vote")
    _percents_upwards(axes)
    figure.legend(loc="outside right upper")
    return figure


def _ablations(systems: Mapping[str, Any], footer: str) -> Figure:
    whole = [name for name in ("malt+mv", "malt") if name in systems]
    parts = sorted(filter(_ABLATION.match, systems), key=lambda name: -systems[name]["accuracy"])
    names = [*whole, *parts]
    figure, axes = _new_figure(
        "MALT with a part untrained or left out", footer, height=1.3 + 0.3 * len(names)
    )
    for row, name in enumerate(names):
        color = _look(name)[0] if name in whole else _INK
        _draw(axes, name, [row], [systems[name]], horizontal=True, color=color)
    for name in whole:
        axes.axvline(100 * systems[name]["accuracy"], color=_look(name)[0], lw=0.8, ls=":")
    _percents_across(axes, names)
    return figure


def _after_each_role(turns: Mapping[str, Mapping[str, Entry]], footer: str) -> Figure:
    """Accuracy over the roles, a line for each system; the legend is in the order of the ends."""
    figure, axes = _new_figure("Accuracy after each role", footer)
    roles = list(dict.fromkeys(role for by_role in turns.values() for role in by_role))
    for name in sorted(turns, key=lambda name: -list(turns[name].values())[-1]["accuracy"]):
        offset = 0.05 * (list(turns).index(name) - (len(turns) - 1) / 2)
        at = [roles.index(role) + offset for role in turns[name]]
        dashes = "-" if _has_vote(name) else (0, (4, 2))
        _draw(axes, name, at, list(turns[name].values()), linestyle=dashes)
    axes.set_xticks(range(len(roles)), roles)
    _percents_upwards(axes)
    figure.legend(loc="outside right upper")
    return figure


def _changed_answers(transitions: Mapping[str, Any], footer: str) -> Figure:
    height = 1.5 + 0.45 * len(transitions)
    note = "Lines: 95 % intervals"
    figure, axes = _new_figure("Answers that changed", footer, height=height, note=note)
    for side, title, color, sign in (
        ("right_to_wrong", "correct → wrong", _LOST, -1),
        ("wrong_to_right", "wrong → correct", _GAINED, 1),
    ):
        shares = 100 * np.array([changed[side] for changed in transitions.values()])
        low, high = 100 * np.array([c[f"{side}_ci95"] for c in transitions.values()]).T
        errors = [shares - low, high - shares][::sign]
        bars = axes.barh(
            range(len(shares)),
            sign * shares,
            xerr=np.maximum(errors, 0),
            height=0.5,
            color=color,
            alpha=0.85,
            ecolor=_INK,
            label=title,
        )
        axes.bar_label(bars, [f"{share:.1f}" for share in shares], padding=4, color=color)
    axes.axvline(0, color=_FAINT, linewidth=0.8)
    axes.margins(x=0.14)
    axes.xaxis.set_major_formatter(lambda x, _: f"{abs(x):g}")
    _rows(axes, [name.replace("->", "→") for name in transitions], "% of all questions")
    figure.legend(loc="outside upper right", ncols=2)
    return figure


def _by_group(field: str, values: Mapping[str, Mapping[str, Entry]], footer: str) -> Figure:
    """Accuracy by a field of the questions, a row for each value of the field."""
    title, height = f"Accuracy by {_shorten(field, 20)}", 1.6 + 0.5 * len(values)
    figure, axes = _new_figure(title, footer, height=height)
    systems = systems_in_groups(values)
    for rank, system in enumerate(systems):
        offset = 0.17 * (rank - (len(systems) - 1) / 2)
        rows = [row for row, entries in enumerate(values.values()) if system in entries]
        entries = [entries[system] for entries in values.values() if system in entries]
        _draw(axes, system, [row + offset for row in rows], entries, horizontal=True)
    questions = [max(e["questions"] for e in entries.values()) for entries in values.values()]
    names = zip(values, questions, strict=True)
    _percents_across(axes, [f"{_shorten(name, 40)} ({count:,})" for name, count in names])
    figure.legend(loc="outside upper right", ncols=len(systems))
    return figure


def _percents_upwards(axes: Axes) -> None:
    """Makes the y axis one of accuracies, after they are drawn."""
    axes.set_ylim(_percents(*axes.get_ylim()))
    axes.set_ylabel("accuracy, %")
    axes.grid(axis="y")


def _percents_across(axes: Axes, names: Sequence[str]) -> None:
    """Makes the x axis one of accuracies, after they are drawn, and the y axis a list of names."""
    axes.set_xlim(_percents(*axes.get_xlim()))
    _rows(axes, names, "accuracy, %")


def _percents(low: float, high: float) -> tuple[float, float]:
    missing = max(0.0, _SMALLEST_RANGE - (high - low))
    return max(low - missing / 2, -2.0), min(high + missing / 2, 102.0)


def _rows(axes: Axes, names: Sequence[str], label: str) -> None:
    """Makes the y axis a list of names, the first on top."""
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.set_xlabel(label)


def _shorten(text: str, longest: int) -> str:
    """Text in one line, with an ellipsis in its middle if it is longer than that."""
    text = one_line(text)
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]}...{text[-half:]}"
