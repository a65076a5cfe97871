"""A user's own questions."""

from __future__ import annotations

from typing import Literal

from malt_jax.errors import UserError
from malt_jax.tasks.base import Question
from malt_jax.tasks.commonsense_qa import with_choices
from malt_jax.tasks.row import Row
from malt_jax.tasks.rows import Data, RowsTask

MAX_CHOICES = 10


class JsonlTask(RowsTask):
    """Rows with a question, its answer, and choices where there are any.

    question_field, answer_field: the fields' names; an answer is text or a number.
    choices_field: a list of texts, which are labelled A, B, C, ... below the question; the answer
        is then the letter or the text of one of them. Only with kind "letter".
    kind: how answers are written and compared, see `malt_jax.grading`.
    """

    name = "jsonl"

    def __init__(
        self,
        data: Data | None = None,
        question_field: str = "question",
        answer_field: str = "answer",
        choices_field: str | None = None,
        kind: Literal["number", "boxed", "letter", "text"] = "number",
    ) -> None:
        super().__init__(data)
        if choices_field is not None and kind != "letter":
            raise UserError(
                f'task.options.kind: choices are answered with "letter", not with {kind!r}'
            )
        self.kind = kind
        self.question_field = question_field
        self.answer_field = answer_field
        self.choices_field = choices_field

    def question(self, index: int, row: Row) -> Question:
        text = row.text(self.question_field).strip()
        answer = row.number_or_text(self.answer_field)
        if self.choices_field is not None:
            choices = self._choices(row, self.choices_field)
            text = with_choices(text, choices)
            if answer in choices:
                answer = chr(ord("A") + choices.index(answer))
        answer = row.answer(self.answer_field, self.kind, answer)
        if self.choices_field is not None and ord(answer) - ord("A") >= len(choices):
            raise row.error(self.answer_field, f"is {answer}, but there are {len(choices)} choices")
        return Question(id=index, text=text, answer=answer)

    def _choices(self, row: Row, field: str) -> list[str]:
        choices = row.value(field)
        if (
            not isinstance(choices, list)
            or not 2 <= len(choices) <= MAX_CHOICES
            or not all(isinstance(choice, str) for choice in choices)
        ):
            raise row.error(field, f"must be a list of 2 to {MAX_CHOICES} texts")
        return choices
