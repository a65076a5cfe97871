"""The tables of a results.json in Markdown and in LaTeX."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from malt_jax.report.views import Table, headline, one_line, tables

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
    """The tables as a document in Markdown, with tables as GitHub writes them."""
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
    r"""The tables as a fragment in LaTeX, to be \input; it needs the package booktabs."""
    parts = [
        f"% {one_line(headline(content))}",
        r"% \usepackage{booktabs}; in brackets: 95 % intervals, bootstrap over the questions.",
    ]
    return "\n".join(parts + [_latex_table(table) for table in tables(content)])


def _latex_table(table: Table) -> str:
    caption = " ".join([f"{table.title.removesuffix('.')}.", *table.notes])
    rows = [" & ".join(map(_latex_text, row)) + r" \\" for row in (table.headings, *table.rows)]
    return "\n".join(
        [
            r"\begin{table}[htbp]",
            r"  \centering\footnotesize\setlength{\tabcolsep}{4pt}",
            f"  \\caption{{{_latex_text(caption)}}}",
            # What is wider than the text reaches into both margins alike.
            r"  \makebox[\linewidth][c]{%",
            f"  \\begin{{tabular}}{{@{{}}l{'r' * (len(table.headings) - 1)}@{{}}}}",
            r"    \toprule",
            f"    {rows[0]}",
            r"    \midrule",
            *[f"    {row}" for row in rows[1:]],
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
