"""Generated word problems: sums, for models too small for published benchmarks, and several steps.

A hash of a problem's numbers and operations decides its split: no training question asks the
calculation of a test question, in any words.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated

import numpy as np
from pydantic import Field

from malt_jax.errors import UserError
from malt_jax.tasks.base import GeneratedTask, Question, Split, pick, question_generator, split_of

OPERATORS = {"+": operator.add, "-": operator.sub, "*": operator.mul}
LARGEST_VALUE = 99
FACTORS = (2, 3, 4)
TEST_SHARE = 8
"""One calculation in this many belongs to the test split."""
TRAIN_QUESTIONS = 1_000_000

PEOPLE = {
    "He": ("Tom", "Ben", "Sam", "Max", "Leo"),
    "She": ("Ann", "Eva", "Mia", "Zoe", "Amy"),
}
THINGS = ("apples", "books", "cards", "coins", "eggs", "pens", "shells", "stamps", "stones", "toys")
OPENINGS = ("{name} has {n} {things}.", "{name} owns {n} {things}.")
GAINS = (
    "{who} buys {n} more.",
    "{who} finds {n} more.",
    "{who} gets {n} from {friend}.",
    "{friend} gives {name} {n} more.",
)
LOSSES = (
    "{who} loses {n}.",
    "{who} sells {n}.",
    "{who} gives {n} to {friend}.",
    "{friend} takes {n} of them.",
)
GROWTHS = ("Then {name} gets {n} times as many.", "The number grows {n} times as big.")
CLOSINGS = ("How many {things} does {name} have now?", "How many {things} is that now?")


@dataclass(frozen=True)
class Step:
    """One operation on the running value; `operator` is one of OPERATORS."""

    operator: str
    operand: int

    def apply(self, value: int) -> int:
        return OPERATORS[self.operator](value, self.operand)


@dataclass(frozen=True)
class Problem:
    """A start value and the steps that act on it in turn."""

    start: int
    steps: tuple[Step, ...]

    @property
    def values(self) -> tuple[int, ...]:
        """The running value after every step."""
        values = accumulate(self.steps, lambda value, step: step.apply(value), initial=self.start)
        return tuple(values)[1:]

    @property
    def split(self) -> Split:
        """The only split whose questions may ask for this calculation."""
        steps = "".join(f"{step.operator}{step.operand}" for step in self.steps)
        return split_of(f"{self.start}{steps}", TEST_SHARE)

    @property
    def solution(self) -> str:
        """A worked solution with one line an operation."""
        values = (self.start, *self.values)
        lines = [
            f"{before}{step.operator}{step.operand}={after}"
            for before, step, after in zip(values, self.steps, self.values, strict=False)
        ]
        return "\n".join([*lines, f"Final Answer: {values[-1]}"])


def require_range(min_steps: int, max_steps: int) -> None:
    """Raises UserError where no number of steps lies between the two."""
    if not 1 <= min_steps <= max_steps:
        raise UserError(
            f"task.options: 1 <= min_steps <= max_steps must hold, got {min_steps=}, {max_steps=}"
        )


class ArithmeticTask(GeneratedTask):
    """Word problems of min_steps to max_steps operations."""

    name = "arithmetic"
    kind = "number"

    def __init__(self, min_steps: int = 2, max_steps: Annotated[int, Field(le=100)] = 3) -> None:
        require_range(min_steps, max_steps)
        self.counts = {"train": TRAIN_QUESTIONS, "test": 100_000}
        self.min_steps = min_steps
        self.max_steps = max_steps

    def question(self, split: Split, index: int) -> Question:
        problem, rng = self._draw(split, index)
        return Question(
            id=index,
            text=_tell(problem, rng),
            answer=str(problem.values[-1]),
            metadata={"solution": problem.solution},
        )

    def problem(self, split: Split, index: int) -> Problem:
        """The calculation that the question at an index of a split asks."""
        return self._draw(split, index)[0]

    def _draw(self, split: Split, index: int) -> tuple[Problem, np.random.Generator]:
        rng = question_generator(split, index)
        while True:
            length = rng.integers(self.min_steps, self.max_steps + 1)
            start = value = int(rng.integers(3, LARGEST_VALUE // 2))
            steps: list[Step] = []
            for _ in range(length):
                steps.append(_draw_step(rng, value))
                value = steps[-1].apply(value)
            problem = Problem(start, tuple(steps))
            if problem.split == split:
                return problem, rng


def _draw_step(rng: np.random.Generator, value: int) -> Step:
    """A step that keeps the running value between 1 and LARGEST_VALUE."""
    operands = {
        "+": range(2, LARGEST_VALUE - value + 1),
        "-": range(2, value),
        "*": [factor for factor in FACTORS if value * factor <= LARGEST_VALUE],
    }
    chosen = pick(rng, [operator for operator in operands if operands[operator]])
    return Step(chosen, pick(rng, operands[chosen]))


def _tell(problem: Problem, rng: np.random.Generator) -> str:
    """The problem in words."""
    pronoun = pick(rng, tuple(PEOPLE))
    name = pick(rng, PEOPLE[pronoun])
    others = [person for group in PEOPLE.values() for person in group if person != name]
    things = pick(rng, THINGS)
    sentences = [pick(rng, OPENINGS).format(name=name, n=problem.start, things=things)]
    for step in problem.steps:
        template = pick(rng, {"+": GAINS, "-": LOSSES, "*": GROWTHS}[step.operator])
        who, friend = pick(rng, (pronoun, name)), pick(rng, others)
        sentences.append(template.format(who=who, name=name, friend=friend, n=step.operand))
    sentences.append(pick(rng, CLOSINGS).format(name=name, things=things))
    return " ".join(sentences)


ADDITION_TEST_SHARE = 4
"""One set of addends in this many belongs to the test split."""

NAMES = (
    "Ada", "Ben", "Cara", "Dan", "Emma", "Finn", "Grace", "Hugo",
    "Iris", "Jack", "Kate", "Liam", "Mia", "Noah", "Olga", "Paul",
)  # fmt: skip
GOODS = (
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
            if split_of(" ".join(map(str, sorted(addends))), ADDITION_TEST_SHARE) == split:
                break
        first, further, last = pick(rng, STORIES)
        words = {"name": pick(rng, NAMES), "things": pick(rng, GOODS)}
        sentences = [first, *[further] * (len(addends) - 1)]
        told = [text.format(n=n, **words) for text, n in zip(sentences, addends, strict=True)]
        return Question(
            id=index,
            text=" ".join([*told, last.format(**words)]),
            answer=str(sum(addends)),
            metadata={"addends": " ".join(map(str, addends))},
        )
