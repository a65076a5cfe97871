"""MATH: competition problems (Hendrycks et al. 2021, arXiv 2103.03874)."""

from __future__ import annotations

from typing import Literal

from malt_jax import grading
from malt_jax.tasks.base import Question
from malt_jax.tasks.row import Row
from malt_jax.tasks.rows import Data, Published, RowsTask

SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
DATASET = "hub:EleutherAI/hendrycks_math"


class MathTask(RowsTask):
    """Rows with `problem`, `level`, `type` and `solution`, whose last \\boxed is the answer.

    test_split: the 5,000 test problems, or MATH-500, the 500 of them that Lightman et al. 2023
        (arXiv 2305.20050) kept; there the type is called `subject` and the level is a number.

    Two training solutions end in an empty \\boxed{}: their answer is "", which no reply equals.
    """

    name = "math"
    kind = "boxed"
    train = Published(7500, *(f"{DATASET}/{subject}:train" for subject in SUBJECTS))
    test = Published(5000, *(f"{DATASET}/{subject}:test" for subject in SUBJECTS))

    def __init__(
        self, data: Data | None = None, test_split: Literal["test", "math-500"] = "test"
    ) -> None:
        super().__init__(data)
        if test_split == "math-500":
            self.test = Published(500, "hub:HuggingFaceH4/MATH-500:test")

    def question(self, index: int, row: Row) -> Question:
        solution = row.text("solution")
        answer = grading.last_boxed(solution)
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
