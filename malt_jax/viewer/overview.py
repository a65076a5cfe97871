"""The overview of a run: what the page shows without JavaScript."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow.compute as pc

from malt_jax.config import Config, diff, to_yaml
from malt_jax.errors import UserError, parsing
from malt_jax.evaluation.store import FOLDER, read_samples
from malt_jax.files import names_in
from malt_jax.malt.round import stage_names
from malt_jax.progress import duration
from malt_jax.report.table import accuracy, one_line
from malt_jax.report.tables import headline, tables
from malt_jax.runs.directory import CONFIG_FILE
from malt_jax.runs.metrics import read_metrics
from malt_jax.runs.stage import MANIFEST, UNFINISHED, Manifest
from malt_jax.viewer.charts import Chart, line_chart, points_over_calls
from malt_jax.viewer.curves import charts, epochs
from malt_jax.viewer.source import Source

_FAMILIES = ("sa", "ma", "star-sa", "star-ma", "malt", "debate")
"""Systems that have looks of their own in the plots; all others share one."""

_OTHER = "has other fields than docs/results-schema.md says"
_NO_RESULTS: dict[str, Any] = {"tables": [], "systems": [], "calls": None, "turns": None}


@dataclass(frozen=True)
class StageRow:
    """One line of the table of stages."""

    name: str
    state: str
    seconds: str
    epochs: str
    tokens: str


def overview(source: Source, tokens: Mapping[str, int]) -> dict[str, Any]:
    """The variables of the template overview.html.

    tokens: by stage, the sampled tokens of trees and the completion tokens of training rows.
    """
    curves = read_metrics(source.path)
    stages = _stages(source, tokens, epochs(curves))
    config = source.config
    results = _NO_RESULTS | {"title": one_line(f"{config.model.name} on {config.task.name}")}
    with source.noted(), parsing(f"results.json {_OTHER}"):
        results |= _results(source.results) if source.results else {}
    return {
        **results,
        "run": str(source.path),
        "finished": source.finished,
        "evaluated_only": not source.finished and source.results is not None,
        "done": sum(row.state == "done" for row in stages),
        "stages": stages,
        "curves": charts(curves),
        "changed": diff(Config(), config),
        "configuration": to_yaml(config),
        "versions": _versions(source),
    }


def _results(results: Mapping[str, Any]) -> dict[str, Any]:
    """The variables that come from a results.json."""
    return {
        "title": headline(results),
        "tables": tables(results),
        "systems": [
            {"accuracy": s["accuracy"], "ci95": s["ci95"]} for s in results["systems"].values()
        ],
        "calls": _calls(results),
        "turns": _turns(results),
    }


def _calls(results: Mapping[str, Any]) -> Chart | None:
    entries = []
    for name, system in results.get("systems", {}).items():
        family = name.partition("+")[0]
        look = _FAMILIES.index(family) if family in _FAMILIES else len(_FAMILIES)
        low, high = (100 * bound for bound in system["ci95"])
        text = f"{name}: {accuracy(system)} % with {system['calls']:g} calls"
        entry = (name, look, system["calls"], 100 * system["accuracy"], (low, high), text)
        entries.append(entry)
    return points_over_calls(entries, [*_FAMILIES, "others"]) if entries else None


def _turns(results: Mapping[str, Any]) -> tuple[Chart, list[str]] | None:
    """Accuracy after each role, with the roles' names, which are the positions on the x axis."""
    turns = results.get("turns", {})
    if not turns:
        return None
    roles = list(next(iter(turns.values())))
    shown = {name: after for name, after in turns.items() if name.partition("+")[0] in _FAMILIES}
    series = {
        name: [(float(at), 100 * entry["accuracy"]) for at, entry in enumerate(after.values())]
        for name, after in shown.items()
    }
    looks = {name: (_FAMILIES.index(name.partition("+")[0]), "+" not in name) for name in series}
    return line_chart("Accuracy after each role, %", series, "", looks, 520, 290), roles


def _stages(
    source: Source, tokens: Mapping[str, int], passes: Mapping[str, float]
) -> list[StageRow]:
    rows = []
    for name in stage_names(source.config):
        state, seconds = _state(source, name)
        sampled = tokens.get(name, 0) * passes.get(name, 1.0)
        count = f"{passes[name]:.3g}" if name in passes else ""
        rows.append(StageRow(name, state, seconds, count, f"{sampled:,.0f}" if sampled else ""))
    folder = source.path / FOLDER
    for seed in names_in(folder, "seed-*"):
        seconds_of_seed, sampled = _sampled(source, f"{FOLDER}/{seed}")
        state = "done" if source.results else "in progress, or interrupted"
        text = duration(seconds_of_seed)
        rows.append(StageRow(f"{FOLDER}/{seed}", state, text, "", f"{sampled:,}"))
    return rows


def _state(source: Source, name: str) -> tuple[str, str]:
    """The state of a stage, and its seconds."""
    for file, state in ((MANIFEST, "done"), (UNFINISHED, "in progress, or interrupted")):
        path = source.path / name / file
        if path.exists():
            try:
                return state, duration(Manifest.read(path).seconds)
            except (OSError, UserError, ValueError):
                return "damaged", ""
    return ("left out" if source.finished else "not begun"), ""


def _sampled(source: Source, name: str) -> tuple[float, int]:
    """Seconds and sampled tokens of one repetition of the evaluation."""
    seconds, tokens = 0.0, 0
    for chain in names_in(source.path / name, "*"):
        for file in names_in(source.path / name / chain, "*.parquet"):
            with source.noted():
                table = read_samples(source.path / name / chain / file)
                seconds += float(table.schema.metadata[b"seconds"])
                tokens += pc.sum(pc.list_value_length(table.column("ids"))).as_py() or 0
    return seconds, tokens


def _versions(source: Source) -> dict[str, str]:
    """The versions in the results, or else those that the configuration was written with."""
    if source.results and isinstance(found := source.results.get("versions"), dict):
        return {str(name): str(version) for name, version in found.items()}
    first = (source.path / CONFIG_FILE).read_text(encoding="utf-8").partition("\n")[0]
    prefix = "# Made with "
    if not first.startswith(prefix):
        return {}
    pairs = (item.partition(" ") for item in first.removeprefix(prefix).rstrip(".").split(", "))
    return {name: version for name, _, version in pairs}
