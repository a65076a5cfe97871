"""The value of an expression at a point: an exact rational where it can be, else many digits.

All sizes are bounded: a value costs milliseconds, or raises TooLarge.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import mpmath

from malt_jax.grading.expressions import TooLarge, Tree, Unreadable

MAX_BITS = 60_000
"""Size of an exact integer."""
MAX_EXPONENT = 20_000
"""Of a power that is worked out exactly."""
MAX_FACTORIAL = 3_000
MAX_TERMS = 100
"""Of a sum or a product with bounds."""
MAX_MAGNITUDE = 100_000.0
"""Natural logarithm of the largest inexact value."""

# 50 and 110 digits, in contexts of their own: the precision of mpmath's global one is anybody's.
LOW, HIGH = mpmath.MPContext(), mpmath.MPContext()
LOW.dps, HIGH.dps = 50, 110

Number = Any  # Fraction, or mpf or mpc of one of the contexts: mpmath has no types


class _Undefined(ArithmeticError):
    """The expression has no value here: a division by zero, a pole."""


@dataclass(frozen=True)
class Evaluator:
    """Works out trees, with the variables at `values` and inexact numbers of mpmath's `context`."""

    context: Any
    values: Mapping[str, Fraction]

    def inexact(self, value: Number) -> Number:
        if isinstance(value, Fraction):
            return self.context.mpf(value.numerator) / value.denominator
        return value

    def __call__(self, tree: Tree) -> Number:
        head, *parts = tree
        if head == "number":
            return parts[0]
        if head == "variable":
            return self.values[parts[0]]
        if head in ("pi", "e", "i", "degree"):
            return {
                "pi": +self.context.pi,
                "e": +self.context.e,
                "i": self.context.mpc(0, 1),
                "degree": self.context.pi / 180,
            }[head]
        if head == "infinity":
            raise Unreadable("infinity in an expression")
        if head == "call":
            return self.checked(self.call(parts[0], self(parts[1])))
        if head == "series":
            return self.series(*parts)
        if head == "several":
            return self.several(parts[0], list(map(self, parts[1:])))
        if head == "chain":
            total = self(parts[0][1])
            for sign, part in parts[1:]:
                total = self.checked(getattr(self, _METHODS[sign])(total, self(part)))
            return total
        return self.checked(getattr(self, _METHODS[head])(*map(self, parts)))

    def checked(self, value: Number) -> Number:
        if isinstance(value, Fraction):
            if max(value.numerator.bit_length(), value.denominator.bit_length()) > MAX_BITS:
                raise TooLarge("a number of too many digits")
            return value
        if self.context.isnan(value) or self.context.isinf(value):
            raise _Undefined
        if value and abs(self.context.mag(value)) > MAX_MAGNITUDE * 1.5:
            raise TooLarge("a value too large")
        return value

    def both(self, a: Number, b: Number) -> tuple[Number, Number]:
        if isinstance(a, Fraction) and isinstance(b, Fraction):
            return a, b
        return self.inexact(a), self.inexact(b)

    def plus(self, a: Number, b: Number) -> Number:
        a, b = self.both(a, b)
        return a + b

    def minus(self, a: Number, b: Number) -> Number:
        a, b = self.both(a, b)
        return a - b

    def times(self, a: Number, b: Number) -> Number:
        a, b = self.both(a, b)
        return a * b

    def divided(self, a: Number, b: Number) -> Number:
        a, b = self.both(a, b)
        if not b:
            raise _Undefined
        return a / b

    def negative(self, a: Number) -> Number:
        return -a

    def absolute(self, a: Number) -> Number:
        return abs(a)

    def floor(self, a: Number) -> Number:
        if isinstance(a, Fraction):
            return Fraction(math.floor(a))
        raise Unreadable("the floor of an inexact number")

    def ceiling(self, a: Number) -> Number:
        return -self.floor(-a)

    def power(self, base: Number, exponent: Number) -> Number:
        if isinstance(exponent, Fraction):
            if exponent.denominator == 1:
                return self.whole_power(base, int(exponent))
            if exponent.denominator % 2 and self.is_negative(base):
                # An odd root of a negative number is taken to be the real one.
                size = self.power(-base, exponent)
                return -size if exponent.numerator % 2 else size
        base, exponent = self.inexact(base), self.inexact(exponent)
        if not base:
            if self.context.re(exponent) <= 0:
                raise _Undefined
            return Fraction(0)
        if abs(exponent) * (abs(self.context.mag(base)) + 1) > MAX_MAGNITUDE:
            raise TooLarge("a power too large")
        return self.context.power(base, exponent)

    def whole_power(self, base: Number, exponent: int) -> Number:
        if not base and exponent <= 0:
            raise _Undefined
        if abs(exponent) > MAX_EXPONENT:
            if base in (0, 1, -1):
                return base if exponent % 2 else base * base
            raise TooLarge("an exponent too large")
        if isinstance(base, Fraction):
            bits = max(base.numerator.bit_length(), base.denominator.bit_length())
            if bits > 1 and (bits - 1) * abs(exponent) > MAX_BITS:
                raise TooLarge("a power too large")
            return base**exponent
        if abs(exponent) * (abs(self.context.mag(base)) + 1) > MAX_MAGNITUDE:
            raise TooLarge("a power too large")
        return base**exponent

    def is_negative(self, value: Number) -> bool:
        if isinstance(value, Fraction):
            return value < 0
        return not isinstance(value, self.context.mpc) and value < 0

    def root(self, radicand: Number, index: Number) -> Number:
        if not isinstance(index, Fraction) or not index:
            raise Unreadable("an index that is no number")
        if isinstance(radicand, Fraction) and index == 2 and radicand >= 0:
            top, bottom = math.isqrt(radicand.numerator), math.isqrt(radicand.denominator)
            if top * top == radicand.numerator and bottom * bottom == radicand.denominator:
                return Fraction(top, bottom)
        return self.power(radicand, 1 / index)

    def factorial(self, a: Number) -> Number:
        if isinstance(a, Fraction) and a.denominator == 1:
            if a < 0:
                raise _Undefined
            if a > MAX_FACTORIAL:
                raise TooLarge("a factorial too large")
            return Fraction(math.factorial(int(a)))
        if abs(a) > 1000:
            raise TooLarge("a factorial too large")
        return self.context.gamma(self.inexact(a) + 1)

    def several(self, name: str, values: list[Number]) -> Number:
        if not all(isinstance(value, Fraction) for value in values):
            raise Unreadable(f"{name} of inexact numbers")
        if name in ("max", "min"):
            return max(values) if name == "max" else min(values)
        if not all(value.denominator == 1 for value in values):
            raise Unreadable(f"{name} of other than integers")
        function = math.gcd if name == "gcd" else math.lcm
        return self.checked(Fraction(function(*map(int, values))))

    def series(self, kind: str, name: str, low: Tree, high: Tree, body: Tree) -> Number:
        first, last = self(low), self(high)
        if not all(isinstance(end, Fraction) and end.denominator == 1 for end in (first, last)):
            raise Unreadable("a sum with bounds that are no integers")
        if not 0 <= last - first < MAX_TERMS:
            raise TooLarge("a sum of too many terms")
        total: Number = Fraction(0 if kind == "sum" else 1)
        for k in range(int(first), int(last) + 1):
            term = Evaluator(self.context, {**self.values, name: Fraction(k)})(body)
            total = self.checked((self.plus if kind == "sum" else self.times)(total, term))
        return total

    def modulo(self, a: Number, b: Number) -> Number:
        if not isinstance(a, Fraction) or not isinstance(b, Fraction):
            raise Unreadable("a remainder of inexact numbers")
        if not b:
            raise _Undefined
        return a % b

    def binomial(self, n: Number, k: Number) -> Number:
        if all(isinstance(value, Fraction) and value.denominator == 1 for value in (n, k)):
            if not 0 <= k <= n or n > MAX_FACTORIAL:
                raise TooLarge("a binomial coefficient out of bounds")
            return Fraction(math.comb(int(n), int(k)))
        if not isinstance(k, Fraction) or k.denominator != 1 or not 0 <= k <= 50:
            raise Unreadable("a binomial coefficient of other than integers")
        product: Number = Fraction(1)
        for i in range(int(k)):
            product = self.checked(self.times(product, self.minus(n, Fraction(i))))
        return self.divided(product, Fraction(math.factorial(int(k))))

    def call(self, name: str, argument: Number) -> Number:
        value = self.inexact(argument)
        if value and abs(self.context.mag(value)) > 400:
            raise TooLarge("an argument too large")
        if name == "exp" and abs(value) > MAX_MAGNITUDE:
            raise TooLarge("a power too large")
        if name in ("ln", "log"):
            if not value:
                raise _Undefined
            return self.context.ln(value) / (self.context.ln(10) if name == "log" else 1)
        return getattr(self.context, name)(value)


_METHODS = {
    "+": "plus",
    "-": "minus",
    "*": "times",
    "/": "divided",
    "^": "power",
    "mod": "modulo",
    "!": "factorial",
    "neg": "negative",
    "abs": "absolute",
    "floor": "floor",
    "ceil": "ceiling",
    "root": "root",
    "binom": "binomial",
}


def value_at(tree: Tree, point: Mapping[str, Fraction], context: Any) -> Number | None:
    """The value of a tree, or None where it has none.

    Raises TooLarge when it passes the bounds, Unreadable for what has no number as value.
    """
    try:
        return Evaluator(context, point)(tree)
    except (ArithmeticError, mpmath.libmp.NoConvergence):
        return None
    except (Unreadable, TooLarge):
        raise
    except (ValueError, OverflowError):
        return None


def is_real(value: Number) -> bool:
    """Whether a value is real, up to rounding."""
    if isinstance(value, Fraction) or not hasattr(value, "imag"):
        return True
    return abs(value.imag) <= abs(value.real) * mpmath.mpf(10) ** -40
