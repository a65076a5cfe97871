"""Equality of expressions by their values at fixed points.

Values are exact rationals where they can be; where not, they are worked out with 50 and again with
110 digits. Two expressions are equal when their values are, at every point.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from malt_jax.grading.expression_values import HIGH, LOW, Evaluator, Number, is_real, value_at
from malt_jax.grading.expressions import INFINITY, MINUS_INFINITY, Expression, TooLarge, Tree

_SIGNS: tuple[Callable[[int], int], ...] = (
    lambda seed: 1,
    lambda seed: -1,
    lambda seed: 1 if seed % 3 else -1,
    lambda seed: 1,
)
POINTS = len(_SIGNS)


def _point(variables: frozenset[str], index: int) -> dict[str, Fraction]:
    """Values of the variables that no two names share and no author thought of."""
    values = {}
    for name in variables:
        seed = zlib.crc32(f"{name} {index}".encode())
        size = Fraction(101 + seed % 9_973, 10_007) * (1 if index < 3 else 3)
        values[name] = _SIGNS[index](zlib.crc32(name.encode())) * size
    return values


def _equal_at(a: Tree, b: Tree, point: Mapping[str, Fraction]) -> bool | None:
    """Whether two trees have one value at a point; None where neither has one."""
    low_a, low_b = value_at(a, point, LOW), value_at(b, point, LOW)
    if low_a is None or low_b is None:
        return None if low_a is None and low_b is None else False
    if isinstance(low_a, Fraction) and isinstance(low_b, Fraction):
        return low_a == low_b
    low, low_size = _gap(LOW, low_a, low_b), _size(LOW, low_a, low_b)
    if low > low_size * LOW.mpf(10) ** -40 and low > LOW.mpf(10) ** -40:
        return False
    high_a, high_b = value_at(a, point, HIGH), value_at(b, point, HIGH)
    if high_a is None or high_b is None:
        return False
    high, high_size = _gap(HIGH, high_a, high_b), _size(HIGH, high_a, high_b)
    # Rounding errors shrink with the precision; a true difference stays, however small it is.
    shrunk = HIGH.mpf(10) ** -40
    return bool(
        high <= high_size * HIGH.mpf(10) ** -95
        or (low and high <= low * shrunk)
        or high_size <= (low_size or 1) * (shrunk if low_size else HIGH.mpf(10) ** -95)
    )


def _gap(context: Any, a: Number, b: Number) -> Number:
    evaluate = Evaluator(context, {})
    return abs(evaluate.inexact(a) - evaluate.inexact(b))


def _size(context: Any, a: Number, b: Number) -> Number:
    evaluate = Evaluator(context, {})
    return max(abs(evaluate.inexact(a)), abs(evaluate.inexact(b)))


def equal(a: Expression, b: Expression) -> bool:
    """Whether two expressions are equal wherever they are real and, if nowhere, everywhere.

    Raises TooLarge when a value passes the bounds, Unreadable for what has no number as value.
    """
    try:
        return _equal(a, b)
    except RecursionError:
        raise TooLarge("nested too deeply") from None


def _equal(a: Expression, b: Expression) -> bool:
    if INFINITY in (a.tree, b.tree) or MINUS_INFINITY in (a.tree, b.tree):
        return a.tree == b.tree
    variables = a.variables | b.variables
    if not variables:
        return _equal_at(a.tree, b.tree, {}) is True
    everywhere = a.is_complex or b.is_complex
    verdicts: list[bool] = []
    elsewhere: list[bool] = []
    for index in range(POINTS):
        point = _point(variables, index)
        value_a, value_b = value_at(a.tree, point, LOW), value_at(b.tree, point, LOW)
        if value_a is None and value_b is None:
            continue
        verdict = _equal_at(a.tree, b.tree, point) is True
        if everywhere or any(v is None or is_real(v) for v in (value_a, value_b)):
            verdicts.append(verdict)
        else:
            elsewhere.append(verdict)
        if verdicts and not verdicts[-1]:
            return False
    verdicts = verdicts or elsewhere
    return bool(verdicts) and all(verdicts)


def proportional(a: Expression, b: Expression, positive: bool = False) -> bool:
    """Whether a is a constant times b, and not both nothing: a = 0 and b = 0 are one equation.

    positive: whether the constant must be positive, as for inequalities.
    """
    if a.variables != b.variables or not a.variables:
        return False
    first: Number | None = None
    seen = 0
    for index in range(POINTS):
        point = _point(a.variables, index)
        value_a, value_b = value_at(a.tree, point, LOW), value_at(b.tree, point, LOW)
        if value_a is None or value_b is None:
            if value_a is not None or value_b is not None:
                return False
            continue
        if not value_a or not value_b or not is_real(value_a) or not is_real(value_b):
            return False
        evaluate = Evaluator(LOW, {})
        ratio = evaluate.divided(value_a, value_b)
        ratio = ratio if isinstance(ratio, Fraction) else LOW.re(ratio)
        if positive and ratio < 0:
            return False
        if first is None:
            first = ratio
        elif isinstance(ratio, Fraction) and isinstance(first, Fraction):
            if ratio != first:
                return False
        elif _gap(LOW, ratio, first) > _size(LOW, ratio, first) * LOW.mpf(10) ** -40:
            return False
        seen += 1
    return seen >= 2
