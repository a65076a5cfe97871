"""The tables of a results.json as plain text in rows and columns, whatever they are written in."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from malt_jax.report.paper import SOURCE, PaperResults, Score, paper_results

_IN_GROUPS = ("sa", "ma+mv", "star-ma+mv", "malt+mv")

_MOST_PASSES = 10
_SUBSETS = "mean ± population standard deviation over {subsets} random subsets of {size} questions"
_HOLM = "p: exact McNemar test, with Holm's correction for all of this table."


@dataclass(frozen=True)
class Table:
    """A table whose first column names what a row is about."""

    title: str
    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()


def headline(content: Mapping[str, Any]) -> str:
    """What was evaluated, in one line."""
    system = next(iter(content["systems"].values()))
    asked = f"{system['questions']:,} questions, {system['seeds']} seed"
    asked += "s" if system["seeds"] > 1 else ""
    trained = f", trained on {content['trained_on']}" if "trained_on" in content else ""
    return f"{content['model']} on {content['task']}{trained}: {asked}"


def tables(content: Mapping[str, Any]) -> list[Table]:
    """All tables that the content of a results.json has something for."""
    paper = paper_results(content)
    made = [
        _accuracy(content, paper),
        _cost(content),
        *_comparisons(content),
        *_turns(content, paper),
        *_transitions(content, paper),
        *_pass_at_k(content),
        *_groups(content),
        *_values(content),
    ]
    return [_without_empty_columns(table) for table in made]


def _accuracy(content: Mapping[str, Any], paper: PaperResults | None) -> Table:
    rows, notes = [], []
    subsets: Mapping[str, Any] | None = None
    for name, system in content["systems"].items():
        compared = content["comparisons"].get(f"{name} - sa", {})
        subsets = system.get("paper_protocol")
        rows.append(
            (
                name,
                f"{system['calls']:g}",
                with_interval(system["accuracy"], system["ci95"]),
                difference(compared),
                p_value(compared.get("mcnemar_p_holm")),
                f"{100 * subsets['mean']:.2f} ± {100 * subsets['std']:.2f}" if subsets else "",
                published(paper.systems.get(name)) if paper else "",
            )
        )
    if any(row[4] for row in rows):
        notes.append(_HOLM)
    if subsets:
        notes.append(f"subsets: {_SUBSETS.format_map(subsets)}.")
    if paper:
        others = "".join(f"; {name} {value:.2f}" for name, value in paper.others.items())
        notes.append(f"paper: {SOURCE}, {_SUBSETS.format(subsets=4, size=100)}{others}.")
    headings = ("system", "calls", "accuracy %", "ahead of sa by", "p", "subsets", "paper")
    return Table("Accuracy", headings, tuple(rows), tuple(notes))


def _cost(content: Mapping[str, Any]) -> Table:
    rows = [
        (
            name,
            f"{system['calls']:g}",
            amount(system.get("prompt_tokens"), ",.0f"),
            amount(system["tokens"], ",.0f"),
            amount(system.get("seconds"), ".3g"),
            f"{100 * system['accuracy']:.1f}",
        )
        for name, system in content["systems"].items()
    ]
    headings = ("system", "calls", "prompt tokens", "sampled tokens", "seconds", "accuracy %")
    return Table("Cost of an answer", headings, tuple(rows))


def _comparisons(content: Mapping[str, Any]) -> Iterator[Table]:
    best = "malt+mv - "
    rows = [
        (
            key.removeprefix(best),
            difference(compared),
            p_value(compared.get("mcnemar_p_holm")),
        )
        for key, compared in content["comparisons"].items()
        if key.startswith(best)
    ]
    if rows:
        headings = ("system", "malt+mv ahead by", "p")
        notes = (_HOLM,) if any(row[2] for row in rows) else ()
        yield Table("MALT with a vote against the others", headings, tuple(rows), notes)


def _turns(content: Mapping[str, Any], paper: PaperResults | None) -> Iterator[Table]:
    turns = content.get("turns", {})
    roles = list(dict.fromkeys(role for by_role in turns.values() for role in by_role))
    rows = []
    for name, by_role in turns.items():
        cells = [
            with_interval(by_role[role]["accuracy"], by_role[role]["ci95"])
            if role in by_role
            else ""
            for role in roles
        ]
        rows.append((name, *cells))
        reported = paper.turns.get(name) if paper else None
        if reported:
            rows.append((f"{name}, paper", *[amount(reported.get(role), ".2f") for role in roles]))
    if rows:
        yield Table("Accuracy after each role, %", ("system", *roles), tuple(rows))


def _transitions(content: Mapping[str, Any], paper: PaperResults | None) -> Iterator[Table]:
    rows = []
    for name, changed in content.get("transitions", {}).items():
        gain = 100 * (changed["wrong_to_right"] - changed["right_to_wrong"])
        reported = paper.transitions.get(name) if paper else None
        rows.append(
            (
                name.replace("->", "→"),
                with_interval(changed["wrong_to_right"], changed["wrong_to_right_ci95"]),
                with_interval(changed["right_to_wrong"], changed["right_to_wrong_ci95"]),
                signed(gain),
                *[amount(figure, ".2f") for figure in reported or (None, None)],
            )
        )
    if rows:
        yield Table(
            "Answers that changed, % of all questions",
            (
                "from → to",
                "wrong → right",
                "right → wrong",
                "net",
                "paper: wrong → right",
                "paper: right → wrong",
            ),
            tuple(rows),
        )


def _pass_at_k(content: Mapping[str, Any]) -> Iterator[Table]:
    by_system = content.get("pass_at_k", {})
    passes = sorted({int(k) for shares in by_system.values() for k in shares})
    if len(passes) > _MOST_PASSES:
        passes = [k for k in passes if k & (k - 1) == 0 or k == passes[-1]]
    rows = [
        (name, *[amount(shares.get(str(k)), ".1f", 100) for k in passes])
        for name, shares in by_system.items()
    ]
    if rows:
        yield Table("At least one of k passes right, %", ("system", *map(str, passes)), tuple(rows))


def _groups(content: Mapping[str, Any]) -> Iterator[Table]:
    for field, values in content.get("groups", {}).items():
        shown = systems_in_groups(values)
        rows = [
            (
                value,
                f"{max(entry['questions'] for entry in systems.values()):,}",
                *[
                    with_interval(systems[name]["accuracy"], systems[name]["ci95"])
                    if name in systems
                    else ""
                    for name in shown
                ],
            )
            for value, systems in values.items()
        ]
        yield Table(f"Accuracy by {field}, %", (field, "questions", *shown), tuple(rows))


def systems_in_groups(values: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The systems that are shown group by group; results.json has all.

    values: of a field in `groups`, value -> system -> accuracy.
    """
    names = list(dict.fromkeys(name for systems in values.values() for name in systems))
    return [name for name in _IN_GROUPS if name in names] or names[: len(_IN_GROUPS)]


def _values(content: Mapping[str, Any]) -> Iterator[Table]:
    rows = [
        (
            role,
            f"{entry['nodes']:,}",
            f"{entry['leaves']}",
            f"{100 * entry['label_doubt']:.1f}",
            amount(entry["standard_error"], ".3f"),
            f"{entry['paper_epsilon']:.2f}",
        )
        for role, entry in content.get("values", {}).items()
    ]
    if rows:
        yield Table(
            "How sure the values of the training trees are",
            ("role", "nodes", "leaves", "doubtful labels %", "standard error", "paper's bound"),
            tuple(rows),
        )


def _without_empty_columns(table: Table) -> Table:
    kept = [i for i in range(len(table.headings)) if any(row[i] for row in table.rows)]
    return Table(
        table.title,
        tuple(table.headings[i] for i in kept),
        tuple(tuple(row[i] for i in kept) for row in table.rows),
        table.notes,
    )


def one_line(text: str) -> str:
    """Text of any origin without line breaks, runs of blanks and control characters."""
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())


def with_interval(share: float, bounds: Sequence[float]) -> str:
    """A share and its interval, in percent."""
    low, high = bounds
    return f"{100 * share:.1f} [{100 * low:.1f}, {100 * high:.1f}]"


def difference(compared: Mapping[str, Any]) -> str:
    """The difference of a comparison with its interval, in points; nothing for no comparison."""
    if not compared:
        return ""
    low, high = (signed(100 * bound) for bound in compared["ci95"])
    return f"{signed(100 * compared['difference'])} [{low}, {high}]"


def signed(points: float) -> str:
    """A number with its sign, one decimal and a true minus."""
    return f"{points:+.1f}".replace("-", "−")


def p_value(p: float | None) -> str:
    """A probability with two digits that count."""
    if p is None:
        return ""
    return "<0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}"


def amount(value: float | None, form: str, factor: float = 1) -> str:
    """A number in a format; nothing for None."""
    return "" if value is None else format(factor * value, form)


def published(score: Score | None) -> str:
    """A figure of the paper, in percent."""
    if score is None:
        return ""
    if score.deviation is None:
        return f"{score.accuracy:.2f}"
    return f"{score.accuracy:.2f} ± {score.deviation:.2f}"
