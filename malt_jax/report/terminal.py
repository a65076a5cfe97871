"""The table that ends a command."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, JustifyMethod
from rich.table import Table

from malt_jax.report.views import difference, one_line, with_interval


def print_table(content: Mapping[str, Any], console: Console) -> None:
    """Prints the systems of results.json with accuracy, cost and their distance from MALT with a
    vote, or from the single model where no role was trained."""
    best = "malt+mv" in content["systems"]
    questions = next(iter(content["systems"].values()))["questions"]
    table = Table(
        title=f"{content['task']}, {one_line(content['model'])}, {questions} questions",
        caption="[ ]: 95 % intervals",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    distance = "malt+mv ahead by" if best else "ahead of sa by"
    for heading in ("system", "accuracy %", "calls", "tokens", distance):
        side: JustifyMethod = "left" if heading == "system" else "right"
        table.add_column(heading, justify=side, overflow="fold")
    for name, system in content["systems"].items():
        sides = f"malt+mv - {name}" if best else f"{name} - sa"
        table.add_row(
            name,
            with_interval(system["accuracy"], system["ci95"]),
            f"{system['calls']:g}",
            f"{system['tokens']:.0f}",
            difference(content["comparisons"].get(sides, {})),
        )
    console.print(table)
    for number, roles in enumerate(content.get("rounds", ())):
        learned = ", ".join(
            f"{role} {c['rows']} rows and {c['pairs']} pairs" for role, c in roles.items()
        )
        console.print(f"round {number} learned from: {learned}")
