"""Tables of a results.json in Markdown, in LaTeX and in a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as TerminalTable

from malt_jax.report.paper import SOURCE, PaperResults, paper_results

BEST, SINGLE = "malt+mv", "sa"
"""The systems that the others are compared with."""

_IN_GROUPS = ("sa", "ma+mv", "star-ma+mv", "malt+mv")
_MOST_PASSES = 10
_SUBSETS = "mean ± population standard deviation over {subsets} random subsets of {size} questions"
_HOLM = "p: exact McNemar test, with Holm's correction for all of this table."

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


def markdown(content: Mapping[str, Any]) -> str:
    """All tables as a document in GitHub's Markdown."""
    parts = [f"# {_markdown_text(headline(content))}"]
    for table in tables(content):
        rows = [table.headings, *table.rows]
        heading, *lines = (f"| {' | '.join(map(_markdown_text, row))} |" for row in rows)
        rule = f"| --- |{' ---: |' * (len(table.headings) - 1)}"
        parts += [f"## {_markdown_text(table.title)}", "\n".join([heading, rule, *lines])]
        parts += [_markdown_text(note) for note in table.notes]
    parts.append("In brackets: 95 % intervals, bootstrap over the questions.")
    return "\n\n".join(parts) + "\n"


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
    escaped = one_line(text).translate(_LATEX)
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


def headline(content: Mapping[str, Any]) -> str:
    """Model, task and number of questions, in one line."""
    system = next(iter(content["systems"].values()))
    asked = f"{system['questions']:,} questions, {system['seeds']} seed"
    asked += "s" if system["seeds"] > 1 else ""
    trained = f", trained on {content['trained_on']}" if "trained_on" in content else ""
    return one_line(f"{content['model']} on {content['task']}{trained}: {asked}")


def tables(content: Mapping[str, Any]) -> list[Table]:
    """All tables that a results.json has data for, without empty columns."""
    paper = paper_results(content) or PaperResults({})
    made = (
        _accuracy(content, paper),
        _cost(content),
        _comparisons(content),
        _turns(content, paper),
        _transitions(content, paper),
        _pass_at_k(content),
        *_groups(content),
        _values(content),
    )
    return [table for table in made if table.rows]


def _table(
    title: str, headings: Sequence[str], rows: Sequence[Sequence[str]], *notes: str
) -> Table:
    kept = [i for i in range(len(headings)) if any(row[i] for row in rows)]
    cells = tuple(tuple(row[i] for i in kept) for row in rows)
    return Table(title, tuple(headings[i] for i in kept), cells, notes)


def _accuracy(content: Mapping[str, Any], paper: PaperResults) -> Table:
    systems = content["systems"]
    rows = [
        (
            name,
            f"{system['calls']:g}",
            accuracy(system),
            *_compared(content, f"{name} - {SINGLE}"),
            _of_subsets(system.get("paper_protocol")),
            paper.systems.get(name, ""),
        )
        for name, system in systems.items()
    ]
    notes = [_HOLM] if any(row[4] for row in rows) else []
    if subsets := next(iter(systems.values())).get("paper_protocol"):
        notes.append(f"subsets: {_SUBSETS.format_map(subsets)}.")
    if paper.systems:
        others = f"; {paper.others}" if paper.others else ""
        notes.append(f"paper: {SOURCE}, {_SUBSETS.format(subsets=4, size=100)}{others}.")
    headings = ("system", "calls", "accuracy %", "ahead of sa by", "p", "subsets", "paper")
    return _table("Accuracy", headings, rows, *notes)


def _cost(content: Mapping[str, Any]) -> Table:
    rows = [
        (
            name,
            f"{system['calls']:g}",
            _number(system.get("prompt_tokens"), ",.0f"),
            _number(system["tokens"], ",.0f"),
            _number(system.get("seconds"), ".3g"),
            f"{100 * system['accuracy']:.1f}",
        )
        for name, system in content["systems"].items()
    ]
    headings = ("system", "calls", "prompt tokens", "sampled tokens", "seconds", "accuracy %")
    return _table("Cost of an answer", headings, rows)


def _comparisons(content: Mapping[str, Any]) -> Table:
    rows = [
        (key.removeprefix(f"{BEST} - "), *_compared(content, key))
        for key in content["comparisons"]
        if key.startswith(f"{BEST} - ")
    ]
    notes = [_HOLM] if any(row[2] for row in rows) else []
    headings = ("system", f"{BEST} ahead by", "p")
    return _table("MALT with a vote against the others", headings, rows, *notes)


def _turns(content: Mapping[str, Any], paper: PaperResults) -> Table:
    turns = content.get("turns", {})
    roles = list(dict.fromkeys(role for by_role in turns.values() for role in by_role))
    rows = []
    for name, by_role in turns.items():
        rows.append((name, *[accuracy(by_role.get(role)) for role in roles]))
        if name in paper.turns:
            rows.append((f"{name}, paper", *[paper.turns[name].get(role, "") for role in roles]))
    return _table("Accuracy after each role, %", ("system", *roles), rows)


def _transitions(content: Mapping[str, Any], paper: PaperResults) -> Table:
    rows = [
        (
            name.replace("->", "→"),
            _with_interval(changed["wrong_to_right"], changed["wrong_to_right_ci95"]),
            _with_interval(changed["right_to_wrong"], changed["right_to_wrong_ci95"]),
            _signed(changed["wrong_to_right"] - changed["right_to_wrong"]),
            *paper.transitions.get(name, ("", "")),
        )
        for name, changed in content.get("transitions", {}).items()
    ]
    changes = ("wrong → correct", "correct → wrong")
    headings = ("from → to", *changes, "net", *(f"paper: {change}" for change in changes))
    return _table("Answers that changed, % of all questions", headings, rows)


def _pass_at_k(content: Mapping[str, Any]) -> Table:
    by_system = content.get("pass_at_k", {})
    passes = sorted({int(k) for shares in by_system.values() for k in shares})
    if len(passes) > _MOST_PASSES:
        passes = [k for k in passes if k & (k - 1) == 0 or k == passes[-1]]
    rows = [
        (name, *[f"{100 * shares[str(k)]:.1f}" if str(k) in shares else "" for k in passes])
        for name, shares in by_system.items()
    ]
    title = "At least one of k passes correct (pass@k), %"
    return _table(title, ("system", *map(str, passes)), rows)


def _groups(content: Mapping[str, Any]) -> Iterator[Table]:
    for field, values in content.get("groups", {}).items():
        shown = systems_in_groups(values)
        rows = [
            (
                value,
                f"{max(entry['questions'] for entry in systems.values()):,}",
                *[accuracy(systems.get(name)) for name in shown],
            )
            for value, systems in values.items()
        ]
        yield _table(f"Accuracy by {field}, %", (field, "questions", *shown), rows)


def systems_in_groups(values: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The systems that are shown group by group; results.json has all.

    values: of a field in `groups`, value -> system -> accuracy.
    """
    names = list(dict.fromkeys(name for systems in values.values() for name in systems))
    return [name for name in _IN_GROUPS if name in names] or names[: len(_IN_GROUPS)]


def _values(content: Mapping[str, Any]) -> Table:
    rows = [
        (
            role,
            f"{entry['nodes']:,}",
            f"{entry['leaves']}",
            f"{100 * entry['label_doubt']:.1f}",
            _number(entry["standard_error"], ".3f"),
            f"{entry['paper_epsilon']:.2f}",
        )
        for role, entry in content.get("values", {}).items()
    ]
    headings = ("role", "nodes", "leaves", "doubtful labels %", "standard error", "paper's bound")
    return _table("Uncertainty of the values of the training trees", headings, rows)


def one_line(text: str) -> str:
    """Untrusted text without line breaks, runs of blanks and control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def accuracy(entry: Mapping[str, Any] | None) -> str:
    """An accuracy and its interval, in percent; empty for None."""
    return _with_interval(entry["accuracy"], entry["ci95"]) if entry else ""


def difference(content: Mapping[str, Any], sides: str) -> str:
    """The difference between two systems and its interval, in points; empty if not compared.

    sides: key of the comparison, "SYSTEM - SYSTEM".
    """
    compared = content["comparisons"].get(sides)
    if not compared:
        return ""
    low, high = map(_signed, compared["ci95"])
    return f"{_signed(compared['difference'])} [{low}, {high}]"


def _compared(content: Mapping[str, Any], sides: str) -> tuple[str, str]:
    """A difference with its interval, and the corrected p-value."""
    p = content["comparisons"].get(sides, {}).get("mcnemar_p_holm")
    if p is None:
        return difference(content, sides), ""
    return difference(content, sides), "<0.001" if p < 0.001 else f"{p:.{3 if p < 0.1 else 2}f}"


def _of_subsets(protocol: Mapping[str, Any] | None) -> str:
    return f"{100 * protocol['mean']:.2f} ± {100 * protocol['std']:.2f}" if protocol else ""


def _with_interval(share: float, bounds: Sequence[float]) -> str:
    low, high = bounds
    return f"{100 * share:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def _signed(share: float) -> str:
    """A difference of shares in points, with its sign and a true minus."""
    return f"{100 * share:+.1f}".replace("-", "−")


def _number(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
