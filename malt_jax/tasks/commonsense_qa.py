"""CommonsenseQA: five-way multiple choice (Talmor et al. 2019, arXiv 1811.00937)."""

from __future__ import annotations

from malt_jax.tasks.base import Question
from malt_jax.tasks.row import Row
from malt_jax.tasks.rows import Published, RowsTask

LABELS = ["A", "B", "C", "D", "E"]


class CommonsenseQaTask(RowsTask):
    """Rows with `question`, `choices` ({"label": [...], "text": [...]}) and `answerKey`.

    The test split is the data set's validation split: its own test split has no answers.
    """

    name = "commonsense_qa"
    kind = "letter"
    train = Published(9741, "hub:tau/commonsense_qa:train")
    test = Published(1221, "hub:tau/commonsense_qa:validation")

    def question(self, index: int, row: Row) -> Question:
        choices = row.value("choices")
        texts = choices.get("text") if isinstance(choices, dict) else None
        if (
            not isinstance(texts, list)
            or len(texts) != len(LABELS)
            or not all(isinstance(text, str) for text in texts)
            or choices.get("label") != LABELS
        ):
            raise row.error("choices", f"must hold `label` ({LABELS}) and `text`, five texts")
        answer = row.text("answerKey")
        if answer not in LABELS:
            raise row.error("answerKey", f"must be one of {', '.join(LABELS)}, got {answer!r}")
        return Question(
            id=index,
            text=with_choices(row.text("question"), texts),
            answer=answer,
            metadata={"concept": str(row.fields.get("question_concept", ""))},
        )


def with_choices(question: str, choices: list[str]) -> str:
    """A question with its labelled choices below, as the roles read it."""
    labelled = (f"{chr(ord('A') + i)}. {choice.strip()}" for i, choice in enumerate(choices))
    return "\n".join([question.strip(), *labelled])
