"""The table that ends a command."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console, JustifyMethod
from rich.table import Table

from malt_jax.reporting.views import one_line


def print_table(content: Mapping[str, Any], console: Console) -> None:
    """Prints the systems of results.json with accuracy, cost and their distance from MALT with a
    vote, or from the single model where no role was trained."""
    best = "malt+mv" in content["systems"]
    questions = next(iter(content["systems"].values()))["questions"]
    table = Table(title=f"{content['task']}, {one_line(content['model'])}, {questions} questions")
    distance = "malt+mv ahead by" if best else "ahead of sa by"
    for heading in ("system", "accuracy %", "95 %", "calls", "tokens", distance):
        side: JustifyMethod = "left" if heading == "system" else "right"
        table.add_column(heading, justify=side, overflow="fold")
    for name, system in content["systems"].items():
        sides = f"malt+mv - {name}" if best else f"{name} - sa"
        compared = content["comparisons"].get(sides)
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
    for number, roles in enumerate(content.get("rounds", ())):
        learned = ", ".join(
            f"{role} {c['rows']} rows and {c['pairs']} pairs" for role, c in roles.items()
        )
        console.print(f"round {number} learned from: {learned}")


def _interval(bounds: Sequence[float]) -> str:
    low, high = (100 * bound for bound in bounds)
    return f"{low:.1f} to {high:.1f}"
