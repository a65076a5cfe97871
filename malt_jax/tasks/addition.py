"""Generated addition word problems, for models too small for published benchmarks."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from malt_jax.errors import UserError
from malt_jax.tasks.base import GeneratedTask, Question, Split, pick, question_generator, split_of

TEST_SHARE = 4
"""One set of addends in this many belongs to the test split."""

PEOPLE = (
    "Ada", "Ben", "Cara", "Dan", "Emma", "Finn", "Grace", "Hugo",
    "Iris", "Jack", "Kate", "Liam", "Mia", "Noah", "Olga", "Paul",
)  # fmt: skip
THINGS = (
    "apples", "balloons", "books", "buttons", "candies", "cards", "coins", "cookies",
    "crayons", "flowers", "marbles", "pencils", "shells", "stamps", "stickers", "stones",
)  # fmt: skip
STORIES = (
    ("{name} has {n} {things}.", "{name} finds {n} more.", "How many {things} does {name} have?"),
    ("{name} buys {n} {things}.", "{name} buys {n} more.", "How many {things} does {name} buy?"),
    (
        "There are {n} {things} in a box.",
        "{name} puts in {n} more.",
        "How many {things} are in the box?",
    ),
    (
        "{name} counts {n} {things} in one room.",
        "There are {n} {things} in the next room.",
        "How many {things} are there in all?",
    ),
)
"""The sentences of a story: for the first addend, for each further one, and the question."""


class AdditionTask(GeneratedTask):
    """Sums of min_addends to max_addends integers from low to high, both included.

    The splits share no set of addends, in any order and in any story.
    """

    name = "addition"
    kind = "number"

    def __init__(
        self,
        low: int = 10,
        high: Annotated[int, Field(le=1_000_000_000)] = 49,
        min_addends: int = 2,
        max_addends: Annotated[int, Field(le=100)] = 2,
    ) -> None:
        if not 0 <= low < high:
            raise UserError(f"task.options: 0 <= low < high must hold, got {low=}, {high=}")
        if not 2 <= min_addends <= max_addends:
            raise UserError(
                "task.options: 2 <= min_addends <= max_addends must hold, got"
                f" {min_addends=}, {max_addends=}"
            )
        if (high - low + 1) ** min_addends < 64:
            raise UserError(
                f"task.options: {low=} to {high=} gives too few problems for two splits"
            )
        self.counts = {"train": 100_000, "test": 20_000}
        self._values = (low, high + 1)
        self._addends = (min_addends, max_addends + 1)

    def question(self, split: Split, index: int) -> Question:
        rng = question_generator(split, index)
        while True:
            addends = rng.integers(*self._values, size=rng.integers(*self._addends)).tolist()
            if split_of(" ".join(map(str, sorted(addends))), TEST_SHARE) == split:
                break
        first, further, last = pick(rng, STORIES)
        words = {"name": pick(rng, PEOPLE), "things": pick(rng, THINGS)}
        sentences = [first, *[further] * (len(addends) - 1)]
        told = [text.format(n=n, **words) for text, n in zip(sentences, addends, strict=True)]
        return Question(
            id=index,
            text=" ".join([*told, last.format(**words)]),
            answer=str(sum(addends)),
            metadata={"addends": " ".join(map(str, addends))},
        )
