"""The plots of a results.json, as PNG and SVG."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.lines import Line2D
from upath import UPath

from malt_jax.files import write_atomically
from malt_jax.report.drawing import (
    dot,
    lines,
    margin,
    new_axes,
    percent_limits,
    rows_of_accuracies,
    rows_of_names,
)
from malt_jax.report.labels import Label, label_points
from malt_jax.report.style import FAINT, GAINED, INK, LOST, family, has_vote, look, plain_style
from malt_jax.report.views import IN_GROUPS, headline, one_line

_LONGEST_NAME = 36
_ABLATION = re.compile(r"malt-(untrained|without|until)-")


def write_plots(content: Mapping[str, Any], directory: UPath) -> list[UPath]:
    """Draws what the content of a results.json has something for; returns the files.

    Equal content gives equal bytes, with the same version of matplotlib.
    """
    written = []
    with plain_style():
        for name, axes in _plots(content):
            figure = axes.get_figure(root=True)
            assert figure is not None
            png, svg = io.BytesIO(), io.BytesIO()
            FigureCanvasAgg(figure).print_png(png, metadata={"Software": None})
            FigureCanvasSVG(figure).print_svg(svg, metadata={"Date": None})
            for suffix, drawn in (("png", png), ("svg", svg)):
                written.append(directory / f"{name}.{suffix}")
                write_atomically(written[-1], drawn.getvalue())
    return written


def _plots(content: Mapping[str, Any]) -> Iterator[tuple[str, Axes]]:
    systems, footer = content["systems"], one_line(headline(content))
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
        # Levels have an order and are joined; subjects are names.
        draw = _by_level if all(re.search(r"\d$", value) for value in values) else _by_subject
        yield f"accuracy-by-{name}", draw(field, values, footer)


def _without_ablations(by_system: Mapping[str, Any]) -> dict[str, Any]:
    return {name: entry for name, entry in by_system.items() if not _ABLATION.match(name)}


def _against_calls(systems: Mapping[str, Any], footer: str) -> Axes:
    clusters: dict[float, list[str]] = {}
    for name, system in systems.items():
        clusters.setdefault(system["calls"], []).append(name)
    right = margin(clusters[max(clusters)])
    axes = new_axes("Accuracy against calls of the model", footer, right=right)
    width = math.log10(max(clusters) / min(clusters)) or 1.0
    # Calls are compared by their ratio; systems with equal calls stand beside each other.
    place = {
        name: math.log10(calls) + 0.018 * width * (rank - (len(names) - 1) / 2)
        for calls, names in clusters.items()
        for rank, name in enumerate(names)
    }
    families: dict[str, list[str]] = {}
    for name in sorted(systems, key=place.__getitem__):
        families.setdefault(family(name), []).append(name)
    height = {name: 100 * system["accuracy"] for name, system in systems.items()}
    for names in families.values():
        xs, ys = [place[name] for name in names], [height[name] for name in names]
        axes.plot(xs, ys, color=look(names[0]).color, linewidth=1, alpha=0.5)
        for name in names:
            dot(axes, place[name], systems[name], name)
    axes.set_xticks([math.log10(calls) for calls in clusters], [f"{c:g}" for c in clusters])
    axes.set_xlim(min(place.values()) - 0.17 * width, max(place.values()) + 0.03 * width)
    axes.set_xlabel("calls for an answer; lines join a system without and with a vote")
    axes.grid(visible=False, axis="x")
    percent_limits(axes)
    starts = {names[0] for names in families.values() if len(names) > 1}
    for names in clusters.values():
        for left in (True, False):
            xs = [place[name] for name in names]
            edge = min(xs) - 0.03 * width if left else max(xs) + 0.03 * width
            labels = [
                Label(name, place[name], height[name], look(name).color)
                for name in names
                if (name in starts) == left
            ]
            label_points(axes, labels, edge, left=left)
    return axes


def _ablations(systems: Mapping[str, Any], footer: str) -> Axes:
    whole = [name for name in ("malt+mv", "malt") if name in systems]
    parts = sorted(filter(_ABLATION.match, systems), key=lambda name: -systems[name]["accuracy"])
    names = [*whole, *parts]
    axes = new_axes(
        "MALT with a part untrained or left out",
        footer,
        height=1.3 + 0.3 * len(names),
        left=margin(names),
    )
    for row, name in enumerate(names):
        dot(axes, row, systems[name], name, color=None if name in whole else INK, horizontal=True)
    for name in whole:
        axes.axvline(100 * systems[name]["accuracy"], color=look(name).color, lw=0.8, ls=":")
    rows_of_accuracies(axes, names)
    return axes


def _after_each_role(turns: Mapping[str, Any], footer: str) -> Axes:
    axes = new_axes("Accuracy after each role", footer, right=margin(turns))
    roles = list(dict.fromkeys(role for by_role in turns.values() for role in by_role))
    series = {
        name: {roles.index(role): entry for role, entry in by_role.items()}
        for name, by_role in turns.items()
    }
    lines(axes, series, roles)
    return axes


def _changed_answers(transitions: Mapping[str, Any], footer: str) -> Axes:
    axes = new_axes(
        "Answers that changed",
        footer,
        note="95 % intervals",
        height=1.5 + 0.45 * len(transitions),
        left=margin(transitions),
        right=0.4,
    )
    for row, changed in enumerate(transitions.values()):
        for side, color, sign in (("wrong_to_right", GAINED, 1), ("right_to_wrong", LOST, -1)):
            share = sign * 100 * changed[side]
            bounds = [sign * 100 * bound for bound in changed[f"{side}_ci95"]]
            axes.barh(row, share, height=0.5, color=color, alpha=0.85, linewidth=0)
            axes.plot(bounds, [row, row], color=INK, linewidth=1)
            axes.annotate(
                f"{abs(share):.1f}",
                xy=(max(bounds, key=abs), row),
                xytext=(4 * sign, 0),
                textcoords="offset points",
                ha="left" if sign > 0 else "right",
                va="center",
                color=color,
            )
    axes.axvline(0, color=FAINT, linewidth=0.8)
    rows_of_names(axes, [name.replace("->", "→") for name in transitions], "% of all questions")
    axes.margins(x=0.14)
    axes.xaxis.set_major_formatter(lambda x, _: f"{abs(x):g}")
    for text, color, x, ha in (
        ("right → wrong", LOST, -6, "right"),
        ("wrong → right", GAINED, 6, "left"),
    ):
        axes.annotate(
            text,
            xy=(0, 1),
            xycoords=axes.get_xaxis_transform(),
            xytext=(x, 4),
            textcoords="offset points",
            ha=ha,
            color=color,
        )
    return axes


def _by_level(field: str, values: Mapping[str, Any], footer: str) -> Axes:
    systems = _shown(values)
    axes = new_axes(f"Accuracy by {one_line(field)}", footer, right=margin(systems))
    series = {
        system: {
            place: by_system[system]
            for place, by_system in enumerate(values.values())
            if system in by_system
        }
        for system in systems
    }
    lines(axes, series, [_counted(name, by_system, "\n") for name, by_system in values.items()])
    return axes


def _by_subject(field: str, values: Mapping[str, Any], footer: str) -> Axes:
    names = [_counted(name, by_system, "  ") for name, by_system in values.items()]
    axes = new_axes(
        f"Accuracy by {one_line(field)}",
        footer,
        height=1.6 + 0.5 * len(values),
        left=margin(names),
        top=0.75,
    )
    systems = _shown(values)
    for rank, system in enumerate(systems):
        offset = 0.17 * (rank - (len(systems) - 1) / 2)
        for row, by_system in enumerate(values.values()):
            if system in by_system:
                dot(axes, row + offset, by_system[system], system, horizontal=True)
    rows_of_accuracies(axes, names)
    axes.legend(
        [_key(system) for system in systems],
        systems,
        loc="lower right",
        bbox_to_anchor=(1, 1),
        borderaxespad=0.2,
        ncols=len(systems),
        labelcolor=[look(system).color for system in systems],
        handletextpad=0.2,
        columnspacing=1.2,
    )
    return axes


def _key(system: str) -> Line2D:
    color, marker = look(system)
    face = color if has_vote(system) else "white"
    return Line2D([], [], color=color, marker=marker, markerfacecolor=face, linestyle="")


def _shown(values: Mapping[str, Any]) -> list[str]:
    there = list(dict.fromkeys(system for by_system in values.values() for system in by_system))
    return [name for name in IN_GROUPS if name in there] or there[: len(IN_GROUPS)]


def _counted(name: str, by_system: Mapping[str, Any], between: str) -> str:
    questions = max(entry["questions"] for entry in by_system.values())
    name = one_line(name)
    short = name if len(name) <= _LONGEST_NAME else f"{name[:_LONGEST_NAME]}..."
    return f"{short}{between}({questions:,})"
