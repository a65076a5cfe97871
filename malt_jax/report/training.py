"""Training curves of a run, and a table of the values at the end of every stage."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from upath import UPath

from malt_jax.report.drawing import finish, new_panels, shorten, write_figures
from malt_jax.report.table import Table, formatted

Curves = Mapping[str, Sequence[Mapping[str, Any]]]
"""Stage -> what was logged after each of its updates."""

_STAGE = re.compile(r"round-(?P<round>[0-9]+)/(?P<role>[a-z][a-z0-9_]*)/(?P<kind>[a-z][a-z0-9_]*)")
_PANELS = {
    "loss": ("loss",),
    "reward margin": ("rewards/margins",),
    "rewards: chosen —, rejected - -": ("rewards/chosen", "rewards/rejected"),
    "reference point of KTO": ("kl",),
    "pairs in the right order": ("rewards/accuracies",),
    "most probable tokens": ("mean_token_accuracy",),
}
"""Title of a panel -> the metrics that it shows, the second one dashed."""
_COLORS = ("#0072B2", "#D55E00", "#00835F", "#A85388", "#A66F00", "#555555")
_DASHES = ("-", (0, (4, 2)))
_SMOOTHED = 20
"""A stage of this many updates or more is drawn with a running mean over a tenth of them."""
_FOOTER = "Thin lines: single updates. Thick lines of long stages: running means"


class _Curve(NamedTuple):
    """The metrics of one training stage."""

    label: str
    color: str
    records: Sequence[Mapping[str, Any]]


def training_table(content: Mapping[str, Any]) -> Table:
    """The last values of every training stage in a results.json, with its rows or pairs.

    Stages of a single round are named without it.
    """
    rows, stages = [], content.get("training", {})
    first = "round-0/" if all(stage.startswith("round-0/") for stage in stages) else ""
    for stage, values in stages.items():
        accuracy = values.get("rewards/accuracies", values.get("mean_token_accuracy"))
        rows.append(
            (
                shorten(stage.removeprefix(first), 60),
                _examples(content, stage),
                f"{values['updates']:,}",
                formatted(values.get("loss"), ".3f"),
                _signed(values.get("rewards/margins")),
                _signed(values.get("rewards/chosen")),
                _signed(values.get("rewards/rejected")),
                formatted(None if accuracy is None else 100 * accuracy, ".1f"),
            )
        )
    headings = ("stage", "rows", "updates", "loss", "margin", "chosen", "rejected", "accuracy %")
    notes = ["rows: for dpo, pairs; for kto, all completions. Means over the last 10 updates."]
    if any(row[4] for row in rows):
        notes.append(
            "margin, chosen, rejected: implicit rewards, in nats, against the start of the stage."
        )
    notes.append("accuracy: of tokens; for dpo, of pairs.")
    return Table.of("End of each training stage", headings, rows, " ".join(notes))


def _examples(content: Mapping[str, Any], stage: str) -> str:
    """The number of a stage's rows or pairs; empty where it is not known."""
    match, rounds = _STAGE.fullmatch(stage), content.get("rounds", ())
    if match is None or int(match["round"]) >= len(rounds):
        return ""
    names = {"sft": ["rows"], "dpo": ["pairs"], "kto": ["correct", "incorrect"]}
    counts = rounds[int(match["round"])].get(match["role"], {})
    found = [counts.get(name) for name in names.get(match["kind"], [])]
    return formatted(sum(found), ",") if found and None not in found else ""


def _signed(value: float | None) -> str:
    return formatted(value, "+.3f").replace("-", "−")


def write_curves(curves: Curves, directory: UPath) -> list[UPath]:
    """Draws the training curves as `training-KIND`, a figure a kind of stage; returns the files."""
    return write_figures(figures(curves), directory)


def figures(curves: Curves) -> Iterator[tuple[str, Figure]]:
    """Draws the curves of all stages of a kind (sft, dpo) in one figure; each with its name."""
    stages = {match: curves[match[0]] for match in map(_STAGE.fullmatch, curves) if match}
    roles = list(dict.fromkeys(match["role"] for match in stages))
    several = len({match["round"] for match in stages}) > 1
    for kind in dict.fromkeys(match["kind"] for match in stages):
        drawn = []
        for number, (match, records) in enumerate(
            (match, records) for match, records in stages.items() if match["kind"] == kind
        ):
            color = _COLORS[(number if several else roles.index(match["role"])) % len(_COLORS)]
            label = f"{match['role']}, round {match['round']}" if several else match["role"]
            drawn.append(_Curve(label, color, records))
        panels = {
            title: names
            for title, names in _PANELS.items()
            if any(len(_points(curve, name)[0]) for curve in drawn for name in names)
        }
        if panels:
            figure, places = new_panels(f"Training: {kind}", len(panels))
            for axes, (title, names) in zip(places, panels.items(), strict=True):
                _panel(axes, title, names, drawn)
            yield f"training-{kind}", finish(figure, _FOOTER)


def _panel(axes: Axes, title: str, names: Sequence[str], curves: Sequence[_Curve]) -> None:
    """Draws some metrics of some stages over their updates."""
    for curve in curves:
        for name, dashes in zip(names, _DASHES, strict=False):
            steps, values = _points(curve, name)
            if not len(steps):
                continue
            label = curve.label if name == "loss" else None
            width = len(values) // 10 if len(values) >= _SMOOTHED else 1
            look: dict[str, Any] = {"color": curve.color, "linestyle": dashes}
            if width > 1:
                axes.plot(steps, values, lw=0.6, alpha=0.35, **look)
                kernel = np.full(width, 1 / width)
                values = np.convolve(values, kernel, mode="valid")
                steps = steps[width - 1 :]
            marker = "o" if len(steps) == 1 else ""
            axes.plot(steps, values, lw=1.4, marker=marker, label=label, **look)
    axes.set_title(title, size=9, loc="left")
    axes.set_xlabel("update")
    axes.grid(axis="y")


def _points(
    curve: _Curve, name: str
) -> tuple[Float[np.ndarray, " points"], Float[np.ndarray, " points"]]:
    """Updates and values of a metric, where it is a number."""
    known = [r for r in curve.records if isinstance(r.get(name), int | float)]
    return np.array([r["step"] for r in known], float), np.array([r[name] for r in known], float)
