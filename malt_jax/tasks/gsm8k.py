"""GSM8K: grade-school word problems (Cobbe et al. 2021, arXiv 2110.14168)."""

from __future__ import annotations

from typing import ClassVar

from malt_jax.tasks.base import Question
from malt_jax.tasks.rows import HubSplit, Row, RowsTask

ANSWER_MARK = "####"


class Gsm8kTask(RowsTask):
    """Rows with `question` and `answer`, a worked solution that ends with "#### NUMBER"."""

    name = "gsm8k"
    kind = "number"
    hub: ClassVar = {
        "train": [HubSplit("openai/gsm8k", "train", "main")],
        "test": [HubSplit("openai/gsm8k", "test", "main")],
    }

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
