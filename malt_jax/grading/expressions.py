"""LaTeX arithmetic and algebra, read by a small grammar and compared by value.

A text becomes a tree; a tree is evaluated at fixed points, as exact rationals where it can be and
with 50 and again with 110 digits where not. Two trees are equal when their values are, at every
point. Nothing here calls anything that a text names, and all sizes are bounded: an expression costs
milliseconds, or raises TooLarge.
"""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Any

import mpmath

MAX_DEPTH = 25
MAX_TOKENS = 600
MAX_BITS = 60_000
"""Size of an exact integer."""
MAX_EXPONENT = 20_000
"""Of a power that is worked out exactly."""
_MAX_POSTFIXES = 4
MAX_FACTORIAL = 3_000
MAX_MAGNITUDE = 100_000.0
"""Natural logarithm of the largest inexact value."""

# Contexts of their own: the precision of mpmath's global one is anybody's.
_LOW, _HIGH = mpmath.MPContext(), mpmath.MPContext()
_LOW.dps, _HIGH.dps = 50, 110

Number = Any  # Fraction, or mpf or mpc of one of the contexts: mpmath has no types
Tree = tuple[Any, ...]


class Unreadable(ValueError):
    """The text is not of the grammar."""


class TooLarge(ValueError):
    """A value, or the work to find it, passes the bounds."""


class _Undefined(ArithmeticError):
    """The expression has no value here: a division by zero, a pole."""


@dataclass(frozen=True)
class Expression:
    """A text that was read: its tree and its variables."""

    tree: Tree
    variables: frozenset[str]
    is_complex: bool

    @property
    def is_constant(self) -> bool:
        return not self.variables


_TOKEN = re.compile(
    r"\s*(?:(?P<repeating>\d*\.\d*\\(?:overline|bar) ?\{\d+\})|(?P<number>\d+\.\d+|\.\d+|\d+)"
    r"|(?P<command>\\[A-Za-z]+)|(?P<letter>[A-Za-z]'*)|(?P<sign>[-+*/^_!(){}\[\]|,]))"
)
_INVERTIBLE = ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")
_FUNCTIONS: Mapping[str, str] = {
    **{name: name for name in (*_INVERTIBLE, "coth", "exp", "ln", "log")},
    **{f"arc{name}": f"a{name}" for name in _INVERTIBLE},
    "lg": "log",
}
_GREEK_NAMES = """
alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho
sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell
"""
_GREEK = frozenset(_GREEK_NAMES.split())
# Before a bracket these letters are functions, of which only the texts can be compared.
_FUNCTION_LETTERS = frozenset("fgFGP")
_CLOSING = {"(": ")", "[": "]", "{": "}", "\\{": "\\}", "\\lfloor": "\\rfloor"}


@dataclass
class _Reader:
    tokens: list[tuple[str, str]]
    position: int = 0
    depth: int = 0
    bars: int = 0
    variables: set[str] = field(default_factory=set)
    is_complex: bool = False

    def peek(self) -> str:
        return self.tokens[self.position][1] if self.position < len(self.tokens) else ""

    def kind(self) -> str:
        return self.tokens[self.position][0] if self.position < len(self.tokens) else ""

    def take(self, expected: str | None = None) -> str:
        token = self.peek()
        if not token or (expected is not None and token != expected):
            raise Unreadable(f"expected {expected}, got {token!r}")
        self.position += 1
        return token

    def sum(self) -> Tree:
        terms = [("+", self.product())]
        while self.peek() in ("+", "-"):
            terms.append((self.take(), self.product()))
        return terms[0][1] if len(terms) == 1 else ("chain", *terms)

    def product(self) -> Tree:
        negative = self.signs()
        factors = [("*", self.power())]
        while True:
            token = self.peek()
            if token in ("*", "\\cdot", "\\times", "/", "\\div"):
                self.take()
                sign = "/" if token in ("/", "\\div") else "*"
                minus = self.signs()
                factor = self.power()
                factors.append((sign, ("neg", factor) if minus else factor))
            elif token in ("\\bmod", "\\mod"):
                self.take()
                factors.append(("mod", self.power()))
            elif self.starts_factor():
                if self.kind() in ("number", "repeating"):
                    before = self.tokens[self.position - 1]
                    if before[0] != "sign" or before[1] not in ")]!":
                        raise Unreadable("a number behind a factor")
                factors.append(("*", self.power()))
            else:
                break
        total = factors[0][1] if len(factors) == 1 else ("chain", *factors)
        return ("neg", total) if negative else total

    def signs(self) -> bool:
        """Whether the signs before a factor make it negative."""
        negative = False
        while self.peek() in ("-", "+"):
            negative ^= self.take() == "-"
        return negative

    def starts_factor(self) -> bool:
        token, kind = self.peek(), self.kind()
        if kind in ("number", "repeating", "letter"):
            return True
        if kind == "command":
            return token in _COMMANDS or token in _CLOSING
        return token in ("(", "[", "{") or (token == "|" and not self.bars)

    def power(self) -> Tree:
        base = self.primary()
        for _ in range(_MAX_POSTFIXES):
            token = self.peek()
            if token == "^":
                self.take()
                if self.peek() == "\\circ":
                    self.take()
                    base = ("*", base, ("degree",))
                    continue
                exponent = self.argument(signed=True)
                if self.peek() == "^":
                    raise Unreadable("a double exponent")
                base = ("^", base, exponent)
            elif token == "!":
                self.take()
                base = ("!", base)
            else:
                return base
        raise TooLarge("too many exponents and factorials of one factor")

    def argument(self, signed: bool = False) -> Tree:
        """What a command or a sign takes: a group in braces, or one digit, letter or command."""
        if self.peek() == "{":
            return self.group("{")
        if signed and self.peek() == "-":
            self.take()
            return ("neg", self.argument())
        if self.kind() == "number":
            kind, digits = self.tokens[self.position]
            if "." not in digits and len(digits) > 1:  # \\frac12, x^10: one digit is taken
                self.tokens[self.position : self.position + 1] = [
                    (kind, digits[0]),
                    (kind, digits[1:]),
                ]
            return ("number", Fraction(self.take()))
        return self.primary()

    def group(self, opening: str) -> Tree:
        self.take(opening)
        bars, self.bars = self.bars, 0
        inner = self.sum()
        self.bars = bars
        self.take(_CLOSING[opening])
        return inner

    def primary(self) -> Tree:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise TooLarge("nested too deeply")
        tree = self.atom()
        self.depth -= 1
        return tree

    def atom(self) -> Tree:
        token, kind = self.peek(), self.kind()
        if kind == "number":
            self.take()
            return self.mixed(("number", _decimal(token)))
        if kind == "repeating":
            self.take()
            return ("number", _repeating(token))
        if kind == "letter":
            return self.letter()
        if token in ("(", "[", "{"):
            return self.group(token)
        if token == "|":
            self.take()
            self.bars += 1
            inner = self.sum()
            self.bars -= 1
            self.take("|")
            return ("abs", inner)
        if token == "\\lfloor":
            return ("floor", self.group(token))
        if token in _COMMANDS:
            return _COMMANDS[token](self)
        raise Unreadable(f"unexpected {token!r}")

    def mixed(self, whole: Tree) -> Tree:
        """3\\frac{1}{2} is 3.5; 3\\frac{x}{2} is a product."""
        if self.peek() != "\\frac" or whole[1].denominator != 1:
            return whole
        start = self.position
        saved = list(self.tokens)
        fraction = self.primary()
        if all(part[0] == "number" for part in fraction[1:]):
            return ("+", whole, fraction)
        self.tokens, self.position = saved, start
        return whole

    def letter(self) -> Tree:
        name = self.take()
        if name == "i":
            self.is_complex = True
            return ("i",)
        if name == "e" and self.peek() != "_":
            return ("e",)
        if name in _FUNCTION_LETTERS and self.peek() == "(":
            raise Unreadable("a function of unknown meaning")
        return self.variable(name)

    def variable(self, name: str) -> Tree:
        if self.peek() == "_":
            self.take()
            if self.peek() == "{":
                self.take()
                parts = []
                while self.peek() != "}":
                    parts.append(self.take())
                self.take("}")
                name += "_" + "".join(parts)
            else:
                name += "_" + self.take()
        self.variables.add(name)
        return ("variable", name)

    def function(self, name: str) -> Tree:
        power: Tree | None = None
        base: Tree | None = None
        while self.peek() in ("^", "_"):
            if self.take() == "^":
                power = self.argument(signed=True)
            elif name == "log":
                base = self.argument()
            else:
                raise Unreadable("a subscript of a function")
        bracket = self.peek()
        inner = self.group(bracket) if bracket in ("(", "{", "[") else self.bare_argument()
        if power == ("neg", ("number", Fraction(1))) and name in _INVERTIBLE:
            return ("call", f"a{name}", inner)
        if base is not None:
            called: Tree = ("/", ("call", "ln", inner), ("call", "ln", base))
        else:
            called = ("call", name, inner)
        return called if power is None else ("^", called, power)

    def bare_argument(self) -> Tree:
        """What \\sin takes without brackets: factors up to a sign or another function."""
        negative = self.peek() == "-"
        if negative:
            self.take()
        factors = [("*", self.power())]
        while self.starts_factor() and self.peek()[1:] not in _FUNCTIONS and self.peek() != "(":
            factors.append(("*", self.power()))
        while self.peek() == "/":
            factors.append((self.take(), self.power()))
        total = ("chain", *factors)
        return ("neg", total) if negative else total

    def frac(self) -> Tree:
        self.take()
        return ("/", self.argument(), self.argument())

    def sqrt(self) -> Tree:
        self.take()
        index: Tree = ("number", Fraction(2))
        if self.peek() == "[":
            index = self.group("[")
        return ("root", self.argument(), index)

    def several(self) -> Tree:
        """\\gcd(a, b, ...) and the like."""
        name = self.take()[1:]
        self.take("(")
        arguments = [self.sum()]
        while self.peek() == ",":
            self.take()
            arguments.append(self.sum())
        self.take(")")
        return ("several", name, *arguments)

    def binom(self) -> Tree:
        self.take()
        return ("binom", self.argument(), self.argument())


def _command_function(name: str) -> Callable[[_Reader], Tree]:
    def read_function(reader: _Reader) -> Tree:
        reader.take()
        return reader.function(name)

    return read_function


def _constant(name: str) -> Callable[[_Reader], Tree]:
    def read_constant(reader: _Reader) -> Tree:
        reader.take()
        return (name,)

    return read_constant


_COMMANDS: dict[str, Callable[[_Reader], Tree]] = {
    "\\frac": _Reader.frac,
    "\\sqrt": _Reader.sqrt,
    "\\binom": _Reader.binom,
    **dict.fromkeys(["\\gcd", "\\lcm", "\\max", "\\min"], _Reader.several),
    "\\pi": _constant("pi"),
    "\\infty": _constant("infinity"),
    **{f"\\{name}": _command_function(called) for name, called in _FUNCTIONS.items()},
    **{f"\\{name}": lambda reader: reader.variable(reader.take()) for name in _GREEK},
}


def _decimal(text: str) -> Fraction:
    if len(text) > 1_000:
        raise TooLarge("a number of more than 1,000 digits")
    return Fraction(text)


def _repeating(text: str) -> Fraction:
    whole, digits, period = re.split(r"\.|\\(?:overline|bar) ?\{", text.rstrip("}"))
    places = 10 ** len(digits)
    repeated = Fraction(int(period), (10 ** len(period) - 1) * places)
    return int(whole or 0) + Fraction(int(digits or 0), places) + repeated


@lru_cache(maxsize=4096)
def read(text: str) -> Expression:
    """Reads an expression such as "\\frac{1}{2}x^2 - \\sqrt 3" or "3\\pi".

    Raises Unreadable when the grammar has no place for it, TooLarge when it passes a bound.
    """
    tokens = list(_tokens(text))
    reader = _Reader(tokens)
    tree = reader.sum()
    if reader.position != len(reader.tokens):
        raise Unreadable(f"unexpected {reader.peek()!r}")
    return Expression(tree, frozenset(reader.variables), reader.is_complex)


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    position, count = 0, 0
    text = text.rstrip()
    while position < len(text):
        match = _TOKEN.match(text, position)
        if match is None:
            raise Unreadable(f"unexpected {text[position]!r}")
        count += 1
        if count > MAX_TOKENS:
            raise TooLarge("too long")
        position = match.end()
        assert match.lastgroup is not None
        yield match.lastgroup, match[match.lastgroup]


@dataclass(frozen=True)
class _Evaluator:
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
    "root": "root",
    "binom": "binomial",
}
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


def _value(tree: Tree, point: Mapping[str, Fraction], context: Any) -> Number | None:
    """The value of a tree, or None where it has none."""
    try:
        return _Evaluator(context, point)(tree)
    except (ArithmeticError, mpmath.libmp.NoConvergence):
        return None
    except (Unreadable, TooLarge):
        raise
    except (ValueError, OverflowError):
        return None


def _is_real(value: Number) -> bool:
    if isinstance(value, Fraction) or not hasattr(value, "imag"):
        return True
    return abs(value.imag) <= abs(value.real) * mpmath.mpf(10) ** -40


def _equal_at(a: Tree, b: Tree, point: Mapping[str, Fraction]) -> bool | None:
    """Whether two trees have one value at a point; None where neither has one."""
    low_a, low_b = _value(a, point, _LOW), _value(b, point, _LOW)
    if low_a is None or low_b is None:
        return None if low_a is None and low_b is None else False
    if isinstance(low_a, Fraction) and isinstance(low_b, Fraction):
        return low_a == low_b
    low, low_size = _gap(_LOW, low_a, low_b), _size(_LOW, low_a, low_b)
    if low > low_size * _LOW.mpf(10) ** -40 and low > _LOW.mpf(10) ** -40:
        return False
    high_a, high_b = _value(a, point, _HIGH), _value(b, point, _HIGH)
    if high_a is None or high_b is None:
        return False
    high, high_size = _gap(_HIGH, high_a, high_b), _size(_HIGH, high_a, high_b)
    # Rounding errors shrink with the precision; a true difference stays, however small it is.
    shrunk = _HIGH.mpf(10) ** -40
    return bool(
        high <= high_size * _HIGH.mpf(10) ** -95
        or (low and high <= low * shrunk)
        or high_size <= (low_size or 1) * (shrunk if low_size else _HIGH.mpf(10) ** -95)
    )


def _gap(context: Any, a: Number, b: Number) -> Number:
    evaluate = _Evaluator(context, {})
    return abs(evaluate.inexact(a) - evaluate.inexact(b))


def _size(context: Any, a: Number, b: Number) -> Number:
    evaluate = _Evaluator(context, {})
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
        value_a, value_b = _value(a.tree, point, _LOW), _value(b.tree, point, _LOW)
        if value_a is None and value_b is None:
            continue
        verdict = _equal_at(a.tree, b.tree, point) is True
        if everywhere or any(v is None or _is_real(v) for v in (value_a, value_b)):
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
        value_a, value_b = _value(a.tree, point, _LOW), _value(b.tree, point, _LOW)
        if value_a is None or value_b is None:
            if value_a is not None or value_b is not None:
                return False
            continue
        if not value_a or not value_b or not _is_real(value_a) or not _is_real(value_b):
            return False
        evaluate = _Evaluator(_LOW, {})
        ratio = evaluate.divided(value_a, value_b)
        ratio = ratio if isinstance(ratio, Fraction) else _LOW.re(ratio)
        if positive and ratio < 0:
            return False
        if first is None:
            first = ratio
        elif isinstance(ratio, Fraction) and isinstance(first, Fraction):
            if ratio != first:
                return False
        elif _gap(_LOW, ratio, first) > _size(_LOW, ratio, first) * _LOW.mpf(10) ** -40:
            return False
        seen += 1
    return seen >= 2


INFINITY: Tree = ("infinity",)
MINUS_INFINITY: Tree = ("neg", INFINITY)


def difference(a: Expression, b: Expression) -> Expression:
    """a - b."""
    tree = ("-", a.tree, b.tree)
    return Expression(tree, a.variables | b.variables, a.is_complex or b.is_complex)


def scaled(a: Expression, factor: Fraction) -> Expression:
    """a times a rational."""
    return Expression(("*", a.tree, ("number", factor)), a.variables, a.is_complex)
