"""Extracted answers and their verdicts."""

from __future__ import annotations

import functools

from malt_jax.tasks.base import Question, Task


class Answers:
    """Extracts answers, and compares each with the reference once."""

    def __init__(self, task: Task | None) -> None:
        self._task = task
        self._verdicts: dict[tuple[str, str], bool] = {}
        # Siblings often have the same text, and reading an answer's mathematics takes time.
        self._extract = functools.lru_cache(10_000)(task.extract if task else lambda _: None)

    def extract(self, text: str) -> str | None:
        """The answer at the end of a text; None when there is none, or no task to tell."""
        return self._extract(text)

    def verdict(self, answer: str | None, question: Question) -> bool | None:
        """Whether an answer is correct; None without an answer or a reference."""
        if answer is None or self._task is None or not question.answer:
            return None
        key = (answer, question.answer)
        if key not in self._verdicts:
            self._verdicts[key] = self._task.equal(*key)
        return self._verdicts[key]
