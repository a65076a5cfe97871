"""Questions of the generators in the package reasoning-gym (arXiv 2505.24760)."""

from __future__ import annotations

import difflib
import re
from typing import Any, Literal

from malt_jax import grading
from malt_jax.errors import UserError, import_extra
from malt_jax.tasks.base import GeneratedTask, Question, Split, split_of

TEST_SHARE = 4
"""One question text in this many belongs to the test split."""
MAX_DRAWS = 200
MAX_QUESTIONS = 10_000_000
_NUMBER = re.compile(r"[-+]?[0-9][0-9,]*(\.[0-9]+)?(/[0-9]+)?")
_FINAL_ANSWER = re.compile(r"final answer[*_]{0,3}:[*_]{0,3}", re.IGNORECASE)


class ReasoningGymTask(GeneratedTask):
    """A generator of reasoning-gym by its name there.

    generator:  such as chain_sum, leg_counting or knights_knaves.
    parameters: fields of the generator's configuration, such as {min_terms: 4, max_terms: 6}.
    questions:  number in the training split; the test split has a tenth of it.
    kind:       format of the answers; null: "number" if they are all numbers, else "text".

    A hash of a question's text decides its split, so the splits share no question.

    An answer is correct when it equals the generator's own, by `malt_jax.grading`. The package's
    scoring is not used: some of it evaluates model output as code. If a question has several
    correct answers, the others count as wrong.
    """

    name = "reasoning_gym"

    def __init__(
        self,
        generator: str = "chain_sum",
        parameters: dict | None = None,
        questions: int = 100_000,
        kind: Literal["number", "boxed", "letter", "text"] | None = None,
    ) -> None:
        if not 10 <= questions <= MAX_QUESTIONS:
            raise UserError(
                f"task.options.questions must be from 10 to {MAX_QUESTIONS}, got {questions}"
            )
        self.generator = generator
        self._parameters = parameters or {}
        self.counts = {"train": questions, "test": questions // 10}
        self._data_sets: dict[int, Any] = {}
        answers = [self._item(index, 0)["answer"] for index in range(8)]
        are_numbers = all(isinstance(a, str) and _NUMBER.fullmatch(a) for a in answers)
        self.kind = kind or ("number" if are_numbers else "text")

    def question(self, split: Split, index: int) -> Question:
        """As `GeneratedTask.question`.

        Raises UserError when the generator gives none of this split, or no answer to compare with.
        """
        for draw in range(MAX_DRAWS):
            item = self._item(index, draw)
            if not isinstance(item["answer"], str):
                raise UserError(
                    f"task.options.generator: {self.generator!r} gives no answer to compare with,"
                    f" but {item['answer']!r}"
                )
            answer = grading.normalize(self.kind, item["answer"])  # None for a very long one
            if answer is not None and split_of(item["question"], TEST_SHARE) == split:
                return Question(id=index, text=item["question"].strip(), answer=answer)
        raise UserError(
            f"task.options.generator: {self.generator!r} has too few different questions for two"
            f" splits, or no answers of kind {self.kind!r}; let it make others with"
            " task.options.parameters"
        )

    def extract(self, completion: str) -> str | None:
        """As `Task.extract`, but text may take several lines after "Final Answer:", as grids do."""
        if self.kind != "text":
            return super().extract(completion)
        answers = _FINAL_ANSWER.split(completion[-grading.MAX_REPLY :])[1:]
        return grading.normalize("text", answers[-1].replace("```", "")) if answers else None

    def _item(self, index: int, draw: int) -> dict[str, Any]:
        """The item at an index of a draw's data set."""
        if draw not in self._data_sets:
            self._data_sets[draw] = self._data_set(draw)
        item: dict[str, Any] = self._data_sets[draw][index]
        return item

    def _data_set(self, draw: int) -> Any:
        package = import_extra("reasoning_gym", "gym")
        generators = package.factory.DATASETS
        if self.generator not in generators:
            close = difflib.get_close_matches(self.generator, generators, n=3)
            hint = f"; did you mean {' or '.join(close)}?" if close else ""
            raise UserError(
                f"task.options.generator: reasoning-gym has no {self.generator!r}{hint} It has"
                f" {', '.join(sorted(generators))}"
            )
        # Item i is drawn with seed + i: with these seeds no two draws have an item in common.
        size = self.counts["train"]
        fixed = {"seed": draw * size, "size": size}
        try:
            return package.create_dataset(self.generator, **{**self._parameters, **fixed})
        except Exception as error:  # each generator checks its configuration in its own way
            raise UserError(
                f"task.options.parameters: {self.generator!r} cannot be made with"
                f" {self._parameters}: {error}"
            ) from error
