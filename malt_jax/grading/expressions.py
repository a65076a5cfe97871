"""LaTeX arithmetic and algebra, read by a small grammar: a text becomes a tree.

A tree is a tuple: the name of an operation, then its operands; or the kind of a leaf, then its
content. Nothing here calls anything that a text names. Length and depth of a text are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Any

MAX_DEPTH = 25
MAX_TOKENS = 600
MAX_DIGITS = 1_000
"""Digits of a number."""
_MAX_POSTFIXES = 4

Tree = tuple[Any, ...]

INFINITY: Tree = ("infinity",)
INFINITIES: tuple[Tree, Tree] = (INFINITY, ("negative", INFINITY))

_TOKEN = re.compile(
    r"\s*(?:(?P<repeating>\d*\.\d*\\(?:overline|bar) ?\{\d+\})|(?P<number>\d+\.\d+|\.\d+|\d+)"
    r"|(?P<command>\\[A-Za-z]+)|(?P<letter>[A-Za-z]'*)|(?P<sign>[-+*/^_!(){}\[\]|,=]))"
)
_INVERTIBLE = ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")
_FUNCTIONS = {
    **{name: name for name in (*_INVERTIBLE, "coth", "exp", "ln", "log")},
    **{f"arc{name}": f"a{name}" for name in _INVERTIBLE},
    "lg": "log",
}
_GREEK = """
alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho
sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell
"""
# Before a bracket these letters are functions, of which only the texts can be compared.
_FUNCTION_LETTERS = frozenset("fgFGP")
_CLOSING = {
    **{"(": ")", "[": "]", "{": "}", "\\{": "\\}"},
    **{"\\lfloor": "\\rfloor", "\\lceil": "\\rceil"},
}
_SIGNS = {
    **{"*": "times", "\\cdot": "times", "\\times": "times", "/": "over", "\\div": "over"},
    **{"\\bmod": "mod", "\\mod": "mod"},
}


class Unreadable(ValueError):
    """The text is not of the grammar, or has no number as value."""


class TooLarge(Unreadable):
    """A value, or the work to find it, passes the bounds."""


@dataclass(frozen=True)
class Expression:
    """A text that was read: its tree, its variables, and whether it has an i."""

    tree: Tree
    variables: frozenset[str] = frozenset()
    is_complex: bool = False

    def minus(self, other: Expression) -> Expression:
        variables = self.variables | other.variables
        is_complex = self.is_complex or other.is_complex
        return Expression(("minus", self.tree, other.tree), variables, is_complex)

    def times(self, factor: Fraction) -> Expression:
        tree = ("times", self.tree, ("number", factor))
        return Expression(tree, self.variables, self.is_complex)


@lru_cache(maxsize=4096)
def read_expression(text: str) -> Expression:
    """Reads an expression such as "\\frac{1}{2}x^2 - \\sqrt 3" or "3\\pi".

    Raises Unreadable when the grammar has no place for it, TooLarge when it passes a bound.
    """
    reader = _Reader(list(_tokens(text)))
    tree = reader.sum()
    if reader.token:
        raise Unreadable(f"unexpected {reader.token!r}")
    return Expression(tree, frozenset(reader.variables), reader.is_complex)


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    """Pairs of a token's kind and its text."""
    position, text = 0, text.rstrip()
    for _ in range(MAX_TOKENS):
        if position == len(text):
            return
        match = _TOKEN.match(text, position)
        if match is None:
            raise Unreadable(f"unexpected {text[position]!r}")
        position = match.end()
        yield match.lastgroup or "", match[match.lastgroup or ""]
    raise TooLarge("too long")


def _decimal(text: str) -> Tree:
    if len(text) > MAX_DIGITS:
        raise TooLarge("a number of too many digits")
    return ("number", Fraction(text))


def _repeating(text: str) -> Tree:
    whole, digits, period = re.split(r"\.|\\(?:overline|bar) ?\{", text.rstrip("}"))
    places = 10 ** len(digits)
    repeated = Fraction(int(period), (10 ** len(period) - 1) * places)
    return ("number", int(whole or 0) + Fraction(int(digits or 0), places) + repeated)


@dataclass
class _Reader:
    """Recursive descent through the tokens. Methods read what they are named after."""

    tokens: list[tuple[str, str]]
    position: int = 0
    depth: int = 0
    bars: int = 0
    variables: set[str] = field(default_factory=set)
    bound: str = ""  # the variable of the sum or product that is being read
    is_complex: bool = False

    @property
    def token(self) -> str:
        return self.tokens[self.position][1] if self.position < len(self.tokens) else ""

    @property
    def kind(self) -> str:
        return self.tokens[self.position][0] if self.position < len(self.tokens) else ""

    def take(self, expected: str | None = None) -> str:
        token = self.token
        if not token or (expected is not None and token != expected):
            raise Unreadable(f"expected {expected}, got {token!r}")
        self.position += 1
        return token

    def sum(self) -> Tree:
        terms = [("plus", self.product())]
        while self.token in ("+", "-"):
            sign = "plus" if self.take() == "+" else "minus"
            terms.append((sign, self.product()))
        return terms[0][1] if len(terms) == 1 else ("chain", *terms)

    def product(self) -> Tree:
        negative = self.is_negated()
        factors = [("times", self.power())]
        while True:
            if sign := _SIGNS.get(self.token):
                self.take()
                minus = sign != "mod" and self.is_negated()
                factor = self.power()
                factors.append((sign, ("negative", factor) if minus else factor))
            elif self.starts_factor():
                before = self.tokens[self.position - 1][1]
                if self.kind in ("number", "repeating") and before not in (")", "]", "!"):
                    raise Unreadable("a number after a factor")
                factors.append(("times", self.power()))
            else:
                break
        total = factors[0][1] if len(factors) == 1 else ("chain", *factors)
        return ("negative", total) if negative else total

    def is_negated(self) -> bool:
        """Whether the signs before a factor make it negative."""
        negative = False
        while self.token in ("-", "+"):
            negative ^= self.take() == "-"
        return negative

    def starts_factor(self) -> bool:
        if self.kind in ("number", "repeating", "letter"):
            return True
        if self.kind == "command":
            return self.token in _COMMANDS or self.token in _CLOSING
        return self.token in ("(", "[", "{") or (self.token == "|" and not self.bars)

    def power(self) -> Tree:
        base = self.primary()
        for _ in range(_MAX_POSTFIXES):
            if self.token == "!":
                self.take()
                base = ("factorial", base)
            elif self.token != "^":
                return base
            else:
                self.take()
                if self.token == "\\circ":
                    self.take()
                    base = ("times", base, ("degree",))
                    continue
                base = ("power", base, self.argument(signed=True))
                if self.token == "^":
                    raise Unreadable("a double exponent")
        raise TooLarge("too many exponents and factorials of one factor")

    def argument(self, signed: bool = False) -> Tree:
        """The argument of a command or a sign: a group in braces, a digit, letter or command."""
        if self.token == "{":
            return self.group("{")
        if signed and self.token == "-":
            self.take()
            return ("negative", self.argument())
        if self.kind == "number":
            kind, digits = self.tokens[self.position]
            if "." not in digits and len(digits) > 1:  # \\frac12, x^10: one digit is taken
                parts = [(kind, digits[0]), (kind, digits[1:])]
                self.tokens[self.position : self.position + 1] = parts
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
        token = self.token
        if self.kind == "number":
            return self.mixed(_decimal(self.take()))
        if self.kind == "repeating":
            return _repeating(self.take())
        if self.kind == "letter":
            return self.letter()
        if token in ("(", "[", "{"):
            return self.group(token)
        if token == "|":
            self.take()
            self.bars += 1
            inner = self.sum()
            self.bars -= 1
            self.take("|")
            return ("absolute", inner)
        if token in ("\\lfloor", "\\lceil"):
            return (token[2:], self.group(token))
        if token in _COMMANDS:
            return _COMMANDS[token](self, self.take()[1:])
        raise Unreadable(f"unexpected {token!r}")

    def mixed(self, whole: Tree) -> Tree:
        """3\\frac{1}{2} is 3.5; 3\\frac{x}{2} is a product."""
        if self.token != "\\frac" or whole[1].denominator != 1:
            return whole
        start, saved = self.position, list(self.tokens)
        fraction = self.primary()
        if all(part[0] == "number" for part in fraction[1:]):
            return ("plus", whole, fraction)
        self.tokens, self.position = saved, start
        return whole

    def letter(self) -> Tree:
        name = self.take()
        if name == "i" != self.bound:
            self.is_complex = True
            return ("i",)
        if name == "e" and self.token != "_":
            return ("e",)
        if name in _FUNCTION_LETTERS and self.token == "(":
            raise Unreadable("a function of unknown meaning")
        return self.variable(name)

    def variable(self, name: str) -> Tree:
        if self.token == "_":
            self.take()
            name += "_"
            if self.token == "{":
                self.take()
                while self.token != "}":
                    name += self.take()
                self.take("}")
            else:
                name += self.take()
        if name != self.bound:
            self.variables.add(name)
        return ("variable", name)

    def function(self, command: str) -> Tree:
        name = _FUNCTIONS[command]
        power: Tree | None = None
        base: Tree | None = None
        while self.token in ("^", "_"):
            if self.take() == "^":
                power = self.argument(signed=True)
            elif name == "log":
                base = self.argument()
            else:
                raise Unreadable("a subscript of a function")
        bracketed = self.token in ("(", "{", "[")
        inner = self.group(self.token) if bracketed else self.bare_argument()
        if power == ("negative", ("number", Fraction(1))) and name in _INVERTIBLE:
            return ("call", f"a{name}", inner)
        if base is not None:
            called: Tree = ("over", ("call", "ln", inner), ("call", "ln", base))
        else:
            called = ("call", name, inner)
        return called if power is None else ("power", called, power)

    def bare_argument(self) -> Tree:
        """The argument of \\sin without brackets: factors up to a sign or another function."""
        negative = self.token == "-"
        if negative:
            self.take()
        factors = [("times", self.power())]
        while self.starts_factor() and self.token[1:] not in _FUNCTIONS and self.token != "(":
            factors.append(("times", self.power()))
        while self.token == "/":
            self.take()
            factors.append(("over", self.power()))
        total = ("chain", *factors)
        return ("negative", total) if negative else total

    def fraction(self, command: str) -> Tree:
        return ("over" if command == "frac" else "binomial", self.argument(), self.argument())

    def sqrt(self, command: str) -> Tree:
        index = self.group("[") if self.token == "[" else ("number", Fraction(2))
        return ("power", self.argument(), ("over", ("number", Fraction(1)), index))

    def several(self, command: str) -> Tree:
        """\\gcd(a, b, ...) and the like."""
        self.take("(")
        arguments = [self.sum()]
        while self.token == ",":
            self.take()
            arguments.append(self.sum())
        self.take(")")
        return ("several", command, *arguments)

    def series(self, command: str) -> Tree:
        """\\sum_{k=1}^n or \\prod_{k=1}^n of the product that follows."""
        if self.bound:
            raise TooLarge("a sum within a sum")
        self.take("_")
        self.take("{")
        name = self.take()
        self.take("=")
        low = self.sum()
        self.take("}")
        self.take("^")
        high = self.argument()
        self.bound = name
        body = self.product()
        self.bound = ""
        return ("series", command, name, low, high, body)

    def constant(self, command: str) -> Tree:
        return ("infinity" if command == "infty" else command,)

    def greek(self, command: str) -> Tree:
        return self.variable(f"\\{command}")


_COMMANDS: dict[str, Callable[[_Reader, str], Tree]] = {
    f"\\{name}": read
    for read, names in (
        (_Reader.fraction, ["frac", "binom"]),
        (_Reader.sqrt, ["sqrt"]),
        (_Reader.several, ["gcd", "lcm", "max", "min"]),
        (_Reader.series, ["sum", "prod"]),
        (_Reader.constant, ["pi", "infty"]),
        (_Reader.function, _FUNCTIONS),
        (_Reader.greek, _GREEK.split()),
    )
    for name in names
}
