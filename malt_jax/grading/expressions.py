"""Expressions of arithmetic and algebra: trees of numbers, variables, operations and functions."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import Any

Tree = tuple[Any, ...]
"""The name of an operation, then its operands; or of a kind of leaf, then what it holds."""

INFINITY: Tree = ("infinity",)
MINUS_INFINITY: Tree = ("neg", INFINITY)


class Unreadable(ValueError):
    """The text is not of the grammar."""


class TooLarge(ValueError):
    """A value, or the work to find it, passes the bounds."""


@dataclass(frozen=True)
class Expression:
    """A text that was read: its tree, its variables, and whether it has an i."""

    tree: Tree
    variables: frozenset[str]
    is_complex: bool

    @property
    def is_constant(self) -> bool:
        return not self.variables


def difference(a: Expression, b: Expression) -> Expression:
    """a - b."""
    tree = ("-", a.tree, b.tree)
    return Expression(tree, a.variables | b.variables, a.is_complex or b.is_complex)


def scaled(a: Expression, factor: Fraction) -> Expression:
    """a times a rational."""
    return Expression(("*", a.tree, ("number", factor)), a.variables, a.is_complex)
