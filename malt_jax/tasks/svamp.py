"""SVAMP: one-step word problems made to mislead (Patel et al. 2021, arXiv 2103.07191)."""

from __future__ import annotations

from pathlib import Path

from malt_jax.tasks.base import PROMPTS, Question
from malt_jax.tasks.row import Row
from malt_jax.tasks.rows import Published, RowsTask


class SvampTask(RowsTask):
    """Rows with `Body`, `Question` and `Answer`, a number; `Type` names the operation."""

    name = "svamp"
    kind = "number"
    train = Published(700, "hub:ChilleD/SVAMP:train")
    test = Published(300, "hub:ChilleD/SVAMP:test")

    def question(self, index: int, row: Row) -> Question:
        return Question(
            id=index,
            text=f"{row.text('Body').strip()} {row.text('Question').strip()}",
            answer=row.answer("Answer", self.kind, row.number_or_text("Answer")),
            metadata={"operation": str(row.fields.get("Type", ""))},
        )

    @property
    def prompts(self) -> Path:
        return PROMPTS / "gsm8k"
