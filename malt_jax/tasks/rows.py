"""Tasks whose questions are rows of a file or of a data set on the Hugging Face hub."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from malt_jax import grading
from malt_jax.errors import UserError
from malt_jax.tasks.base import Question, Split, Task


@dataclass(frozen=True)
class Row:
    """One row's fields and the place to name when something is wrong with them."""

    place: str
    fields: Mapping[str, Any]

    def text(self, field: str) -> str:
        """The text in a field. Raises UserError when there is none."""
        value = self.value(field)
        if not isinstance(value, str) or not value.strip():
            raise self.error(field, f"must be text, got {_shorten(value)}")
        return value

    def value(self, field: str) -> Any:
        if field not in self.fields:
            raise self.error(field, f"is missing; the row has {', '.join(self.fields) or 'none'}")
        return self.fields[field]

    def answer(self, field: str, kind: grading.Kind, answer: str) -> str:
        """The canonical form of a right answer. Raises UserError when it has none."""
        canonical = grading.normalize(kind, answer)
        if canonical is None:
            raise self.error(field, f"must hold an answer of kind {kind!r}, got {_shorten(answer)}")
        return canonical

    def error(self, field: str, problem: str) -> UserError:
        return UserError(f"{self.place}: field {field!r} {problem}")


@dataclass(frozen=True)
class HubSplit:
    """Where a split is on the Hugging Face hub."""

    dataset: str
    split: str
    config: str | None = None


class RowsTask(Task):
    """A task that reads rows, from JSON lines (UTF-8, one object a line) or from the hub.

    Attributes:
        hub: where the splits are when no file is named; several parts are read one after another.
    """

    hub: ClassVar[Mapping[Split, Sequence[HubSplit]]] = {}

    def __init__(self, train: str | None = None, test: str | None = None) -> None:
        self._paths: dict[Split, str | None] = {"train": train, "test": test}
        self._questions: dict[Split, list[Question]] = {}

    @abstractmethod
    def question(self, index: int, row: Row) -> Question:
        """The question that a row holds. Raises UserError, by `row.error`, for a bad row."""

    def questions(self, split: Split) -> Sequence[Question]:
        if split not in self._questions:
            path = self._paths[split]
            rows = _read_jsonl(path, split) if path else self._read_hub(split)
            questions = [self.question(index, row) for index, row in enumerate(rows)]
            if not questions:
                raise UserError(f"{path or self.name}: no questions; task.{split} needs some")
            self._questions[split] = questions
        return self._questions[split]

    def _read_hub(self, split: Split) -> Iterator[Row]:
        if split not in self.hub:
            raise UserError(
                f"the task {self.name!r} has no {split} questions of its own; name a file of JSON"
                f" lines with task.{split}=FILE.jsonl"
            )
        for part in self.hub[split]:
            yield from _read_hub(part, split)


def _read_jsonl(path: str, split: Split) -> Iterator[Row]:
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); put the {split} questions there as JSON"
            f" lines, or name another file with task.{split}=FILE.jsonl"
        ) from error
    for number, line in enumerate(content.split(b"\n"), start=1):
        place = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            fields = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise UserError(f"{place}: not UTF-8 text: {error}") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: not valid JSON: {error}") from error
        if not isinstance(fields, dict):
            raise UserError(f"{place}: expected a JSON object, got {_shorten(fields)}")
        yield Row(place, fields)


def _read_hub(part: HubSplit, split: Split) -> Iterator[Row]:
    name = part.dataset if part.config is None else f"{part.dataset} ({part.config})"
    hint = f"put its rows into a file of JSON lines and name it with task.{split}=FILE.jsonl"
    try:
        import datasets
    except ImportError as error:
        raise UserError(
            f"{name} is read with the package `datasets`, which is not installed; install it, or"
            f" {hint}"
        ) from error
    try:
        rows = datasets.load_dataset(part.dataset, part.config, split=part.split)
    except Exception as error:  # the hub's client raises errors of many libraries
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{name}, split {part.split}, cannot be had: {reason}; {hint}") from error
    for number, fields in enumerate(rows):
        yield Row(f"{name}, {part.split} row {number}", fields)


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
