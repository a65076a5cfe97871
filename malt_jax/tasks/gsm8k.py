"""GSM8K: grade-school word problems (Cobbe et al. 2021, arXiv 2110.14168)."""

from __future__ import annotations

from pathlib import Path

from malt_jax.tasks.base import PROMPTS, Question
from malt_jax.tasks.row import Row
from malt_jax.tasks.rows import Published, RowsTask

ANSWER_MARK = "####"


class Gsm8kTask(RowsTask):
    """Rows with `question` and `answer`, a worked solution that ends with "#### NUMBER"."""

    name = "gsm8k"
    kind = "number"
    train = Published(7473, "hub:openai/gsm8k/main:train")
    test = Published(1319, "hub:openai/gsm8k/main:test")

    def question(self, index: int, row: Row) -> Question:
        solution, mark, answer = row.text("answer").rpartition(ANSWER_MARK)
        if not mark:
            raise row.error("answer", f'must end with "{ANSWER_MARK} NUMBER"')
        return Question(
            id=index,
            text=row.text("question").strip(),
            answer=row.answer("answer", self.kind, answer),
            metadata={"solution": solution.strip()},
        )

    @property
    def prompts(self) -> Path:
        return PROMPTS / "gsm8k"  # those of GSM-Symbolic too, which is GSM8K in other numbers
