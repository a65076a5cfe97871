"""Generated riddles about an unknown number: an answer is easy to check and harder to find.

"(x+7)*4-5=91", or in words: "Tom thinks of a number, adds 7, multiplies it by 4, takes away 5 and
gets 91. What is the number?" A check computes forwards from the answer; a solution inverts every
operation. A hash of a riddle's numbers and operations decides its split: no training question asks
a test question's riddle, in any words.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
from pydantic import Field

from malt_jax.tasks.arithmetic import Problem, Step, require_range
from malt_jax.tasks.base import GeneratedTask, Question, Split, pick, question_generator

SMALLEST_VALUE, LARGEST_VALUE = 2, 99
FACTORS = (2, 3, 4)
TERMS = range(2, 10)
LARGEST_PRODUCT = 16
"""Of the factors of a riddle."""
LARGEST_UNKNOWN = 48
TRAIN_QUESTIONS = 1_000_000

NAMES = ("Tom", "Ben", "Sam", "Max", "Leo", "Ann", "Eva", "Mia", "Zoe", "Amy")
OPENINGS = ("{name} thinks of a number,", "{name} picks a number,")
STEPS = {
    "+": ("adds {n}",),
    "-": ("takes away {n}", "subtracts {n}"),
    "*": ("multiplies it by {n}", "makes it {n} times as big"),
}
CLOSINGS = ("and gets {n}. What is the number?", "and now has {n}. What was the number?")


class RiddlesTask(GeneratedTask):
    """Riddles of min_steps to max_steps operations, at least one of them a multiplication."""

    name = "riddles"
    kind = "number"

    def __init__(self, min_steps: int = 2, max_steps: Annotated[int, Field(le=6)] = 3) -> None:
        require_range(min_steps, max_steps)
        self.counts = {"train": TRAIN_QUESTIONS, "test": 100_000}
        self.min_steps = min_steps
        self.max_steps = max_steps

    def question(self, split: Split, index: int) -> Question:
        problem, rng = self._draw(split, index)
        return Question(
            id=index,
            text=formula(problem) if rng.integers(2) else _tell(problem, rng),
            answer=str(problem.start),
            metadata={"formula": formula(problem), "solution": solution(problem)},
        )

    def style(self, role: str, text: str) -> str | None:
        return way_of(role, text) if role in ("generator", "verifier", "refiner") else None

    def problem(self, split: Split, index: int) -> Problem:
        """The unknown number and the operations of the question at an index of a split."""
        return self._draw(split, index)[0]

    def _draw(self, split: Split, index: int) -> tuple[Problem, np.random.Generator]:
        rng = question_generator(split, index)
        while True:
            problem = _draw_problem(rng, int(rng.integers(self.min_steps, self.max_steps + 1)))
            factor = factor_of(problem)
            if 1 < factor <= LARGEST_PRODUCT and problem.split == split:
                return problem, rng


def way_of(role: str, text: str) -> str:
    """The way in which a generator, verifier or refiner wrote a text, by its form."""
    lines = text.count("\n")
    if role == "generator":
        return "undo" if lines else "answer"
    if role == "verifier":
        return "value" if " gives " in text else "full" if lines else "verdict"
    return "follow" if lines > 1 else "undo" if lines else "answer"


def factor_of(problem: Problem) -> int:
    """The product of the factors: how far the result moves when the unknown moves by one."""
    return math.prod(step.operand for step in problem.steps if step.operator == "*")


def formula(problem: Problem) -> str:
    """The riddle as an equation for x."""
    text, is_sum = "x", False
    for step in problem.steps:
        if step.operator == "*" and is_sum:
            text = f"({text})"
        text += f"{step.operator}{step.operand}"
        is_sum = step.operator != "*"
    return f"{text}={problem.values[-1]}"


def solution(problem: Problem) -> str:
    """A worked solution that undoes one operation a line, the last one first."""
    values = (problem.start, *problem.values)
    lines = [
        undone(step, after, before)
        for before, step, after in zip(values, problem.steps, problem.values, strict=False)
    ]
    return "\n".join([*reversed(lines), f"Final Answer: {problem.start}"])


def undone(step: Step, after: int, before: int) -> str:
    """The line that undoes a step: "96/4=24"."""
    inverse = {"+": "-", "-": "+", "*": "/"}[step.operator]
    return f"{after}{inverse}{step.operand}={before}"


def _draw_problem(rng: np.random.Generator, length: int) -> Problem:
    start = value = int(rng.integers(SMALLEST_VALUE, LARGEST_UNKNOWN + 1))
    steps = []
    for _ in range(length):
        operands = {
            "+": [n for n in TERMS if value + n <= LARGEST_VALUE],
            "-": [n for n in TERMS if value - n >= SMALLEST_VALUE],
            "*": [n for n in FACTORS if value * n <= LARGEST_VALUE],
        }
        operator = pick(rng, [sign for sign in operands if operands[sign]])
        step = Step(operator, pick(rng, operands[operator]))
        value = step.apply(value)
        steps.append(step)
    return Problem(start, tuple(steps))


def _tell(problem: Problem, rng: np.random.Generator) -> str:
    """The riddle in words."""
    told = [pick(rng, STEPS[step.operator]).format(n=step.operand) for step in problem.steps]
    opening = pick(rng, OPENINGS).format(name=pick(rng, NAMES))
    closing = pick(rng, CLOSINGS).format(n=problem.values[-1])
    return f"{opening} {', '.join(told)} {closing}"
