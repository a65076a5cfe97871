"""Tables of a results.json in Markdown, in LaTeX and in a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rich.console import Console

from malt_jax.report.paper import SOURCE, PaperResults, paper_results
from malt_jax.report.table import (
    Table,
    accuracy,
    difference,
    formatted,
    latex_document,
    markdown_document,
    one_line,
    p_value,
    signed,
    terminal_table,
    with_interval,
)
from malt_jax.report.training import training_table

BEST, SINGLE = "malt+mv", "sa"
"""The systems that the others are compared with."""

_IN_GROUPS = ("sa", "ma+mv", "star-ma+mv", "malt+mv")
_MOST_PASSES = 10
SUBSETS = "mean ± population standard deviation over {subsets} random subsets of {size} questions"
HOLM = "p: exact McNemar test, with Holm's correction for all of this table."
BRACKETS = "In brackets: 95 % intervals, bootstrap over the questions."


def markdown(content: Mapping[str, Any]) -> str:
    """All tables as a document in GitHub's Markdown."""
    return markdown_document(headline(content), tables(content), BRACKETS)


def latex(content: Mapping[str, Any]) -> str:
    r"""All tables as a fragment for LaTeX's \input; it needs the package booktabs."""
    return latex_document(headline(content), tables(content), BRACKETS)


def print_table(content: Mapping[str, Any], console: Console) -> None:
    """Prints the systems with accuracy, cost and difference from MALT with a vote.

    Where no role was trained, differences are from the single model. The training stages follow,
    with their values at the end.
    """
    best = BEST in content["systems"]
    questions = next(iter(content["systems"].values()))["questions"]
    ahead, sides = (f"{BEST} ahead by", f"{BEST} - {{}}")
    if not best:
        ahead, sides = f"ahead of {SINGLE} by", f"{{}} - {SINGLE}"
    rows = [
        (
            name,
            accuracy(system),
            f"{system['calls']:g}",
            f"{system['tokens']:.0f}",
            difference(content["comparisons"].get(sides.format(name))),
        )
        for name, system in content["systems"].items()
    ]
    title = f"{content['task']}, {one_line(content['model'])}, {questions} questions"
    headings = ("system", "accuracy %", "calls", "tokens", ahead)
    console.print(terminal_table(Table(title, headings, tuple(rows), ("[ ]: 95 % intervals",))))
    for number, roles in enumerate(content.get("rounds", ())):
        trained = ", ".join(
            f"{role} {c['rows']} rows and {c['pairs']} pairs" for role, c in roles.items()
        )
        console.print(f"round {number} trained on: {trained}")
    if (stages := training_table(content)).rows:
        console.print(terminal_table(stages))


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
        training_table(content),
    )
    return [table for table in made if table.rows]


def _accuracy(content: Mapping[str, Any], paper: PaperResults) -> Table:
    systems = content["systems"]
    rows = [
        (
            name,
            f"{system['calls']:g}",
            accuracy(system),
            *_compared(content, f"{name} - {SINGLE}"),
            of_subsets(system.get("paper_protocol")),
            paper.systems.get(name, ""),
        )
        for name, system in systems.items()
    ]
    notes = [HOLM] if any(row[4] for row in rows) else []
    if subsets := next(iter(systems.values())).get("paper_protocol"):
        notes.append(f"subsets: {SUBSETS.format_map(subsets)}.")
    if paper.systems:
        others = f"; {paper.others}" if paper.others else ""
        notes.append(f"paper: {SOURCE}, {SUBSETS.format(subsets=4, size=100)}{others}.")
    headings = ("system", "calls", "accuracy %", "ahead of sa by", "p", "subsets", "paper")
    return Table.of("Accuracy", headings, rows, *notes)


def _cost(content: Mapping[str, Any]) -> Table:
    rows = [
        (
            name,
            f"{system['calls']:g}",
            formatted(system.get("prompt_tokens"), ",.0f"),
            formatted(system["tokens"], ",.0f"),
            formatted(system.get("seconds"), ".3g"),
            f"{100 * system['accuracy']:.1f}",
        )
        for name, system in content["systems"].items()
    ]
    headings = ("system", "calls", "prompt tokens", "sampled tokens", "seconds", "accuracy %")
    return Table.of("Cost of an answer", headings, rows)


def _comparisons(content: Mapping[str, Any]) -> Table:
    rows = [
        (key.removeprefix(f"{BEST} - "), *_compared(content, key))
        for key in content["comparisons"]
        if key.startswith(f"{BEST} - ")
    ]
    notes = [HOLM] if any(row[2] for row in rows) else []
    headings = ("system", f"{BEST} ahead by", "p")
    return Table.of("MALT with a vote against the others", headings, rows, *notes)


def _turns(content: Mapping[str, Any], paper: PaperResults) -> Table:
    turns = content.get("turns", {})
    roles = list(dict.fromkeys(role for by_role in turns.values() for role in by_role))
    rows = []
    for name, by_role in turns.items():
        rows.append((name, *[accuracy(by_role.get(role)) for role in roles]))
        if name in paper.turns:
            rows.append((f"{name}, paper", *[paper.turns[name].get(role, "") for role in roles]))
    return Table.of("Accuracy after each role, %", ("system", *roles), rows)


def _transitions(content: Mapping[str, Any], paper: PaperResults) -> Table:
    rows = [
        (
            name.replace("->", "→"),
            with_interval(changed["wrong_to_right"], changed["wrong_to_right_ci95"]),
            with_interval(changed["right_to_wrong"], changed["right_to_wrong_ci95"]),
            signed(changed["wrong_to_right"] - changed["right_to_wrong"]),
            *paper.transitions.get(name, ("", "")),
        )
        for name, changed in content.get("transitions", {}).items()
    ]
    changes = ("wrong → correct", "correct → wrong")
    headings = ("from → to", *changes, "net", *(f"paper: {change}" for change in changes))
    return Table.of("Answers that changed, % of all questions", headings, rows)


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
    return Table.of(title, ("system", *map(str, passes)), rows)


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
        yield Table.of(f"Accuracy by {field}, %", (field, "questions", *shown), rows)


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
            formatted(entry["standard_error"], ".3f"),
            f"{entry['paper_epsilon']:.2f}",
        )
        for role, entry in content.get("values", {}).items()
    ]
    headings = ("role", "nodes", "leaves", "doubtful labels %", "standard error", "paper's bound")
    return Table.of("Uncertainty of the values of the training trees", headings, rows)


def _compared(content: Mapping[str, Any], sides: str) -> tuple[str, str]:
    """A difference with its interval, and the corrected p-value.

    sides: key of the comparison, "SYSTEM - SYSTEM".
    """
    compared = content["comparisons"].get(sides)
    return difference(compared), p_value(compared)


def of_subsets(protocol: Mapping[str, Any] | None) -> str:
    """An accuracy by the paper's protocol, in percent; empty for None."""
    return f"{100 * protocol['mean']:.2f} ± {100 * protocol['std']:.2f}" if protocol else ""
