"""Tasks of rows: the public data sets, and a user's own rows."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeGuard

from malt_jax import grading
from malt_jax.config import TaskConfig
from malt_jax.errors import UserError
from malt_jax.tasks.base import PROMPTS, Question
from malt_jax.tasks.rows import Published, Row, RowsTask

MATH_SUBJECTS = (
    *("algebra", "counting_and_probability", "geometry", "intermediate_algebra"),
    *("number_theory", "prealgebra", "precalculus"),
)
"""Each is a configuration of the data set on the hub."""
MATH = "hub:EleutherAI/hendrycks_math"
GSM_SYMBOLIC_SIZES = {"main": 5000, "p1": 5000, "p2": 2500}
LABELS = ["A", "B", "C", "D", "E"]
MAX_CHOICES = 10


class Gsm8kTask(RowsTask):
    """GSM8K: grade-school word problems (Cobbe et al. 2021, arXiv 2110.14168).

    Rows have `question` and `answer`, a worked solution that ends with "#### NUMBER".
    """

    name = "gsm8k"
    kind = "number"
    train = Published(7473, ("hub:openai/gsm8k/main:train",))
    test = Published(1319, ("hub:openai/gsm8k/main:test",))
    prompts = PROMPTS / "gsm8k"  # GSM-Symbolic's too

    def question(self, index: int, row: Row) -> Question:
        solution, mark, answer = row.text("answer").rpartition("####")
        if not mark:
            raise row.error("answer", 'must end with "#### NUMBER"')
        return Question(
            id=index,
            text=row.text("question").strip(),
            answer=row.answer("answer", self.kind, answer),
            metadata={"solution": solution.strip()},
        )


class GsmSymbolicTask(Gsm8kTask):
    """GSM-Symbolic: GSM8K test questions with other names and numbers (arXiv 2410.05229).

    Rows are those of GSM8K; p1 and p2 add one and two clauses to the questions. It is a test only:
    the training questions are GSM8K's. A test question's `template` is the id of the GSM8K question
    that it was made from; 50 questions share one.
    """

    name = "gsm_symbolic"

    def __init__(
        self, config: TaskConfig | None = None, variant: Literal["main", "p1", "p2"] = "main"
    ) -> None:
        super().__init__(config)
        source = f"hub:apple/GSM-Symbolic/{variant}:test"
        self.test = Published(GSM_SYMBOLIC_SIZES[variant], (source,))

    def question(self, index: int, row: Row) -> Question:
        question = super().question(index, row)
        if "original_id" not in row.fields:
            return question
        template = {"template": str(row.value("original_id"))}
        return dataclasses.replace(question, metadata={**question.metadata, **template})


class SvampTask(RowsTask):
    """SVAMP: one-step word problems made to mislead (Patel et al. 2021, arXiv 2103.07191).

    Rows have `Body`, `Question` and `Answer`, a number; `Type` names the operation.
    """

    name = "svamp"
    kind = "number"
    train = Published(700, ("hub:ChilleD/SVAMP:train",))
    test = Published(300, ("hub:ChilleD/SVAMP:test",))
    prompts = PROMPTS / "gsm8k"

    def question(self, index: int, row: Row) -> Question:
        return Question(
            id=index,
            text=f"{row.text('Body').strip()} {row.text('Question').strip()}",
            answer=row.answer("Answer", self.kind, row.number_or_text("Answer")),
            metadata={"operation": str(row.fields.get("Type", ""))},
        )


class MathTask(RowsTask):
    """MATH: competition problems (Hendrycks et al. 2021, arXiv 2103.03874).

    Rows have `problem`, `level`, `type` and `solution`, whose last \\boxed is the answer.

    test_split: the 5,000 test problems, or MATH-500, the 500 of them that Lightman et al. 2023
        (arXiv 2305.20050) kept; there the type is called `subject` and the level is a number.

    Two training solutions end in an empty \\boxed{}: their answer is "", which no reply equals.
    """

    name = "math"
    kind = "boxed"
    train = Published(7500, tuple(f"{MATH}/{subject}:train" for subject in MATH_SUBJECTS))
    test = Published(5000, tuple(f"{MATH}/{subject}:test" for subject in MATH_SUBJECTS))

    def __init__(
        self, config: TaskConfig | None = None, test_split: Literal["test", "math-500"] = "test"
    ) -> None:
        super().__init__(config)
        if test_split == "math-500":
            self.test = Published(500, ("hub:HuggingFaceH4/MATH-500:test",))

    def question(self, index: int, row: Row) -> Question:
        solution = row.text("solution")
        answer = grading.all_boxed(solution)
        if answer is None:
            raise row.error("solution", "must hold the answer in \\boxed{}")
        level = row.number_or_text("level")
        return Question(
            id=index,
            text=row.text("problem").strip(),
            answer=row.answer("solution", self.kind, answer) if answer else "",
            metadata={
                "level": f"Level {level}" if level.isdecimal() else level,
                "subject": row.text("subject" if "subject" in row.fields else "type"),
                "solution": solution,
            },
        )


class CommonsenseQaTask(RowsTask):
    """CommonsenseQA: five-way multiple choice (Talmor et al. 2019, arXiv 1811.00937).

    Rows have `question`, `choices` ({"label": [...], "text": [...]}) and `answerKey`. The test
    split is the data set's validation split: its own test split has no answers.
    """

    name = "commonsense_qa"
    kind = "letter"
    train = Published(9741, ("hub:tau/commonsense_qa:train",))
    test = Published(1221, ("hub:tau/commonsense_qa:validation",))

    def question(self, index: int, row: Row) -> Question:
        choices = row.value("choices")
        texts = choices.get("text") if isinstance(choices, dict) else None
        if not _are_texts(texts, len(LABELS), len(LABELS)) or choices.get("label") != LABELS:
            raise row.error("choices", f"must hold `label` ({LABELS}) and `text`, five texts")
        answer = row.text("answerKey")
        if answer not in LABELS:
            raise row.error("answerKey", f"must be one of {', '.join(LABELS)}, got {answer!r}")
        return Question(
            id=index,
            text=_with_choices(row.text("question"), texts),
            answer=answer,
            metadata={"concept": str(row.fields.get("question_concept", ""))},
        )


class JsonlTask(RowsTask):
    """A user's own questions: rows with a question, its answer, and choices if there are any.

    question_field, answer_field: names of the fields; an answer is text or a number.
    choices_field: a list of texts, which are labelled A, B, C, ... below the question; the answer
        is then the letter or the text of one of them. Only with kind "letter".
    kind: format of the answers, see `malt_jax.grading`.
    """

    name = "jsonl"

    def __init__(
        self,
        config: TaskConfig | None = None,
        question_field: str = "question",
        answer_field: str = "answer",
        choices_field: str | None = None,
        kind: Literal["number", "boxed", "letter", "text"] = "number",
    ) -> None:
        super().__init__(config)
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
            choices = row.value(self.choices_field)
            if not _are_texts(choices, 2, MAX_CHOICES):
                raise row.error(self.choices_field, f"must be a list of 2 to {MAX_CHOICES} texts")
            text = _with_choices(text, choices)
            if answer in choices:
                answer = chr(ord("A") + choices.index(answer))
        answer = row.answer(self.answer_field, self.kind, answer)
        if self.choices_field is not None and ord(answer) - ord("A") >= len(choices):
            raise row.error(self.answer_field, f"is {answer}, but there are {len(choices)} choices")
        return Question(id=index, text=text, answer=answer)


def _are_texts(value: Any, least: int, most: int) -> TypeGuard[list[str]]:
    """Whether a value is a list of `least` to `most` texts."""
    is_list = isinstance(value, list) and least <= len(value) <= most
    return is_list and all(isinstance(text, str) for text in value)


def _with_choices(question: str, choices: list[str]) -> str:
    """A question with its labelled choices below."""
    labelled = (f"{chr(ord('A') + i)}. {choice.strip()}" for i, choice in enumerate(choices))
    return "\n".join([question.strip(), *labelled])
