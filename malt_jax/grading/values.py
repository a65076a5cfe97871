"""Values of expressions at fixed points, and equality of expressions by them.

A value is an exact rational where it can be; where not, it is worked out with 50 and with 110
digits. Rounding errors shrink with the precision; a true difference stays, however small it is.
All sizes are bounded: a value costs milliseconds, or raises TooLarge.
"""

from __future__ import annotations

import math
import operator
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from typing import Any

import mpmath

from malt_jax.grading.expressions import INFINITIES, Expression, TooLarge, Tree, Unreadable

MAX_BITS = 60_000  # the largest binary logarithm of a number, or of its denominator
MAX_WORK = 3_000_000  # bits of all numbers on the way to one value
MAX_FACTORIAL = 3_000
MAX_TERMS = 100  # of a sum or a product with bounds
POINTS = 4  # at which expressions with variables are compared
_INEXACT_BITS = 2_000  # the share of MAX_WORK that an inexact number costs
_POLE_BITS = 100  # a tangent of 2^100 or more is that of a pole

# Contexts of our own: any library may change the precision of mpmath's global one.
_LOW, _HIGH = mpmath.MPContext(), mpmath.MPContext()
_LOW.dps, _HIGH.dps = 50, 110

Number = Any  # Fraction, or mpf or mpc of one of the contexts: mpmath has no types


@dataclass(frozen=True)
class Value:
    """A number in two precisions; one Fraction twice if it is rational."""

    low: Number
    high: Number

    @property
    def real(self) -> Number:
        return _LOW.re(self.low)

    @property
    def is_real(self) -> bool:
        return bool(abs(_LOW.im(self.low)) <= abs(self.real) * _LOW.mpf(10) ** -40)

    def times(self, other: Value) -> Value:
        return Value(self.low * other.low, self.high * other.high)

    def equals(self, other: Value) -> bool:
        if isinstance(self.low, Fraction) and isinstance(other.low, Fraction):
            return self.low == other.low
        low, low_size = _distance(self.low, other.low)
        if low > max(low_size, 1) * _LOW.mpf(10) ** -40:
            return False
        high, high_size = _distance(self.high, other.high)
        shrunk, rounding = _HIGH.mpf(10) ** -40, _HIGH.mpf(10) ** -95
        return bool(
            high <= high_size * rounding
            or (low and high <= low * shrunk)
            or high_size <= (low_size * shrunk if low_size else rounding)  # both are 0
        )


def _distance(a: Number, b: Number) -> tuple[Number, Number]:
    """The distance of two numbers, and the size of the larger one."""
    sizes = [_HIGH.convert(abs(number)) for number in (a, b)]
    return abs(_HIGH.convert(a) - b), max(sizes)


def value_at(tree: Tree, point: Mapping[str, Fraction]) -> Value | None:
    """The value of a tree, or None where it has none.

    Raises TooLarge when it passes the bounds, Unreadable for what has no number as value.
    """
    try:
        low = _Evaluator(_LOW, point)(tree)
        high = low if isinstance(low, Fraction) else _Evaluator(_HIGH, point)(tree)
    except Unreadable:
        raise
    except RecursionError:
        raise TooLarge("nested too deeply") from None
    except (ArithmeticError, ValueError, mpmath.libmp.NoConvergence):
        return None
    # A value that moves with the precision is a pole in disguise, such as 1/\sin\pi.
    moved, size = _distance(low, high)
    settled = size * _HIGH.mpf(10) ** -20
    return Value(low, high) if moved <= settled or abs(high) <= settled else None


class _Evaluator:
    """Works out trees, with the variables at `values` and inexact numbers of mpmath's `context`.

    The public methods are the operations that trees name.
    """

    def __init__(self, context: Any, values: Mapping[str, Fraction]) -> None:
        self._context = context
        degree = context.pi / 180
        constants = {"\\pi": +context.pi, "e": +context.e, "i": context.mpc(0, 1), "\\circ": degree}
        self._values: Mapping[str, Number] = {**constants, **values}
        self._work = 0

    def __call__(self, tree: Tree) -> Number:
        head, *parts = tree
        if head == "number":
            return parts[0]
        if head == "name":
            if parts[0] not in self._values:
                raise Unreadable(f"{parts[0]} has no value")
            return self._values[parts[0]]
        if head == "chain":
            total = self(parts[0][1])
            for operation, part in parts[1:]:
                total = self._apply(operation, total, self(part))
            return total
        if head == "series":
            return self._series(*parts)
        if head in ("call", "several"):
            return self._apply(head, parts[0], *map(self, parts[1:]))
        return self._apply(head, *map(self, parts))

    def _apply(self, operation: str, *operands: Any) -> Number:
        if arithmetic := _ARITHMETIC.get(operation):
            if not all(isinstance(operand, Fraction) for operand in operands):
                operands = tuple(map(self._context.convert, operands))
            return self._checked(arithmetic(*operands))
        return self._checked(getattr(self, operation)(*operands))

    def _checked(self, value: Number) -> Number:
        """The same value. Raises TooLarge past the bounds, ArithmeticError if it is no number."""
        if isinstance(value, Fraction):
            size = work = max(value.numerator.bit_length(), value.denominator.bit_length())
        elif self._context.isnan(value) or self._context.isinf(value):
            raise ArithmeticError
        else:
            size, work = abs(self._context.mag(value)) if value else 0, _INEXACT_BITS
        self._work += work
        if size > MAX_BITS or self._work > MAX_WORK:
            raise TooLarge("a value too large, or too much work")
        return value

    def _series(self, kind: str, name: str, low: Tree, high: Tree, body: Tree) -> Number:
        first, last = _whole(self(low), self(high))
        if not 0 <= last - first < MAX_TERMS:
            raise TooLarge("a sum of too many terms")
        outer, total = self._values, Fraction(0 if kind == "sum" else 1)
        for k in range(first, last + 1):
            self._values = {**outer, name: Fraction(k)}
            total = self._apply("plus" if kind == "sum" else "times", total, self(body))
        self._values = outer
        return total

    def power(self, base: Number, exponent: Number) -> Number:
        if not base:
            if self._context.re(exponent) <= 0:
                raise ArithmeticError
            return Fraction(0)
        if isinstance(base, Fraction):
            size = max(base.numerator.bit_length(), base.denominator.bit_length()) - 1
        else:
            size = abs(self._context.mag(base)) + 1
        if abs(exponent) * size > MAX_BITS or (abs(exponent) > MAX_BITS and abs(base) != 1):
            raise TooLarge("a power too large")
        if not isinstance(exponent, Fraction):
            return self._context.power(base, exponent)
        if exponent.denominator == 1:
            return base ** int(exponent)
        if isinstance(base, Fraction) and exponent == Fraction(1, 2) and base > 0:
            root = Fraction(math.isqrt(base.numerator), math.isqrt(base.denominator))
            if root * root == base:
                return root
        if exponent.denominator % 2 and not isinstance(base, self._context.mpc) and base < 0:
            # An odd root of a negative number is taken to be the real one.
            size = self._context.power(-base, exponent)
            return -size if exponent.numerator % 2 else size
        return self._context.power(base, exponent)

    def mod(self, a: Number, b: Number) -> Number:
        return operator.mod(*_exact(a, b))

    def floor(self, a: Number) -> Number:
        return Fraction(math.floor(*_exact(a)))

    def ceil(self, a: Number) -> Number:
        return -self.floor(-a)

    def factorial(self, a: Number) -> Number:
        if abs(a) > (MAX_FACTORIAL if _is_whole(a) else 1000):
            raise TooLarge("a factorial too large")
        return Fraction(math.factorial(int(a))) if _is_whole(a) else self._context.gamma(a + 1)

    def binomial(self, n: Number, k: Number) -> Number:
        if not _is_whole(k) or not 0 <= k <= (MAX_FACTORIAL if _is_whole(n) else 50):
            raise Unreadable("a binomial coefficient out of bounds")
        if _is_whole(n):
            if not k <= n <= MAX_FACTORIAL:
                raise TooLarge("a binomial coefficient out of bounds")
            return Fraction(math.comb(int(n), int(k)))
        product: Number = Fraction(1)
        for i in range(int(k)):
            product = self._apply("times", product, n - i)
        return product / math.factorial(int(k))

    def several(self, name: str, *values: Number) -> Number:
        if name in ("max", "min"):
            return (max if name == "max" else min)(_exact(*values))
        return Fraction((math.gcd if name == "gcd" else math.lcm)(*_whole(*values)))

    def call(self, name: str, argument: Number) -> Number:
        if argument and abs(self._context.mag(argument)) > 400:
            raise TooLarge("an argument too large")
        if name in ("ln", "log"):
            if not argument:
                raise ArithmeticError
            return self._context.ln(argument) / (self._context.ln(10) if name == "log" else 1)
        value = getattr(self._context, name)(self._context.convert(argument))
        if name in ("tan", "cot", "sec", "csc") and self._context.mag(value) > _POLE_BITS:
            raise ArithmeticError
        return value


def _is_whole(value: Number) -> bool:
    return isinstance(value, Fraction) and value.denominator == 1


def _exact(*values: Number) -> tuple[Fraction, ...]:
    """The values; raises Unreadable if one is inexact, for operations that jump."""
    if not all(isinstance(value, Fraction) for value in values):
        raise Unreadable("an inexact number")
    return values


def _whole(*values: Number) -> tuple[int, ...]:
    if not all(map(_is_whole, values)):
        raise Unreadable("a number that is no integer")
    return tuple(map(int, values))


_ARITHMETIC: Mapping[str, Callable[..., Number]] = {
    "plus": operator.add,
    "minus": operator.sub,
    "times": operator.mul,
    "over": operator.truediv,
    "negative": operator.neg,
    "absolute": abs,
}


@lru_cache(maxsize=1024)
def _remembered(tree: Tree, variables: frozenset[str], index: int) -> Value | Unreadable | None:
    """The value at one of POINTS points, or the error of `value_at`.

    No two names have one value at a point, and no author thought of these.
    """
    point = {}
    for name in variables:
        size = Fraction(101 + zlib.crc32(f"{name} {index}".encode()) % 9_973, 10_007)
        negative = index == 1 or (index == 2 and zlib.crc32(name.encode()) % 3 == 0)
        point[name] = (-size if negative else size) * (3 if index == 3 else 1)
    try:
        return value_at(tree, point)
    except Unreadable as error:
        return error


def _values(a: Expression, b: Expression) -> Iterator[tuple[Value | None, Value | None]]:
    """The values of two expressions at each point where one of them has any."""
    variables = a.variables | b.variables
    for index in range(POINTS if variables else 1):
        x, y = _remembered(a.tree, variables, index), _remembered(b.tree, variables, index)
        if isinstance(x, Unreadable):
            raise x
        if isinstance(y, Unreadable):
            raise y
        if x is not None or y is not None:
            yield x, y


def equal(a: Expression, b: Expression) -> bool:
    """Whether two expressions are equal wherever they are real and, if nowhere, everywhere.

    Raises TooLarge when a value passes the bounds, Unreadable for what has no number as value.
    """
    if a.tree in INFINITIES or b.tree in INFINITIES:
        return bool(a.tree == b.tree)
    verdicts: dict[bool, list[bool]] = {True: [], False: []}
    for pair in _values(a, b):
        x, y = pair
        counts = "i" in a.names | b.names or any(value is None or value.is_real for value in pair)
        verdict = x is not None and y is not None and x.equals(y)
        if counts and not verdict:
            return False
        verdicts[counts].append(verdict)
    decisive = verdicts[True] or verdicts[False]
    return bool(decisive) and all(decisive)


def proportional(a: Expression, b: Expression, positive: bool = False) -> bool:
    """Whether a is a constant times b, and not both nothing: a = 0 and b = 0 are one equation.

    positive: whether the constant must be positive, as for inequalities.
    Raises as `equal`.
    """
    if a.variables != b.variables or not a.variables:
        return False
    pairs: list[tuple[Value, Value]] = []
    for x, y in _values(a, b):
        if not (x and y and x.low and y.low and x.is_real and y.is_real):
            return False
        if positive and (x.real < 0) != (y.real < 0):
            return False
        pairs.append((x, y))
        if not x.times(pairs[0][1]).equals(pairs[0][0].times(y)):
            return False
    return len(pairs) >= 2
