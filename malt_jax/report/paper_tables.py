"""The tables of the MALT paper for a results.json with the field `paper`, in Markdown and LaTeX."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from malt_jax.report.paper import SOURCE, PaperResults, paper_columns
from malt_jax.report.table import (
    Listing,
    Table,
    accuracy,
    difference,
    formatted,
    latex_document,
    markdown_document,
    one_line,
    p_value,
    signed,
    with_interval,
)
from malt_jax.report.tables import BRACKETS, HOLM, SUBSETS, headline, of_subsets

Columns = Sequence[tuple[str, PaperResults]]
"""Headings of the paper's columns, with the figures in them."""

_ABLATION = re.compile(r"malt-(untrained|without|until)-")
_UNKNOWN = "not known"
_PAPER_PAIRS = "The paper reports about 2,000 to 6,000 pairs a role and benchmark."


def paper_markdown(content: Mapping[str, Any], plots: Sequence[str] = ()) -> str:
    """The paper's tables as a document in GitHub's Markdown.

    plots: names of PNG files in plots/, which the document shows.
    """
    text = markdown_document(_title(content), paper_parts(content), BRACKETS)
    shown = [f"![{name}](plots/{name}.png)" for name in plots]
    return "\n\n".join([text.rstrip("\n"), *(["## Figures", *shown] if shown else [])]) + "\n"


def paper_latex(content: Mapping[str, Any]) -> str:
    r"""The paper's tables as a fragment for LaTeX's \input; it needs the package booktabs."""
    return latex_document(_title(content), paper_parts(content), BRACKETS)


def _title(content: Mapping[str, Any]) -> str:
    return f"The tables of the MALT paper: {headline(content)}"


def paper_parts(content: Mapping[str, Any]) -> list[Table | Listing]:
    """All tables and lists that there is something to say in."""
    columns, paper = paper_columns(content), content["paper"]
    tables = [
        _main(content, columns),
        _gains(content, columns),
        _equal_calls(content),
        _ablations(content, columns),
        _turns(content, columns),
        _transitions(content, columns),
        _self_correction(paper["self_correction"]),
        _votes(paper["votes"]),
        _by_calls(paper["votes"]),
        *(_transfer(content, entry) for entry in paper["transfer"]),
        _training_data(content),
    ]
    lists = [
        Listing("Weak points of the paper's evaluation, and this one", tuple(_weak_points(content)))
    ]
    if paper["missing"]:
        lists.append(Listing("Not made", tuple(map(one_line, paper["missing"]))))
    return [*(table for table in tables if table.rows), *lists]


def _best(content: Mapping[str, Any]) -> str:
    """The system that the others are compared with."""
    return "malt+mv" if "malt+mv" in content["systems"] else "ma+mv"


def _figures(columns: Columns, system: str) -> list[str]:
    return [results.systems.get(system, "") for _, results in columns]


def _paper_notes(columns: Columns) -> list[str]:
    """The origin of the paper's columns."""
    if not columns:
        return ["The paper has no figures for this task."]
    notes = [f"paper: {SOURCE}, {SUBSETS.format(subsets=4, size=100)}."]
    if [heading for heading, _ in columns] != ["paper"]:
        notes.append("Its figures are of other models than this one.")
    notes += [f"Also there: {results.others}." for _, results in columns if results.others]
    return notes


def _main(content: Mapping[str, Any], columns: Columns) -> Table:
    rows = [
        (
            name,
            accuracy(system),
            of_subsets(system.get("paper_protocol")),
            f"{system['calls']:g}",
            formatted(system.get("prompt_tokens"), ",.0f") or _UNKNOWN,
            formatted(system["tokens"], ",.0f"),
            formatted(system.get("seconds"), ".3g") or _UNKNOWN,
            *_figures(columns, name),
        )
        for name, system in content["systems"].items()
        if not _ABLATION.match(name)
    ]
    costs = ("calls", "prompt tokens", "sampled tokens", "seconds")
    headings = ("system", "accuracy %", "subsets", *costs, *(heading for heading, _ in columns))
    notes = [
        "Costs are means for one answer. Prompt tokens that several calls share count once a call."
        " seconds: of sampling in batches, by the median batch of each role (with compilation where"
        " a role has one or two); not the time that a single question waits. The device that"
        " sampled is not recorded."
    ]
    if protocol := next(iter(content["systems"].values())).get("paper_protocol"):
        notes.append(f"subsets: {SUBSETS.format_map(protocol)}.")
    return Table.of("Main table", headings, rows, *notes, *_paper_notes(columns))


def _gains(content: Mapping[str, Any], columns: Columns) -> Table:
    """The gain over the single model, as the paper counts it, and against more and more votes."""
    best, systems = _best(content), content["systems"]
    rows = []
    for single in (name for name in systems if name.partition("+")[0] == "sa"):
        rows.append(
            (
                f"{best} against {single}",
                f"{systems[best]['calls']:g} : {systems[single]['calls']:g}",
                difference(_comparison(content, best, single)),
                _relative(systems[best]["accuracy"], systems[single]["accuracy"]),
                *(
                    _relative(*(_leading(results.systems.get(name)) for name in (best, single)))
                    for _, results in columns
                ),
            )
        )
    headings = ("systems", "calls", "ahead by", "relative gain %")
    paper = (f"{heading}, relative gain %" for heading, _ in columns)
    return Table.of("Gain over the single model", (*headings, *paper), rows)


def _comparison(content: Mapping[str, Any], first: str, second: str) -> Mapping[str, Any] | None:
    sides = f"{first} - {second}"
    return content["comparisons"].get(sides) or content["paper"]["equal_calls"].get(sides)


def _leading(figure: str | None) -> float | None:
    """The mean of a figure such as "90.50 ± 2.06"."""
    return float(figure.split()[0]) if figure else None


def _relative(value: float | None, base: float | None) -> str:
    if value is None or not base:
        return ""
    return signed(value / base - 1)


def _equal_calls(content: Mapping[str, Any]) -> Table:
    rows = []
    for sides, entry in content["paper"]["equal_calls"].items():
        first, second = (content["systems"][name] for name in sides.split(" - "))
        tokens = (f"{system['tokens']:,.0f}" for system in (first, second))
        row = (sides.replace(" - ", " against "), f"{first['calls']:g}", difference(entry))
        rows.append((*row, p_value(entry), " : ".join(tokens)))
    headings = ("systems", "calls", "ahead by", "p", "sampled tokens")
    return Table.of("Methods at equal calls", headings, rows, HOLM)


def _ablations(content: Mapping[str, Any], columns: Columns) -> Table:
    systems = content["systems"]
    parts = [name for name in systems if _ABLATION.match(name)]
    rows = [
        (
            name,
            f"{systems[name]['calls']:g}",
            accuracy(systems[name]),
            difference(content["comparisons"].get(f"malt+mv - {name}")),
            p_value(content["comparisons"].get(f"malt+mv - {name}")),
            *_figures(columns, name),
        )
        for name in (["malt+mv", *parts] if parts else [])
    ]
    paper = (heading for heading, _ in columns)
    headings = ("system", "calls", "accuracy %", "malt+mv ahead by", "p", *paper)
    note = "p: exact McNemar test, with Holm's correction for all comparisons of malt+mv."
    return Table.of("Roles untrained or left out", headings, rows, note)


def _turns(content: Mapping[str, Any], columns: Columns) -> Table:
    turns = content.get("turns", {})
    roles = list(dict.fromkeys(role for by_role in turns.values() for role in by_role))
    rows = []
    for name, by_role in turns.items():
        rows.append((name, *[accuracy(by_role.get(role)) for role in roles]))
        for heading, results in columns:
            if figures := results.turns.get(name):
                rows.append((f"{name}: {heading}", *[figures.get(role, "") for role in roles]))
    return Table.of("Accuracy after each role, %", ("system", *roles), rows)


def _transitions(content: Mapping[str, Any], columns: Columns) -> Table:
    changes = ("wrong to correct", "correct to wrong")
    rows = [
        (
            name.replace(" -> ", " to "),
            with_interval(entry["wrong_to_right"], entry["wrong_to_right_ci95"]),
            with_interval(entry["right_to_wrong"], entry["right_to_wrong_ci95"]),
            *(figure for _, r in columns for figure in r.transitions.get(name, ("", ""))),
        )
        for name, entry in content.get("transitions", {}).items()
    ]
    paper = (f"{heading}: {change}" for heading, _ in columns for change in changes)
    title = "Self-correction, % of all questions"
    return Table.of(title, ("from, to", *changes, *paper), rows)


def _self_correction(by_system: Mapping[str, Mapping[str, Any]]) -> Table:
    rows = []
    for name, by_role in by_system.items():
        for role, entry in by_role.items():
            before = entry["accuracy_before"]
            mended, broken = entry["wrong_to_right"], entry["right_to_wrong"]
            low, high = map(signed, entry["net_ci95"])
            rows.append(
                (
                    f"{name}: {role}",
                    f"{100 * before:.1f}",
                    with_interval(mended, entry["wrong_to_right_ci95"]),
                    f"{100 * mended / (1 - before):.1f}" if before < 1 else _UNKNOWN,
                    with_interval(broken, entry["right_to_wrong_ci95"]),
                    f"{100 * broken / before:.1f}" if before > 0 else _UNKNOWN,
                    f"{signed(entry['net'])} [{low}, {high}]",
                )
            )
    headings = ("role", "correct before", "mended", "of wrong", "broken", "of correct", "net")
    return Table.of(
        "Answers that each role mends and breaks, %",
        headings,
        rows,
        "ma: before training; star-ma: after SFT; malt: after the last training stage. mended,"
        " broken: of all answers.",
    )


def _votes(by_system: Mapping[str, Mapping[str, Any]]) -> Table:
    counts = sorted({int(count) for entries in by_system.values() for count in entries})
    rows = [
        (str(count), *(accuracy(entries.get(str(count))) for entries in by_system.values()))
        for count in counts
    ]
    title = "Accuracy by the number of votes, %"
    return Table.of(title, ("votes", *by_system), rows, "1: without a vote.")


def _by_calls(by_system: Mapping[str, Mapping[str, Any]]) -> Table:
    """The same accuracies by the calls of the model, where two systems or more have them."""
    by_calls: dict[float, dict[str, Any]] = {}
    for name, entries in by_system.items():
        for entry in entries.values():
            by_calls.setdefault(entry["calls"], {})[name] = entry
    rows = [
        (f"{calls:g}", *(accuracy(by_calls[calls].get(name)) for name in by_system))
        for calls in sorted(by_calls)
        if len(by_calls[calls]) > 1
    ]
    return Table.of("Votes at equal calls: accuracy, %", ("calls", *by_system), rows)


def _transfer(content: Mapping[str, Any], entry: Mapping[str, Any]) -> Table:
    best = "malt+mv" if "malt+mv" in entry["systems"] else None
    trained = content.get("trained_on", content["task"]) if best else None
    of_task = {
        "model": content["model"],
        "task": entry["task"],
        "config": {"task": {"options": entry["options"]}},
        **({"trained_on": trained} if trained else {}),
    }
    columns, systems = paper_columns(of_task), entry["systems"]
    sides = {name: f"{best} - {name}" if best else f"{name} - sa" for name in systems}
    rows = [
        (
            name,
            f"{system['calls']:g}",
            accuracy(system),
            difference(entry["comparisons"].get(sides[name])),
            p_value(entry["comparisons"].get(sides[name])),
            *_figures(columns, name),
        )
        for name, system in systems.items()
    ]
    ahead = f"{best} ahead by" if best else "ahead of sa by"
    headings = ("system", "calls", "accuracy %", ahead, "p", *(heading for heading, _ in columns))
    note = f"{_asked(entry['questions'])}."
    note += f" The roles were trained on {trained}." if trained else " No role was trained."
    return Table.of(
        f"Transfer to {transfer_name(entry)}", headings, rows, note, HOLM, *_paper_notes(columns)
    )


def transfer_name(entry: Mapping[str, Any]) -> str:
    """The task of an entry of `transfer`, with its options and its file's name."""
    details = [f"{name} {value}" for name, value in entry["options"].items()]
    if entry["source"]:
        details.append(entry["source"].rpartition("/")[2])
    return one_line(f"{entry['task']} ({', '.join(details)})" if details else entry["task"])


def _training_data(content: Mapping[str, Any]) -> Table:
    rows = [
        (f"round {number}: {role}", f"{counts['rows']:,}", f"{counts['pairs']:,}")
        for number, roles in enumerate(content.get("rounds", ()))
        for role, counts in roles.items()
    ]
    return Table.of("Training data", ("role", "SFT rows", "pairs"), rows, _PAPER_PAIRS)


def _asked(questions: Mapping[str, Any]) -> str:
    asked, available, split = (questions[field] for field in ("asked", "available", "split"))
    every = "all " if asked == available else ""
    text = f"{every}{asked:,} of the source's {available:,} {split} questions were asked"
    published = questions["published"]
    if published is not None and published != available:
        text += f"; the published {split} set has {published:,}"
    return text


def _weak_points(content: Mapping[str, Any]) -> Iterator[str]:
    """What the paper's evaluation leaves open, and what stands here instead."""
    paper, systems, best = content["paper"], content["systems"], _best(content)
    measured = systems[best]
    share, questions = measured["accuracy"], measured["questions"]
    error = 100 * math.sqrt(share * (1 - share) / questions)
    seeds = "1 seed" if measured["seeds"] == 1 else f"{measured['seeds']} seeds"
    yield (
        f"Subsets of 100 questions. Here {_asked(paper['questions'])}, with {seeds}; the binomial"
        f" standard error of {best} is {error:.1f} points."
    )
    rivals = [sides for sides in paper["equal_calls"] if sides.startswith(f"{best} - sa+mv")]
    for sides in rivals:
        single = sides.split(" - ")[1]
        yield (
            f"MALT makes more calls than its baselines. Here {single} makes as many as {best},"
            f" {measured['calls']:g}: {best} is ahead by"
            f" {difference(paper['equal_calls'][sides])} points."
        )
    yield (
        "A standard deviation over subsets is no interval. Here every accuracy and difference has"
        " a 95 % bootstrap interval over the questions."
    )
    yield (
        "No tests. Here differences are paired by question, with exact McNemar tests of the"
        " first seed's answers and Holm's correction."
    )
    yield "Costs are not given. Here every system has its calls, tokens and seconds."
    yield "No figure of accuracy by votes. It is here, also at equal calls."
    if best == "malt+mv":
        yield _settings(content["config"])


def _settings(config: Mapping[str, Any]) -> str:
    """The settings that a single run cannot vary."""
    sections = (("credit", "threshold"), ("dpo", "beta"), ("sampling", "temperature"))
    settings = [f"{field} {config.get(section, {}).get(field)}" for section, field in sections]
    roles = config.get("pipeline", {}).get("roles", ())
    branching = "-".join(str(role["branching"]) for role in roles)
    return (
        "No ablation of branching, threshold, beta, temperature and rounds. Not answered here: one"
        f" run has one value of each (branching {branching}, {', '.join(settings)}, rounds"
        f" {config['rounds']}) and one seed. The intervals do not hold the variation between"
        " trainings: repeat the run with other seeds and settings."
    )
