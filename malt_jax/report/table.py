"""Tables in Markdown, LaTeX and a terminal, and the form of the figures in their cells."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.table import Table as TerminalTable
from rich.text import Text

_LATEX = str.maketrans(
    {
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
)


@dataclass(frozen=True)
class Table:
    """A table whose first column names the rows."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], *notes: str
    ) -> Table:
        """A table without its empty columns."""
        kept = [i for i in range(len(headings)) if any(row[i] for row in rows)]
        cells = tuple(tuple(row[i] for i in kept) for row in rows)
        return cls(title, tuple(headings[i] for i in kept), cells, notes)


@dataclass(frozen=True)
class Listing:
    """A list of sentences below a title."""

    title: str
    items: tuple[str, ...]


def markdown_document(title: str, parts: Sequence[Table | Listing], *ending: str) -> str:
    """Tables and lists below a title, and paragraphs after them, in GitHub's Markdown."""
    drawn = (_markdown_table(p) if isinstance(p, Table) else _markdown_list(p) for p in parts)
    texts = [f"# {_markdown_text(title)}", *drawn]
    return "\n\n".join([*texts, *map(_markdown_text, ending)]) + "\n"


def latex_document(title: str, parts: Sequence[Table | Listing], *ending: str) -> str:
    r"""Tables and lists as a fragment for LaTeX's \input, which needs the package booktabs.

    Title and paragraphs are comments at its beginning.
    """
    comments = [title, r"\usepackage{booktabs}", *ending]
    drawn = (_latex_table(p) if isinstance(p, Table) else _latex_list(p) for p in parts)
    return "\n".join([*(f"% {one_line(c)}" for c in comments), *drawn])


def _markdown_table(table: Table) -> str:
    """A heading, the table and its notes in GitHub's Markdown, without an end of line."""
    rows = [table.headings, *table.rows]
    heading, *lines = (f"| {' | '.join(map(_markdown_text, row))} |" for row in rows)
    rule = f"| --- |{' ---: |' * (len(table.headings) - 1)}"
    parts = [f"## {_markdown_text(table.title)}", "\n".join([heading, rule, *lines])]
    return "\n\n".join([*parts, *map(_markdown_text, table.notes)])


def _markdown_list(listing: Listing) -> str:
    items = "\n".join(f"- {_markdown_text(item)}" for item in listing.items)
    return f"## {_markdown_text(listing.title)}\n\n{items}"


def _markdown_text(text: str) -> str:
    return re.sub(r"[\\|`*_<]|(?<=\])\(", r"\\\g<0>", one_line(text))


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


def _latex_list(listing: Listing) -> str:
    items = [f"  \\item {_latex_text(item)}" for item in listing.items]
    title = f"\\paragraph{{{_latex_text(listing.title)}.}}"
    return "\n".join([title, r"\begin{itemize}", *items, r"\end{itemize}", ""])


def _latex_text(text: str) -> str:
    escaped = one_line(text).translate(_LATEX)
    # At the start of a row a bracket or an asterisk would be an argument of the \\ before it.
    return f"{{}}{escaped}" if escaped.startswith(("[", "*")) else escaped


def terminal_table(table: Table) -> TerminalTable:
    """The table as rich prints it: long cells are folded, never cut, and no text is markup."""
    drawn = TerminalTable(
        title=Text(table.title),
        caption=Text(" ".join(table.notes)) if table.notes else None,
        box=SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for number, heading in enumerate(table.headings):
        drawn.add_column(heading, justify="right" if number else "left", overflow="fold")
    for row in table.rows:
        drawn.add_row(*map(Text, row))
    return drawn


def one_line(text: str) -> str:
    """Untrusted text without line breaks, runs of blanks and control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def accuracy(entry: Mapping[str, Any] | None) -> str:
    """An accuracy and its interval, in percent; empty for None."""
    return with_interval(entry["accuracy"], entry["ci95"]) if entry else ""


def with_interval(share: float, bounds: Sequence[float]) -> str:
    """A share and its interval, in percent."""
    low, high = bounds
    return f"{100 * share:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def signed(share: float) -> str:
    """A difference of shares in points, with its sign and a true minus."""
    return f"{100 * share:+.1f}".replace("-", "−")


def difference(compared: Mapping[str, Any] | None) -> str:
    """A difference of two accuracies and its interval, in points; empty for None."""
    if not compared:
        return ""
    low, high = map(signed, compared["ci95"])
    return f"{signed(compared['difference'])} [{low}, {high}]"


def p_value(compared: Mapping[str, Any] | None) -> str:
    """The corrected p-value of a comparison; empty where there is none."""
    p = (compared or {}).get("mcnemar_p_holm")
    if p is None:
        return ""
    return "<0.001" if p < 0.001 else f"{p:.{3 if p < 0.1 else 2}f}"


def formatted(value: float | None, form: str) -> str:
    """A number in a format; empty for None."""
    return "" if value is None else format(value, form)
