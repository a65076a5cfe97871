"""LaTeX arithmetic and algebra, read by a small grammar: a text becomes a tree.

Nothing here calls anything that a text names. The length and the depth of a text are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache

from malt_jax.grading.expressions import Expression, TooLarge, Tree, Unreadable

MAX_DEPTH = 25
MAX_TOKENS = 600
_MAX_POSTFIXES = 4

_TOKEN = re.compile(
    r"\s*(?:(?P<repeating>\d*\.\d*\\(?:overline|bar) ?\{\d+\})|(?P<number>\d+\.\d+|\.\d+|\d+)"
    r"|(?P<command>\\[A-Za-z]+)|(?P<letter>[A-Za-z]'*)|(?P<sign>[-+*/^_!(){}\[\]|,=]))"
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
_CLOSING = {
    "(": ")",
    "[": "]",
    "{": "}",
    "\\{": "\\}",
    "\\lfloor": "\\rfloor",
    "\\lceil": "\\rceil",
}


@dataclass
class _Reader:
    tokens: list[tuple[str, str]]
    position: int = 0
    depth: int = 0
    bars: int = 0
    variables: set[str] = field(default_factory=set)
    bound: set[str] = field(default_factory=set)
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
        if token in ("\\lfloor", "\\lceil"):
            return (token[2:], self.group(token))
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
        if name == "i" and name not in self.bound:
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
        if name not in self.bound:
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

    def series(self) -> Tree:
        """\\sum_{k=1}^n and \\prod, of the product that follows."""
        kind = self.take()[1:]
        self.take("_")
        self.take("{")
        name = self.take()
        self.take("=")
        low = self.sum()
        self.take("}")
        self.take("^")
        high = self.argument()
        if self.bound:
            raise TooLarge("a sum within a sum")
        self.bound.add(name)
        body = self.product()
        self.bound.remove(name)
        return ("series", kind, name, low, high, body)

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
    **dict.fromkeys(["\\sum", "\\prod"], _Reader.series),
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
