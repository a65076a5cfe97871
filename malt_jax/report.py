"""Results of a run: results.json and the table that ends the command."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from malt_jax.config import plain
from malt_jax.evaluation import PAIRED_WITH, SYSTEMS, Outcome
from malt_jax.experiment import Experiment
from malt_jax.runs.directory import RunDirectory, versions, write_atomically
from malt_jax.statistics import mcnemar, mean_interval, paired_difference

RESULTS_FILE = "results.json"


def results(
    experiment: Experiment,
    directory: RunDirectory,
    outcomes: Mapping[str, Outcome],
    counts: Sequence[Mapping[str, Any]],
    stages: Sequence[str],
) -> dict[str, Any]:
    """The content of results.json, whose fields docs/results-schema.md explains.

    counts: rows and pairs per role, for each round.
    stages: names of the stages to report the seconds of.
    """
    best = outcomes[PAIRED_WITH]
    return {
        "model": experiment.checkpoint.name,
        "task": experiment.task.name,
        "systems": {name: _system(outcome) for name, outcome in outcomes.items()},
        "comparisons": {
            f"{PAIRED_WITH} - {name}": _comparison(best, outcome, SYSTEMS[name].voted)
            for name, outcome in outcomes.items()
            if name != PAIRED_WITH
        },
        "rounds": list(counts),
        "seconds": {name: round(directory.seconds(name), 3) for name in stages},
        "config": plain(experiment.config),
        "versions": versions(),
    }


def _system(outcome: Outcome) -> dict[str, Any]:
    estimate = mean_interval(outcome.correct.mean(axis=0))
    return {
        "accuracy": estimate.mean,
        "ci95": [estimate.low, estimate.high],
        "questions": outcome.correct.shape[1],
        "seeds": outcome.correct.shape[0],
        "calls": outcome.calls,
        "tokens": outcome.tokens,
    }


def _comparison(best: Outcome, other: Outcome, voted: bool) -> dict[str, Any]:
    difference = paired_difference(best.correct.mean(axis=0), other.correct.mean(axis=0))
    compared = {"difference": difference.mean, "ci95": [difference.low, difference.high]}
    # The exact test is for verdicts of right or wrong: one seed, and a vote on both sides.
    if voted and len(best.correct) == 1:
        compared["mcnemar_p"] = mcnemar(best.correct[0], other.correct[0])
    return compared


def write(directory: RunDirectory, content: Mapping[str, Any]) -> None:
    """Writes results.json, whole."""
    write_atomically(directory.path / RESULTS_FILE, json.dumps(content, indent=2) + "\n")


def print_table(content: Mapping[str, Any], console: Console) -> None:
    """Prints the systems with accuracy, cost and their distance from MALT with a vote."""
    questions = next(iter(content["systems"].values()))["questions"]
    table = Table(title=f"{content['task']}, {content['model']}, {questions} held-out questions")
    for heading in ("system", "accuracy %", "95 %", "calls", "tokens", f"{PAIRED_WITH} ahead by"):
        table.add_column(heading, justify="left" if heading == "system" else "right")
    for name, system in content["systems"].items():
        compared = content["comparisons"].get(f"{PAIRED_WITH} - {name}")
        table.add_row(
            name,
            f"{100 * system['accuracy']:.1f}",
            _interval(system["ci95"]),
            f"{system['calls']:g}",
            f"{system['tokens']:.0f}",
            ""
            if compared is None
            else f"{100 * compared['difference']:+.1f} [{_interval(compared['ci95'])}]",
        )
    console.print(table)
    for number, roles in enumerate(content["rounds"]):
        learned = ", ".join(
            f"{role} {c['rows']} rows and {c['pairs']} pairs" for role, c in roles.items()
        )
        console.print(f"round {number} learned from: {learned}")


def _interval(bounds: Sequence[float]) -> str:
    low, high = (100 * np.asarray(bounds)).tolist()
    return f"{low:.1f} to {high:.1f}"
