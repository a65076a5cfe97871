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
from malt_jax.report.tables import headline, one_line, systems_in_groups

Entry = Mapping[str, Any]
"""An accuracy and its interval, as in results.json."""

_INK, _FAINT, _GAINED, _LOST = "#333333", "#8a8a8a", "#0072B2", "#D55E00"
_STYLE = {
    "font.size": 9,
    "axes.edgecolor": _FAINT,
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
_ACCURACY = "accuracy, % (filled markers: with a vote)"
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
    """Draws the plots that a results.json has data for; each comes with its name."""
    footer = f"{_shorten(headline(content), 80)}. Lines at points and bars: 95 % intervals"
    for name, figure in _plots(content):
        figure.supxlabel(footer, x=0.02, ha="left", size=7.5, color=_FAINT)
        if any(axes.get_legend_handles_labels()[0] for axes in figure.axes):
            figure.legend(loc="outside right upper")
        yield name, figure


def _plots(content: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    systems = content["systems"]
    compared = _without_ablations(systems)
    if compared:
        yield "accuracy-against-calls", _against_calls(compared)
    if len(compared) < len(systems):
        yield "ablations", _ablations(systems)
    if turns := _without_ablations(content.get("turns", {})):
        yield "accuracy-after-each-role", _after_each_role(turns)
    if transitions := content.get("transitions"):
        yield "changed-answers", _changed_answers(transitions)
    for field, values in content.get("groups", {}).items():
        name = re.sub(r"[^a-z0-9]+", "-", field.lower()).strip("-")
        yield f"accuracy-by-{name}", _by_group(field, values)


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


def _new_figure(title: str, *, height: float = 4.5) -> tuple[Figure, Axes]:
    """A figure with one plot, `height` inches high, which makes room for names and a legend."""
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.08)
    figure = Figure(figsize=(7.2, height), layout=layout)
    figure.suptitle(title, x=0.02, ha="left", size=11, weight="bold")
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

    format: options of matplotlib's `errorbar` that differ from the system's look.
    """
    means = 100 * np.array([entry["accuracy"] for entry in entries])
    low, high = 100 * np.array([entry["ci95"] for entry in entries]).T
    errors = np.maximum([means - low, high - means], 0)
    color, marker = _look(system)
    format = {"color": color, "marker": marker, "linestyle": "", "label": system} | format
    format |= {"ecolor": (format["color"], 0.55), "elinewidth": 1.1, "zorder": 3}
    if not _has_vote(system):
        format["markerfacecolor"] = "white"
    if horizontal:
        axes.errorbar(means, at, xerr=errors, **format)
    else:
        axes.errorbar(at, means, yerr=errors, **format)


def _against_calls(systems: Mapping[str, Any]) -> Figure:
    """Accuracy over a logarithmic axis of calls, with a line for each family."""
    figure, axes = _new_figure("Accuracy against calls of the model")
    by_calls: dict[float, list[str]] = {}
    families: dict[str, list[str]] = {}
    for name, system in systems.items():
        by_calls.setdefault(system["calls"], []).append(name)
    # Systems with equal calls stand next to each other.
    step = 0.022 * (math.log10(max(by_calls) / min(by_calls)) or 1.0)
    at = {
        name: math.log10(calls) + step * (rank - (len(names) - 1) / 2)
        for calls, names in by_calls.items()
        for rank, name in enumerate(names)
    }
    for name in sorted(systems, key=at.__getitem__):
        families.setdefault(_family(name), []).append(name)
    best_first = sorted(families, key=lambda f: -max(systems[n]["accuracy"] for n in families[f]))
    for family in best_first:
        names = families[family]
        heights = [100 * systems[name]["accuracy"] for name in names]
        axes.plot([at[n] for n in names], heights, color=_look(family)[0], lw=1, alpha=0.5)
        for name in names:
            label = family if name == names[-1] else None
            _draw(axes, name, [at[name]], [systems[name]], label=label)
    axes.set_xticks([math.log10(calls) for calls in by_calls], [f"{c:g}" for c in by_calls])
    axes.set_xlabel("calls for an answer; lines join a system without and with a vote")
    _percents_upwards(axes)
    return figure


def _ablations(systems: Mapping[str, Any]) -> Figure:
    whole = [name for name in ("malt+mv", "malt") if name in systems]
    parts = sorted(filter(_ABLATION.match, systems), key=lambda name: -systems[name]["accuracy"])
    names = [*whole, *parts]
    title = "MALT with a part untrained or left out"
    figure, axes = _new_figure(title, height=1.3 + 0.3 * len(names))
    for row, name in enumerate(names):
        color = _look(name)[0] if name in whole else _INK
        _draw(axes, name, [row], [systems[name]], horizontal=True, color=color, label=None)
    for name in whole:
        axes.axvline(100 * systems[name]["accuracy"], color=_look(name)[0], lw=0.8, ls=":")
    _percents_across(axes, names)
    return figure


def _after_each_role(turns: Mapping[str, Mapping[str, Entry]]) -> Figure:
    """Accuracy over the roles, a line for each system; the legend is in the order of the ends."""
    figure, axes = _new_figure("Accuracy after each role")
    roles = list(dict.fromkeys(role for by_role in turns.values() for role in by_role))
    for name in sorted(turns, key=lambda name: -list(turns[name].values())[-1]["accuracy"]):
        offset = 0.05 * (list(turns).index(name) - (len(turns) - 1) / 2)
        at = [roles.index(role) + offset for role in turns[name]]
        dashes = "-" if _has_vote(name) else (0, (4, 2))
        _draw(axes, name, at, list(turns[name].values()), linestyle=dashes)
    axes.set_xticks(range(len(roles)), roles)
    _percents_upwards(axes)
    return figure


def _changed_answers(transitions: Mapping[str, Any]) -> Figure:
    figure, axes = _new_figure("Answers that changed", height=1.5 + 0.45 * len(transitions))
    for side, label, color, sign in (
        ("right_to_wrong", "correct → wrong", _LOST, -1),
        ("wrong_to_right", "wrong → correct", _GAINED, 1),
    ):
        shares = 100 * np.array([changed[side] for changed in transitions.values()])
        low, high = 100 * np.array([c[f"{side}_ci95"] for c in transitions.values()]).T
        errors = np.maximum([shares - low, high - shares], 0)[::sign]
        look: dict[str, Any] = {"color": color, "alpha": 0.85, "ecolor": _INK, "label": label}
        bars = axes.barh(range(len(shares)), sign * shares, xerr=errors, height=0.5, **look)
        axes.bar_label(bars, [f"{share:.1f}" for share in shares], padding=4, color=color)
    axes.axvline(0, color=_FAINT, linewidth=0.8)
    axes.margins(x=0.14)
    axes.xaxis.set_major_formatter(lambda x, _: f"{abs(x):g}")
    _rows(axes, [name.replace("->", "→") for name in transitions], "% of all questions")
    return figure


def _by_group(field: str, values: Mapping[str, Mapping[str, Entry]]) -> Figure:
    """Accuracy by a field of the questions, a row for each value of the field."""
    title = f"Accuracy by {_shorten(field, 40)}"
    figure, axes = _new_figure(title, height=1.6 + 0.5 * len(values))
    systems = systems_in_groups(values)
    for rank, system in enumerate(systems):
        offset = 0.17 * (rank - (len(systems) - 1) / 2)
        rows = [row for row, entries in enumerate(values.values()) if system in entries]
        entries = [entries[system] for entries in values.values() if system in entries]
        _draw(axes, system, [row + offset for row in rows], entries, horizontal=True)
    questions = [max(e["questions"] for e in entries.values()) for entries in values.values()]
    names = zip(values, questions, strict=True)
    _percents_across(axes, [f"{_shorten(name, 30)} ({count:,})" for name, count in names])
    return figure


def _percents_upwards(axes: Axes) -> None:
    """Makes the y axis one of accuracies, after they are drawn."""
    axes.set_ylim(_percents(*axes.get_ylim()))
    axes.set_ylabel(_ACCURACY)
    axes.grid(axis="y")


def _percents_across(axes: Axes, names: Sequence[str]) -> None:
    """Makes the x axis one of accuracies, after they are drawn, and the y axis a list of names."""
    axes.set_xlim(_percents(*axes.get_xlim()))
    _rows(axes, names, _ACCURACY)


def _percents(low: float, high: float) -> tuple[float, float]:
    """Limits of at least 10 points, so that noise does not look like a difference."""
    missing = max(0.0, 10.0 - (high - low))
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
