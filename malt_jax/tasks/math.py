"""MATH: competition problems (Hendrycks et al. 2021, arXiv 2103.03874)."""

from __future__ import annotations

from typing import ClassVar

from malt_jax import grading
from malt_jax.tasks.base import Question
from malt_jax.tasks.rows import HubSplit, Row, RowsTask

SUBJECTS = (
    "algebra",
    "counting_and_probability",
    "geometry",
    "intermediate_algebra",
    "number_theory",
    "prealgebra",
    "precalculus",
)
DATASET = "EleutherAI/hendrycks_math"


class MathTask(RowsTask):
    """Rows with `problem`, `level`, `type` and `solution`, whose last \\boxed is the answer.

    Two training solutions end in an empty \\boxed{}: their answer is "", which no reply equals.
    """

    name = "math"
    kind = "boxed"
    hub: ClassVar = {
        "train": [HubSplit(DATASET, "train", subject) for subject in SUBJECTS],
        "test": [HubSplit(DATASET, "test", subject) for subject in SUBJECTS],
    }

    def question(self, index: int, row: Row) -> Question:
        solution = row.text("solution")
        answer = grading.last_boxed(solution)
        if answer is None:
            raise row.error("solution", "must hold the answer in \\boxed{}")
        return Question(
            id=index,
            text=row.text("problem").strip(),
            answer=row.answer("solution", self.kind, answer) if answer else "",
            metadata={
                "level": row.text("level"),
                "subject": row.text("type"),
                "solution": solution,
            },
        )
