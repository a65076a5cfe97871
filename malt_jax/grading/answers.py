"""What an answer is: a number with its unit, a list, an interval, an equation, words..."""

from __future__ import annotations

from dataclasses import dataclass

from malt_jax.grading.expressions import INFINITY, MINUS_INFINITY, Expression

FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}
"""The signs of inequalities, each with its sign when the sides change places."""


@dataclass(frozen=True)
class Words:
    """A text: "Thursday", "no solution"."""

    text: str


@dataclass(frozen=True)
class Quantity:
    """A number or an expression; `expression` is None when the grammar does not reach it."""

    latex: str
    expression: Expression | None
    unit: str = ""
    percent: bool = False
    refused: bool = False


@dataclass(frozen=True)
class InBase:
    """Digits in a base that is written with them: 664_7."""

    digits: str
    base: str


@dataclass(frozen=True)
class Parts:
    """Several answers in one.

    kind: "list", "and" or "or" (inequalities), "set", "union": without order; two brackets such as
        "(]" for a tuple or an interval, ":" for a ratio or a time.
    """

    kind: str
    items: tuple[Answer, ...]

    @property
    def is_ordered(self) -> bool:
        return self.kind not in ("list", "and", "or", "set", "union")


@dataclass(frozen=True)
class Matrix:
    """Rows of a matrix or of a vector; `bars` for a determinant."""

    rows: tuple[tuple[Answer, ...], ...]
    bars: bool


@dataclass(frozen=True)
class Named:
    """x = 5, f(x) = x^2, x \\in [1, 2], (x, y) = (1, 2)."""

    name: str
    value: Answer
    relation: Relation | None


@dataclass(frozen=True)
class Relation:
    """Sides and the signs between them, as in 2x + y = 5 or a < b \\le c."""

    signs: tuple[str, ...]
    sides: tuple[str, ...]
    differences: tuple[Expression, ...] | None
    """For each sign: right side - left side."""


@dataclass(frozen=True)
class Opaque:
    """LaTeX that is nothing of the above."""

    latex: str


Answer = Words | Quantity | InBase | Parts | Matrix | Named | Relation | Opaque

REALS = Parts(
    "()",
    (
        Quantity("-\\infty", Expression(MINUS_INFINITY, frozenset(), False)),
        Quantity("\\infty", Expression(INFINITY, frozenset(), False)),
    ),
)
