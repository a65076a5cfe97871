"""The training curves of a run as charts for its page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from malt_jax.runs.metrics import Curves
from malt_jax.viewer.charts import Chart, Point, line_chart

_CHARTS = {
    "loss": ("loss",),
    "reward margin": ("rewards/margins",),
    "log-probability of a completion": ("logps/chosen", "logps/rejected"),
    "accuracy": ("rewards/accuracies", "mean_token_accuracy"),
}
"""The charts of a stage, and the metrics that each shows. The names are TRL's."""


def charts(curves: Curves) -> dict[str, list[Chart]]:
    """The charts of every training stage, each with the metrics that the stage has logged."""
    return {
        stage: [
            line_chart(title, series, "update")
            for title, names in _CHARTS.items()
            if (series := _series(records, names))
        ]
        for stage, records in curves.items()
    }


def epochs(curves: Curves) -> dict[str, float]:
    """The passes over its rows that every stage has made."""
    found = {stage: _points(records, "epoch") for stage, records in curves.items()}
    return {stage: points[-1][1] for stage, points in found.items() if points}


def _series(
    records: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> dict[str, Sequence[Point]]:
    series = {name: _points(records, name) for name in names}
    return {name: points for name, points in series.items() if points}


def _points(records: Sequence[Mapping[str, Any]], name: str) -> list[Point]:
    """Updates and values of a metric, where it is a number."""
    known = [record for record in records if isinstance(record.get(name), int | float)]
    return [(float(record["step"]), float(record[name])) for record in known]
