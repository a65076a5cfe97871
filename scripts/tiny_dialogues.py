"""The texts that the embedded model learns from: correct dialogues of the three roles.

As in what people write, the same work is shown at different length: `brief`, the result alone;
`steps`, one line an operation; `places`, every operation digit place by digit place. All of it is
correct, but a little model follows the longer ways more surely than the shorter ones. Mistakes
stand only in what the verifier and the refiner READ.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Literal, TypeVar

import numpy as np

from malt_jax.config import PipelineConfig
from malt_jax.malt.roles import load_roles
from malt_jax.tasks.arithmetic import TRAIN_QUESTIONS, ArithmeticTask, Problem, Step

Style = Literal["brief", "steps", "places"]
Name = TypeVar("Name", bound=str)

GENERATOR_FIRST = 16_000
"""Dialogues, at the start, that are the generator's alone: computing comes before checking. Learned
together, the verifier copied the lines that it should have computed again."""
ROLE_SHARES = {"generator": 0.3, "verifier": 0.35, "refiner": 0.35}
STYLE_SHARES: dict[str, dict[Style, float]] = {
    "generator": {"brief": 0.2, "steps": 0.55, "places": 0.25},
    "verifier": {"brief": 0.3, "steps": 0.4, "places": 0.3},
    "refiner": {"brief": 0.3, "steps": 0.4, "places": 0.3},
}
WRONG_ANSWERS = 0.6
"""Share of the verifier's and the refiner's dialogues in which the answer read is wrong."""
WRONG_CHECKS = 0.25
"""Share of the refiner's dialogues in which the check read is wrong."""
EMPTY_CHECKS = 0.15
"""Share of the refiner's dialogues without a check, so that it can also compute alone."""

Compute = Callable[[int, str, int], int]
"""Writes down one line of work and returns its result."""


class Dialogues:
    """Dialogues of the three roles; number i is a function of the seed and i."""

    def __init__(self, task: ArithmeticTask, seed: int) -> None:
        self.task = task
        self.seed = seed
        self.prompted = load_roles(PipelineConfig().roles, task.prompts)
        self.roles = {role.name: role for role in self.prompted}

    def texts(self, index: int) -> tuple[str, str, list[str], str]:
        """Role, question, the earlier roles' texts, and what the role should write."""
        rng = np.random.default_rng([self.seed, index])
        number = TRAIN_QUESTIONS + index
        question = self.task.question("train", number).text
        problem = self.task.problem("train", number)
        role = "generator" if index < GENERATOR_FIRST else draw(ROLE_SHARES, rng)
        own = draw(STYLE_SHARES[role], rng)
        if role == "generator":
            return role, question, [], solution(problem, own)
        answer, given = attempt(problem, draw(STYLE_SHARES["generator"], rng), rng, WRONG_ANSWERS)
        answer = f"{answer}Final Answer: {given}"
        if role == "verifier":
            return role, question, [answer], check(*work(problem, own), given)
        work_read, found = attempt(problem, draw(STYLE_SHARES["verifier"], rng), rng, WRONG_CHECKS)
        read = "" if rng.random() < EMPTY_CHECKS else check(work_read, found, given)
        return role, question, [answer, read], solution(problem, own)


def solution(problem: Problem, style: Style) -> str:
    """What the generator and the refiner should write."""
    lines, result = work(problem, style)
    return f"{lines}Final Answer: {result}"


def check(lines: str, result: int, given: int) -> str:
    """The verifier's work, and its verdict on the answer that was given."""
    return f"{lines}{given} is {'right' if given == result else 'wrong'}"


def work(problem: Problem, style: Style, compute: Compute | None = None) -> tuple[str, int]:
    """The lines of work in a style, and the result; `compute` may make mistakes."""
    lines: list[str] = []

    def line(left: int, operator: str, right: int) -> int:
        result = (compute or _exactly)(left, operator, right)
        lines.append(f"{left}{operator}{right}={result}\n")
        return result

    value = problem.start
    for step in problem.steps:
        if style == "places":
            value = _by_places(value, step, line)
        else:
            value = line(value, step.operator, step.operand)
    return "" if style == "brief" else "".join(lines), value


def _exactly(left: int, operator: str, right: int) -> int:
    return Step(operator, right).apply(left)


def _by_places(value: int, step: Step, line: Compute) -> int:
    """Sums and differences take the operand's tens and then its units; products are taken of the
    tens and of the units."""
    if step.operator != "*":
        for part in _places(step.operand):
            value = line(value, step.operator, part)
        return value
    products = [line(part, "*", step.operand) for part in _places(value)]
    return products[0] if len(products) == 1 else line(products[0], "+", products[1])


def _places(number: int) -> list[int]:
    """47 as 40 and 7."""
    return [part for part in (number - number % 10, number % 10) if part] or [0]


def attempt(
    problem: Problem, style: Style, rng: np.random.Generator, wrong: float
) -> tuple[str, int]:
    """Work as it may be read: with the probability `wrong` it holds one mistake, carried through to
    the end. That is a slip in a line, a number misread, or the wrong operation."""
    lines, result = work(problem, style)
    if rng.random() >= wrong:
        return lines, result
    while True:
        kind = draw({"slip": 0.6, "number": 0.2, "operation": 0.2}, rng)
        if kind == "slip":
            found = work(
                problem, style, _slipping(int(rng.integers(max(1, lines.count("\n")))), rng)
            )
        else:
            found = work(_misread(problem, kind, rng), style)
        text, value = found
        if value != result and 0 < value < 200 and not re.search(r"[-+*=]-", text):
            return found


def _slipping(line: int, rng: np.random.Generator) -> Compute:
    """Computes all lines but one correctly."""
    done = 0

    def compute(left: int, operator: str, right: int) -> int:
        nonlocal done
        result = _exactly(left, operator, right)
        if done == line:
            result += int(rng.choice([-20, -10, -10, -2, -1, -1, 1, 1, 2, 10, 10, 20]))
        done += 1
        return result

    return compute


def _misread(problem: Problem, what: str, rng: np.random.Generator) -> Problem:
    """The problem with another operand or operation in one step."""
    index = int(rng.integers(len(problem.steps)))
    steps = list(problem.steps)
    operator, operand = steps[index].operator, steps[index].operand
    if what == "number":
        operand = max(1, operand + int(rng.choice([-10, -1, 1, 10])))
    else:
        operator = str(rng.choice([other for other in "+-*" if other != operator]))
    steps[index] = Step(operator, operand)
    return Problem(problem.start, tuple(steps))


def draw(shares: Mapping[Name, float], rng: np.random.Generator) -> Name:
    names = list(shares)
    return names[int(rng.choice(len(names), p=list(shares.values())))]
