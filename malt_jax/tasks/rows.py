"""Tasks whose questions are rows of a data set."""

from __future__ import annotations

import logging
import re
import textwrap
import unicodedata
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from malt_jax import grading
from malt_jax.config import TaskConfig
from malt_jax.errors import UserError
from malt_jax.tasks import sources
from malt_jax.tasks.base import Question, Split, Task

logger = logging.getLogger(__name__)

_INVISIBLE = re.compile(r"\\[,;:! ]|[\s$]")
"""White space, LaTeX's spaces and dollar signs: they change no question."""


@dataclass(frozen=True)
class Row:
    """The fields of one row, and its place ("FILE:LINE") for error messages."""

    place: str
    fields: Mapping[str, Any]

    def text(self, field: str) -> str:
        """The text in a field. Raises UserError when it is empty or no text."""
        value = self.value(field)
        if not isinstance(value, str) or not value.strip():
            raise self.error(field, f"must be text, got {value!r:.80}")
        return value

    def number_or_text(self, field: str) -> str:
        """The text or the number in a field, as text. Raises UserError for anything else."""
        value = self.value(field)
        if isinstance(value, bool) or not isinstance(value, (str, int, float)) or value == "":
            raise self.error(field, f"must be text or a number, got {value!r:.80}")
        return str(value)

    def value(self, field: str) -> Any:
        """The value of a field. Raises UserError when the row has no such field."""
        if field not in self.fields:
            raise self.error(field, f"is missing; the row has {', '.join(self.fields) or 'none'}")
        return self.fields[field]

    def answer(self, field: str, kind: grading.Kind, answer: str) -> str:
        """The canonical form of a reference answer. Raises UserError when it has none."""
        canonical = grading.normalize(kind, answer)
        if canonical is None:
            raise self.error(field, f"must hold an answer of kind {kind!r}, got {answer!r:.80}")
        return canonical

    def error(self, field: str, problem: str) -> UserError:
        return UserError(f"{self.place}: field {field!r} {problem}")


@dataclass(frozen=True)
class Published:
    """A split as it is published: the number of its questions, and its sources."""

    questions: int
    sources: tuple[str, ...]

    @property
    def split(self) -> str:
        """Its name on the hub and in a saved copy."""
        return self.sources[0].rpartition(":")[2]


class RowsTask(Task):
    """A task that reads the rows of its configuration's sources, or else the published ones.

    Attributes:
        train, test: the published splits; None when there are only the user's own.
    """

    train: Published | None = None
    test: Published | None = None

    def __init__(self, config: TaskConfig | None = None) -> None:
        self.config = config or TaskConfig()
        self._questions: dict[Split, Sequence[Question]] = {}

    @abstractmethod
    def question(self, index: int, row: Row) -> Question:
        """The question in a row. Raises UserError, from `row.error`, for a bad row."""

    def questions(self, split: Split) -> Sequence[Question]:
        if split not in self._questions:
            questions = self.all_questions(split)
            if split == "train" and self.config.drop_duplicates and self._sources("test"):
                questions = self._without_duplicates(questions)
            self._questions[split] = questions
        return self._questions[split]

    def all_questions(self, split: Split) -> list[Question]:
        """The questions of a split, with the training questions that the test asks too.

        Raises UserError as `questions` does.
        """
        named = self._sources(split)
        if not named:
            raise UserError(
                f"the task {self.name!r} has no {split} questions of its own; name a file (JSON"
                f" Lines or Parquet) with task.{split}=FILE"
            )
        published: Published | None = getattr(self, split)
        rows = sources.read(named, f"task.{split}", published.split if published else split)
        questions = [self._checked(index, Row(*row)) for index, row in enumerate(rows)]
        if not questions:
            raise UserError(f"{named[0]}: no questions; task.{split} needs some")
        if published and named == published.sources and len(questions) != published.questions:
            raise UserError(
                f"{', '.join(named)}: {len(questions)} rows, but {self.name} has"
                f" {published.questions} {split} questions; remove the cached copy, or name a file"
                f" with task.{split}=FILE"
            )
        return questions

    def _sources(self, split: Split) -> tuple[str, ...]:
        own: str | None = getattr(self.config, split)
        published: Published | None = getattr(self, split)
        if own is not None:
            return (own,)
        return published.sources if published else ()

    def _checked(self, index: int, row: Row) -> Question:
        """The question in a row. Raises UserError if its text cannot be written as UTF-8."""
        question = self.question(index, row)
        for text in (question.text, question.answer, *question.metadata.values()):
            try:
                text.encode()
            except UnicodeEncodeError as error:
                near = text[max(0, error.start - 20) : error.end + 20]
                raise UserError(
                    f"{row.place}: a lone surrogate, {text[error.start]!r}, in {near!r}: it is"
                    " half a character; correct the row or leave it out"
                ) from error
        return question

    def _without_duplicates(self, questions: list[Question]) -> list[Question]:
        found = duplicates(questions, self.questions("test"))
        if found:
            listed = ", ".join(f"{id} as test question {other}" for id, other in found.items())
            logger.info(
                f"{self.name}: left out {len(found)} of {len(questions)} training questions, as"
                f" the test asks them too: {textwrap.shorten(listed, 150, placeholder=' ...')}"
            )
        left = [question for question in questions if question.id not in found]
        if not left:
            raise UserError(
                f"the test asks all {len(questions)} training questions of {self.name}; give other"
                " ones with task.train, or keep them with task.drop_duplicates=false"
            )
        return left


def duplicates(train: Sequence[Question], test: Sequence[Question]) -> dict[int, int]:
    """Ids of training questions that the test asks too, each with the id of the test question."""
    asked = {normalized(question.text): question.id for question in test}
    found = ((question.id, asked.get(normalized(question.text))) for question in train)
    return {id: other for id, other in found if other is not None}


def normalized(text: str) -> str:
    """A question's text for comparison with others.

    Compatibility forms of characters become one (NFKC), and so do upper and lower case. White
    space, dollar signs and punctuation at the end are left out.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    return _INVISIBLE.sub("", text).rstrip(".?!:")
