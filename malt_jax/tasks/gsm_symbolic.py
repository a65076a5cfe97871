"""GSM-Symbolic: GSM8K test questions with other names and numbers (arXiv 2410.05229)."""

from __future__ import annotations

import dataclasses
from typing import Literal

from malt_jax.tasks.base import Question
from malt_jax.tasks.gsm8k import Gsm8kTask
from malt_jax.tasks.row import Row
from malt_jax.tasks.rows import Data, Published

SIZES = {"main": 5000, "p1": 5000, "p2": 2500}


class GsmSymbolicTask(Gsm8kTask):
    """Rows of GSM8K's form; p1 and p2 add one and two clauses to the questions.

    It is a test only: the training questions are GSM8K's. A test question's `template` is the id of
    the GSM8K question that it was made from; 50 questions share one.
    """

    name = "gsm_symbolic"

    def __init__(
        self, data: Data | None = None, variant: Literal["main", "p1", "p2"] = "main"
    ) -> None:
        super().__init__(data)
        self.test = Published(SIZES[variant], f"hub:apple/GSM-Symbolic/{variant}:test")

    def question(self, index: int, row: Row) -> Question:
        question = super().question(index, row)
        if "original_id" not in row.fields:
            return question
        template = {"template": str(row.value("original_id"))}
        return dataclasses.replace(question, metadata={**question.metadata, **template})
