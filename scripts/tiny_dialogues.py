"""The texts that the embedded model learns from: drill in computing, then dialogues of the roles.

Each role has several ways to write, from an answer alone to careful work (`WAYS`). All that it
learns to write is correct; mistakes stand only in what the verifier and the refiner read. So the
little model knows every way, and follows the careful ones more surely: which way pays is left to
training on its own answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple, TypeVar

import numpy as np

from malt_jax.tasks.arithmetic import Problem, Step
from malt_jax.tasks.riddles import TRAIN_QUESTIONS, RiddlesTask, factor_of, undone, way_of

Name = TypeVar("Name", bound=str)

LARGEST = 99
"""Numbers from 0 to this one are tokens, and the largest that a check computes with."""

WAYS: dict[str, dict[str, float]] = {
    "generator": {"answer": 0.5, "undo": 0.5},
    "verifier": {"verdict": 0.35, "value": 0.25, "full": 0.4},
    "refiner": {"answer": 0.3, "undo": 0.25, "follow": 0.45},
}
"""The share of every way to write, by role, in the last mix. The last way is the careful one."""
ROLE_SHARES = {"generator": 0.3, "verifier": 0.35, "refiner": 0.35}
WRONG_ANSWERS = 0.65
"""Share of the verifier's and the refiner's dialogues in which the answer read is wrong."""
LARGEST_MISS = 10
WRONG_CHECKS = 0.15
"""Share of the refiner's dialogues in which the check read has a mistake."""
OUT_OF_RANGE = 0.1
"""Share of wrong answers that are kept although a check of them leaves 0 .. LARGEST."""
DRILL_LINES = 8


class Dialogue(NamedTuple):
    """One text of a role, with what it reads."""

    role: str
    problem: Problem
    question: str
    guess: int
    """The answer that the verifier and the refiner read."""
    context: tuple[str, ...]
    """The texts of the earlier roles."""
    text: str

    def is_correct(self, text: str) -> bool:
        """Whether another text of the role, written in any way, is correct."""
        if self.role == "verifier":
            return text == check(self.problem, self.guess, way_of(self.role, text))
        return text.endswith(f"Final Answer: {self.problem.start}")


class Dialogues:
    """Dialogues of the three roles; number i is a function of the seed and i.

    The questions are of the training split, at indices that no run reaches.
    """

    def __init__(self, seed: int, task: RiddlesTask | None = None) -> None:
        self.seed = seed
        self.task = task or RiddlesTask()

    def dialogue(self, index: int, role: str | None = None, way: str | None = None) -> Dialogue:
        """A dialogue, of a given role and way or of drawn ones."""
        rng = np.random.default_rng([self.seed, index])
        question = self.task.question("train", TRAIN_QUESTIONS + index).text
        problem = self.task.problem("train", TRAIN_QUESTIONS + index)
        role = role or draw(ROLE_SHARES, rng)
        way = way or draw(WAYS[role], rng)
        if role == "generator":
            return Dialogue(role, problem, question, problem.start, (), solve(problem, way))
        guess = problem.start
        if rng.random() < WRONG_ANSWERS:
            guess = misguess(problem, rng, OUT_OF_RANGE if way != "follow" else 0.0)
        answer = solve(problem, draw(WAYS["generator"], rng), guess)
        if role == "verifier":
            text = check(problem, guess, way)
            return Dialogue(role, problem, question, guess, (answer,), text)
        mistaken = way != "follow" and rng.random() < WRONG_CHECKS
        ways = WAYS["verifier"]
        if way == "follow":
            ways = {name: share for name, share in ways.items() if name != "verdict"}
        read = check(problem, guess, draw(ways, rng), rng if mistaken else None)
        text = refine(problem, guess, way)
        return Dialogue(role, problem, question, guess, (answer, read), text)


def solve(problem: Problem, way: str, answer: int | None = None) -> str:
    """The generator's text: the answer, after one undone operation in the way "undo"."""
    final = f"Final Answer: {problem.start if answer is None else answer}"
    if way == "answer":
        return final
    before = (problem.start, *problem.values)[-2]
    return f"{undone(problem.steps[-1], problem.values[-1], before)}\n{final}"


def check(
    problem: Problem, guess: int, way: str, mistakes: np.random.Generator | None = None
) -> str:
    """The verifier's text; with `mistakes` one of its numbers or its verdict is wrong."""
    lines, value = substitute(problem, guess, mistakes if way != "verdict" else None)
    target = problem.values[-1]
    if way == "verdict":
        right = (guess == problem.start) != (mistakes is not None)
        return f"{guess} is {'right' if right else 'wrong'}"
    if way == "value":
        lines = [f"{guess} gives {value if isinstance(value, int) else value.split(' is ')[1]}"]
    if isinstance(value, int):
        low, high = sorted((value, target))
        lines.append(f"{high}-{low}={high - low}")
        verdict = "right" if low == high else "too small" if value < target else "too big"
    else:
        verdict = "too big" if "over" in value else "too small"
    return "\n".join([*lines, f"{guess} is {verdict}"])


def substitute(
    problem: Problem, guess: int, mistakes: np.random.Generator | None = None
) -> tuple[list[str], int | str]:
    """One line an operation on the guess, and the value: the last line where it leaves the range.

    With `mistakes` one line has a wrong result, which is carried on.
    """
    slip = int(mistakes.integers(len(problem.steps))) if mistakes is not None else -1
    lines: list[str] = []
    value = guess
    for number, step in enumerate(problem.steps):
        left, value = value, step.apply(value)
        if number == slip and mistakes is not None:
            value += int(mistakes.choice([-10, -2, -1, 1, 2, 10]))
        if not 0 <= value <= LARGEST:
            bound = f"over {LARGEST}" if value > LARGEST else "under 0"
            lines.append(f"{left}{step.operator}{step.operand} is {bound}")
            return lines, lines[-1]
        lines.append(f"{left}{step.operator}{step.operand}={value}")
    return lines, value


def refine(problem: Problem, guess: int, way: str) -> str:
    """The refiner's text; "follow" moves the guess by the difference that the check found."""
    if way != "follow" or guess == problem.start:
        return solve(problem, "undo" if way == "undo" else "answer")
    moved = abs(problem.start - guess)
    factor = factor_of(problem)
    sign = "+" if guess < problem.start else "-"
    lines = [f"{moved * factor}/{factor}={moved}", f"{guess}{sign}{moved}={problem.start}"]
    return "\n".join([*lines, f"Final Answer: {problem.start}"])


def misguess(problem: Problem, rng: np.random.Generator, out_of_range: float) -> int:
    """A wrong answer near the correct one; `out_of_range` is the share that is kept of those whose
    check finds no difference."""
    while True:
        guess = problem.start + int(rng.choice([-1, 1]) * rng.integers(1, LARGEST_MISS + 1))
        if not 1 <= guess <= LARGEST:
            continue
        inside = isinstance(substitute(problem, guess)[1], int)
        if inside or rng.random() < out_of_range:
            return guess


def drill(rng: np.random.Generator) -> tuple[str, str]:
    """What to compute, and the lines: every kind of line that the roles write."""
    asked, lines = [], []
    for kind in rng.choice(["+", "-", "*", "/", "gap"], DRILL_LINES, p=[0.2, 0.2, 0.1, 0.1, 0.4]):
        left, result, right = _drawn(str(kind), rng)
        if kind == "gap":
            low, high = sorted((left, right))
            verdict = "right" if low == high else "too small" if left < right else "too big"
            asked.append(f"{left},{right}")
            lines.append(f"{high}-{low}={high - low} is {verdict}")
        else:
            asked.append(f"{left}{kind}{right}")
            bound = f"over {LARGEST}" if result > LARGEST else "under 0" if result < 0 else None
            end = f"={result}" if bound is None else f" is {bound}"
            lines.append(f"{left}{kind}{right}{end}")
    return "\n".join(asked), "\n".join(lines)


def _drawn(kind: str, rng: np.random.Generator) -> tuple[int, int, int]:
    """The left number, the result and the right number of a line of drill."""
    if kind == "gap":
        # A check mostly ends near the target: near numbers are compared more often.
        left = int(rng.integers(0, LARGEST + 1))
        right = left + int(rng.choice([-1, 1]) * rng.integers(0, rng.choice([12, 40, LARGEST])))
        return left, 0, min(max(right, 0), LARGEST)
    if kind == "/":
        right, result = int(rng.choice([1, 2, 3, 4, 6, 8, 9, 12, 16])), int(rng.integers(1, 50))
        while right * result > LARGEST:
            result = int(rng.integers(1, LARGEST // right + 1))
        return right * result, result, right
    left = int(rng.integers(0, LARGEST + 1))
    right = int(rng.integers(2, 5) if kind == "*" else rng.integers(1, 11))
    if kind == "*" and rng.random() < 0.7:
        left = int(rng.integers(0, LARGEST // right + 1))
    return left, Step(kind, right).apply(left), right


def draw(shares: Mapping[Name, float], rng: np.random.Generator) -> Name:
    names = list(shares)
    weights = np.array(list(shares.values()))
    return names[int(rng.choice(len(names), p=weights / weights.sum()))]
