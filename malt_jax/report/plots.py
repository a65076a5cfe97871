"""Plots of a results.json, as PNG and SVG files."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from upath import UPath

from malt_jax.report.drawing import (
    FAINT,
    GAINED,
    INK,
    LOST,
    Entry,
    draw_accuracies,
    family,
    finish,
    has_vote,
    look,
    name_rows,
    new_figure,
    percents_across,
    percents_upwards,
    shorten,
    write_figures,
)
from malt_jax.report.paper_tables import transfer_name
from malt_jax.report.tables import headline, systems_in_groups

_ABLATION = re.compile(r"malt-(untrained|without|until)-")


def write_plots(content: Mapping[str, Any], directory: UPath) -> list[UPath]:
    """Draws the plots that a results.json has data for, and returns the files."""
    return write_figures(figures(content), directory)


def figures(content: Mapping[str, Any]) -> Iterator[tuple[str, Figure]]:
    """Draws the plots that a results.json has data for; each comes with its name."""
    footer = f"{shorten(headline(content), 80)}. Lines at points and bars: 95 % intervals"
    for name, figure in _plots(content):
        yield name, finish(figure, footer)


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
    if paper := content.get("paper"):
        yield from _of_the_paper(content, paper)


def _of_the_paper(
    content: Mapping[str, Any], paper: Mapping[str, Any]
) -> Iterator[tuple[str, Figure]]:
    """Votes, and the answers that each role changes; accuracy on other tasks if there are any."""
    yield "accuracy-by-votes", _by_votes(paper["votes"])
    yield "votes-at-equal-calls", _votes_at_calls(paper["votes"])
    changed = {
        f"{name}: {role}": entry
        for name, by_role in paper["self_correction"].items()
        for role, entry in by_role.items()
    }
    if changed:
        title = "Answers that each role mends and breaks"
        yield "self-correction", _changed_answers(changed, title)
    if paper["transfer"]:
        tasks = {content["task"]: content["systems"]}
        for entry in paper["transfer"]:
            tasks[f"transfer: {transfer_name(entry)}"] = entry["systems"]
        yield "transfer", _by_group("task", tasks)


def _without_ablations(by_system: Mapping[str, Any]) -> dict[str, Any]:
    return {name: entry for name, entry in by_system.items() if not _ABLATION.match(name)}


def _against_calls(systems: Mapping[str, Any]) -> Figure:
    """Accuracy over a logarithmic axis of calls, with a line for each family."""
    figure, axes = new_figure("Accuracy against calls of the model")
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
        families.setdefault(family(name), []).append(name)
    best_first = sorted(families, key=lambda f: -max(systems[n]["accuracy"] for n in families[f]))
    for best in best_first:
        names = families[best]
        heights = [100 * systems[name]["accuracy"] for name in names]
        axes.plot([at[n] for n in names], heights, color=look(best)[0], lw=1, alpha=0.5)
        for name in names:
            label = best if name == names[-1] else None
            draw_accuracies(axes, name, [at[name]], [systems[name]], label=label)
    axes.set_xticks([math.log10(calls) for calls in by_calls], [f"{c:g}" for c in by_calls])
    axes.set_xlabel("calls for an answer; lines join a system without and with a vote")
    percents_upwards(axes)
    return figure


def _ablations(systems: Mapping[str, Any]) -> Figure:
    whole = [name for name in ("malt+mv", "malt") if name in systems]
    parts = sorted(filter(_ABLATION.match, systems), key=lambda name: -systems[name]["accuracy"])
    names = [*whole, *parts]
    title = "MALT with a part untrained or left out"
    figure, axes = new_figure(title, height=1.3 + 0.3 * len(names))
    for row, name in enumerate(names):
        color = look(name)[0] if name in whole else INK
        draw_accuracies(
            axes, name, [row], [systems[name]], horizontal=True, color=color, label=None
        )
    for name in whole:
        axes.axvline(100 * systems[name]["accuracy"], color=look(name)[0], lw=0.8, ls=":")
    percents_across(axes, names)
    return figure


def _after_each_role(turns: Mapping[str, Mapping[str, Entry]]) -> Figure:
    """Accuracy over the roles, a line for each system; the legend is in the order of the ends."""
    figure, axes = new_figure("Accuracy after each role")
    roles = list(dict.fromkeys(role for by_role in turns.values() for role in by_role))
    for name in sorted(turns, key=lambda name: -list(turns[name].values())[-1]["accuracy"]):
        offset = 0.05 * (list(turns).index(name) - (len(turns) - 1) / 2)
        at = [roles.index(role) + offset for role in turns[name]]
        dashes = "-" if has_vote(name) else (0, (4, 2))
        draw_accuracies(axes, name, at, list(turns[name].values()), linestyle=dashes)
    axes.set_xticks(range(len(roles)), roles)
    percents_upwards(axes)
    return figure


def _by_votes(by_system: Mapping[str, Mapping[str, Any]]) -> Figure:
    figure, axes = new_figure("Accuracy by the number of votes")
    for name, entries in by_system.items():
        at = [float(count) for count in entries]
        draw_accuracies(axes, f"{name}+mv", at, [*entries.values()], linestyle="-", label=name)
    axes.set_xlabel("votes (1: without a vote)")
    percents_upwards(axes)
    axes.set_ylabel("accuracy, %")
    return figure


def _votes_at_calls(by_system: Mapping[str, Mapping[str, Any]]) -> Figure:
    figure, axes = new_figure("Votes at equal calls of the model")
    for name, entries in by_system.items():
        at = [math.log10(entry["calls"]) for entry in entries.values()]
        draw_accuracies(axes, f"{name}+mv", at, [*entries.values()], linestyle="-", label=name)
    most = max(entry["calls"] for entries in by_system.values() for entry in entries.values())
    ticks = [calls for calls in (1, 2, 3, 6, 9, 18, 27, 54, 81, 162, 243) if calls <= most]
    axes.set_xticks([math.log10(calls) for calls in ticks], [str(calls) for calls in ticks])
    axes.set_xlabel("calls for an answer")
    percents_upwards(axes)
    axes.set_ylabel("accuracy, %")
    return figure


def _changed_answers(transitions: Mapping[str, Any], title: str = "Answers that changed") -> Figure:
    figure, axes = new_figure(title, height=1.5 + 0.45 * len(transitions))
    for side, label, color, sign in (
        ("right_to_wrong", "correct → wrong", LOST, -1),
        ("wrong_to_right", "wrong → correct", GAINED, 1),
    ):
        # A bar of length 0 would have its label on the other side.
        shares = np.maximum(100 * np.array([c[side] for c in transitions.values()]), 1e-6)
        low, high = 100 * np.array([c[f"{side}_ci95"] for c in transitions.values()]).T
        errors = np.maximum([shares - low, high - shares], 0)[::sign]
        look: dict[str, Any] = {"color": color, "alpha": 0.85, "ecolor": INK, "label": label}
        bars = axes.barh(range(len(shares)), sign * shares, xerr=errors, height=0.5, **look)
        axes.bar_label(bars, [f"{share:.1f}" for share in shares], padding=4, color=color)
    axes.axvline(0, color=FAINT, linewidth=0.8)
    axes.margins(x=0.14)
    axes.xaxis.set_major_formatter(lambda x, _: f"{abs(x):g}")
    name_rows(axes, [name.replace("->", "→") for name in transitions], "% of all questions")
    return figure


def _by_group(field: str, values: Mapping[str, Mapping[str, Entry]]) -> Figure:
    """Accuracy by a field of the questions, a row for each value of the field."""
    title = f"Accuracy by {shorten(field, 40)}"
    figure, axes = new_figure(title, height=1.6 + 0.5 * len(values))
    systems = systems_in_groups(values)
    for rank, system in enumerate(systems):
        offset = 0.17 * (rank - (len(systems) - 1) / 2)
        rows = [row for row, entries in enumerate(values.values()) if system in entries]
        entries = [entries[system] for entries in values.values() if system in entries]
        draw_accuracies(axes, system, [row + offset for row in rows], entries, horizontal=True)
    questions = [max(e["questions"] for e in entries.values()) for entries in values.values()]
    names = zip(values, questions, strict=True)
    percents_across(axes, [f"{shorten(name, 30)} ({count:,})" for name, count in names])
    return figure
