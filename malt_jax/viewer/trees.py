"""The trees of a round as the page shows them: a summary for the list, and all nodes."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from malt_jax.errors import UserError
from malt_jax.files import names_in, read_json_lines
from malt_jax.malt.tree import read_nodes
from malt_jax.tasks.base import Question
from malt_jax.viewer.answers import Answers
from malt_jax.viewer.completions import Row, completion, rows
from malt_jax.viewer.source import Source

Path = tuple[int, ...]

SOLUTION = "solution"
"""The field of a question's metadata that is shown as a text of its own."""


class Marks(NamedTuple):
    """The nodes that became training rows, by question and path."""

    sft: set[tuple[int, Path]]
    pairs: dict[tuple[int, Path], dict[str, list[int]]]
    """Of a node: the last branches of the siblings that it was preferred to ("over"), and of those
    that were preferred to it ("under")."""
    tokens: dict[str, list[tuple[int, Path]]]
    """By stage, such as "verifier/dpo": every completion of its rows, for counting tokens."""


class ShownQuestion(NamedTuple):
    """A question's entry in the list, and the content that is read when it is opened."""

    entry: dict[str, Any]
    content: dict[str, Any]


def read_marks(source: Source, number: int) -> Marks:
    """The training rows of a round, as far as they are there."""
    marks = Marks(set(), defaultdict(lambda: {"over": [], "under": []}), defaultdict(list))
    folder = source.path / f"round-{number}" / "rows"
    for role in source.roles:
        with source.noted():
            for row in _lines(folder / role / "sft.jsonl"):
                node = _node(row)
                marks.sft.add(node)
                marks.tokens[f"{role}/sft"].append(node)
            for row in _lines(folder / role / "pairs.jsonl"):
                chosen, rejected = _node(row["chosen"]), _node(row["rejected"])
                marks.pairs[chosen]["over"].append(rejected[1][-1])
                marks.pairs[rejected]["under"].append(chosen[1][-1])
                marks.tokens[f"{role}/dpo"] += [chosen, rejected]
    return marks


def read_trees(source: Source, number: int, marks: Marks) -> Iterator[ShownQuestion]:
    """Every tree of a round, in the order in which they were sampled.

    A batch that cannot be read is left out and noted.
    """
    folder, answers = source.path / f"round-{number}" / "trees", Answers(source.task)
    for name in names_in(folder, "batch-*.parquet"):
        with source.noted():
            by_question: dict[int, list[Row]] = defaultdict(list)
            for row in rows(read_nodes(folder / name)):
                by_question[row["fields"]["question"]].append(row)
            for id, of_question in by_question.items():
                question = source.question("train", id)
                yield _shown(source, number, question, of_question, marks, answers)


def _shown(
    source: Source,
    number: int,
    question: Question,
    of_question: Sequence[Row],
    marks: Marks,
    answers: Answers,
) -> ShownQuestion:
    nodes: dict[str, dict[str, Any]] = {}
    for row in of_question:
        path = tuple(row["fields"]["path"])
        pairs = marks.pairs.get((question.id, path), {})
        answer, value = answers.extract(row["text"]), row["fields"]["value"]
        last = len(path) == len(source.roles)
        nodes[".".join(map(str, path))] = {
            "role": row["fields"]["role"],
            **completion(row, source.pieces),
            "value": round(value, 4),
            "answer": answer,
            "correct": value == 1 if last else answers.verdict(answer, question),
            "sft": (question.id, path) in marks.sft,
            "over": pairs.get("over", []),
            "under": pairs.get("under", []),
        }
    entry = {
        "round": number,
        **described(question),
        **_summary(nodes, source.thresholds),
    }
    return ShownQuestion(entry, {"nodes": nodes, "solution": question.metadata.get(SOLUTION)})


def described(question: Question) -> dict[str, Any]:
    """A question's own fields, those by which it can be grouped among them."""
    fields = question.metadata.items()
    groups = {name: value for name, value in fields if name != SOLUTION and len(value) <= 40}
    return {
        "id": question.id,
        "text": question.text,
        "reference": question.answer,
        "groups": groups,
    }


def became(before: float, after: float) -> dict[str, bool]:
    """Whether most answers were incorrect before and are correct after, and the reverse."""
    return {"gained": before <= 0.5 < after, "lost": after <= 0.5 < before}


def _summary(nodes: dict[str, dict[str, Any]], thresholds: Sequence[float]) -> dict[str, Any]:
    """thresholds: of every role; a node whose value is above it is correct."""
    roles = len(thresholds)
    by_depth: list[list[dict[str, Any]]] = [[] for _ in thresholds]
    siblings: dict[str, list[float]] = defaultdict(list)
    for path, node in nodes.items():
        by_depth[path.count(".")].append(node)
        siblings[path.rpartition(".")[0]].append(node["value"])
    leaves = [node["value"] for node in by_depth[-1]]
    first = [bool(node["correct"]) for node in by_depth[0]]
    # Leaves have the values 0 and 1 alone: their spread would hide that of all others.
    inner = [values for path, values in siblings.items() if _depth(path) < max(roles - 1, 1)]
    return {
        "value": _mean(leaves),
        "spread": _mean([max(values) - min(values) for values in inner]),
        "disputed": any(
            min(values) <= thresholds[_depth(parent)] < max(values)
            for parent, values in siblings.items()
        ),
        "unparseable": sum(node["answer"] is None for node in by_depth[-1]),
        "cut": sum(node["cut"] for node in itertools.chain(*by_depth)),
        "tokens": sum(len(node["costs"]) for node in itertools.chain(*by_depth)),
        **became(_mean(first), _mean(leaves)),
    }


def _depth(path: str) -> int:
    """The number of branches of a path."""
    return path.count(".") + 1 if path else 0


def _mean(values: Sequence[float]) -> float:
    return round(sum(values) / len(values), 4) if values else 0.0


def _lines(file: Any) -> Iterator[dict[str, Any]]:
    """The rows of a file; none if there is no such file yet."""
    if not file.exists():
        return
    try:
        for _, row in read_json_lines(file):
            yield row
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error}") from None


def _node(row: Any) -> tuple[int, Path]:
    try:
        return int(row["question"]), tuple(map(int, row["path"]))
    except (KeyError, TypeError, ValueError):
        raise UserError(f"{row!r:.80} in the rows of the training names no node") from None
