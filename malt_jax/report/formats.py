"""Tables of a results.json in Markdown, in LaTeX and in a terminal."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as TerminalTable

from malt_jax.report.tables import (
    BEST,
    SINGLE,
    Table,
    accuracy,
    difference,
    headline,
    one_line,
    tables,
)

_LATEX = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "±": r"$\pm$",
    "−": r"$-$",
    "→": r"$\rightarrow$",
    **{character: f"\\{character}" for character in "&%$#_{}"},
}


def markdown(content: Mapping[str, Any]) -> str:
    """All tables as a document in GitHub's Markdown."""
    parts = [f"# {_markdown_text(headline(content))}"]
    for table in tables(content):
        parts += [f"## {_markdown_text(table.title)}", _markdown_table(table)]
        parts += [_markdown_text(note) for note in table.notes]
    parts.append("In brackets: 95 % intervals, bootstrap over the questions.")
    return "\n\n".join(parts) + "\n"


def _markdown_table(table: Table) -> str:
    rule = ["---", *["---:"] * (len(table.headings) - 1)]
    rows = [table.headings, *table.rows]
    heading, *lines = (f"| {' | '.join(map(_markdown_text, row))} |" for row in rows)
    return "\n".join([heading, f"| {' | '.join(rule)} |", *lines])


def _markdown_text(text: str) -> str:
    return re.sub(r"[\\|`*_<]|(?<=\])\(", r"\\\g<0>", one_line(text))


def latex(content: Mapping[str, Any]) -> str:
    r"""All tables as a fragment for LaTeX's \input; it needs the package booktabs."""
    parts = [
        f"% {headline(content)}",
        r"% \usepackage{booktabs}; in brackets: 95 % intervals, bootstrap over the questions.",
    ]
    return "\n".join(parts + [_latex_table(table) for table in tables(content)])


def _latex_table(table: Table) -> str:
    caption = " ".join([f"{table.title.removesuffix('.')}.", *table.notes])
    heading, *rows = (
        f"    {' & '.join(map(_latex_text, row))} \\\\" for row in (table.headings, *table.rows)
    )
    return "\n".join(
        [
            r"\begin{table}[htbp]",
            r"  \centering\footnotesize\setlength{\tabcolsep}{4pt}",
            f"  \\caption{{{_latex_text(caption)}}}",
            # A table wider than the text extends into both margins equally.
            r"  \makebox[\linewidth][c]{%",
            f"  \\begin{{tabular}}{{@{{}}l{'r' * (len(table.headings) - 1)}@{{}}}}",
            r"    \toprule",
            heading,
            r"    \midrule",
            *rows,
            r"    \bottomrule",
            r"  \end{tabular}}",
            r"\end{table}",
            "",
        ]
    )


def _latex_text(text: str) -> str:
    escaped = "".join(_LATEX.get(character, character) for character in one_line(text))
    # At the start of a row a bracket or an asterisk would be an argument of the \\ before it.
    return f"{{}}{escaped}" if escaped.startswith(("[", "*")) else escaped


def print_table(content: Mapping[str, Any], console: Console) -> None:
    """Prints the systems with accuracy, cost and difference from MALT with a vote.

    Where no role was trained, differences are from the single model.
    """
    best = BEST in content["systems"]
    questions = next(iter(content["systems"].values()))["questions"]
    table = TerminalTable(
        title=f"{content['task']}, {one_line(content['model'])}, {questions} questions",
        caption="[ ]: 95 % intervals",
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    table.add_column("system", overflow="fold")
    compared = f"{BEST} ahead by" if best else f"ahead of {SINGLE} by"
    for heading in ("accuracy %", "calls", "tokens", compared):
        table.add_column(heading, justify="right", overflow="fold")
    for name, system in content["systems"].items():
        table.add_row(
            name,
            accuracy(system),
            f"{system['calls']:g}",
            f"{system['tokens']:.0f}",
            difference(content, f"{BEST} - {name}" if best else f"{name} - {SINGLE}"),
        )
    console.print(table)
    for number, roles in enumerate(content.get("rounds", ())):
        trained = ", ".join(
            f"{role} {c['rows']} rows and {c['pairs']} pairs" for role, c in roles.items()
        )
        console.print(f"round {number} trained on: {trained}")
