"""LaTeX arithmetic and algebra, read by a small grammar: a text becomes a tree.

A tree is a tuple: the name of an operation, then its operands; or the kind of a leaf, then its
content. Nothing here calls anything that a text names. Length and depth of a text are bounded.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import lru_cache
from typing import Any

MAX_DEPTH = 25
MAX_TOKENS = 600
MAX_DIGITS = 1_000  # of a number
_MAX_POSTFIXES = 4

Tree = tuple[Any, ...]

INFINITY: Tree = ("name", "\\infty")
INFINITIES: tuple[Tree, Tree] = (INFINITY, ("negative", INFINITY))
_CONSTANTS = frozenset(["\\pi", "e", "i", "\\infty"])

_TOKEN = re.compile(
    r"[0-9]*\.[0-9]*\\(?:overline|bar) ?\{[0-9]+\}"  # 0.1\overline{6}
    # 3\frac{1}{2} is 3.5; x^3\frac{1}{2} is a product
    r"|(?<![_^])[0-9]+ ?\\frac ?\{ ?[0-9]+ ?\} ?\{ ?[0-9]+ ?\}"
    r"|[0-9]+\.[0-9]+|\.[0-9]+|[0-9]+|\\[A-Za-z]+|[A-Za-z]'*|\S"
)
_INVERTIBLE = ("sin", "cos", "tan", "cot", "sec", "csc", "sinh", "cosh", "tanh")
_FUNCTIONS = {
    **{name: name for name in (*_INVERTIBLE, "coth", "exp", "ln", "log")},
    **{f"arc{name}": f"a{name}" for name in _INVERTIBLE},
    "lg": "log",
}
_LETTER_COMMANDS = """
alpha beta gamma delta epsilon varepsilon zeta eta theta vartheta iota kappa lambda mu nu xi rho
sigma tau upsilon phi varphi chi psi omega Gamma Delta Theta Lambda Xi Pi Sigma Phi Psi Omega ell
pi infty
"""
_LETTERS = frozenset(f"\\{name}" for name in _LETTER_COMMANDS.split())
# Before a bracket these letters are functions, of which only the texts can be compared.
_FUNCTION_LETTERS = frozenset("fgFGP")
_CLOSING = {"(": ")", "[": "]", "{": "}", "\\lfloor": "\\rfloor", "\\lceil": "\\rceil"}
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
    """A text that was read: its tree, and its free variables and constants by name."""

    tree: Tree
    names: frozenset[str] = frozenset()

    @property
    def variables(self) -> frozenset[str]:
        return self.names - _CONSTANTS

    def minus(self, other: Expression) -> Expression:
        return Expression(("minus", self.tree, other.tree), self.names | other.names)

    def over(self, other: Expression) -> Expression:
        return Expression(("over", self.tree, other.tree), self.names | other.names)

    def times(self, factor: Fraction) -> Expression:
        return Expression(("times", self.tree, ("number", factor)), self.names)


@lru_cache(maxsize=4096)
def read_expression(text: str) -> Expression:
    """Reads an expression such as "\\frac{1}{2}x^2 - \\sqrt 3" or "3\\pi".

    Raises Unreadable for text outside the grammar, TooLarge when it passes a bound.
    """
    tokens = _TOKEN.findall(text)
    if len(tokens) > MAX_TOKENS:
        raise TooLarge("too long")
    reader = _Reader([*tokens, ""])
    tree = reader.sum()
    if reader.token:
        raise Unreadable(f"unexpected {reader.token!r}")
    return Expression(tree, frozenset(reader.names))


def _is_number(token: str) -> bool:
    return token[:1].isdecimal() or (token[:1] == "." != token)


def _is_letter(token: str) -> bool:
    return token[:1].isascii() and token[:1].isalpha()


def _number(token: str) -> Tree:
    if len(token) > MAX_DIGITS:
        raise TooLarge("a number of too many digits")
    if "frac" in token:
        whole, top, bottom = (_number(part) for part in re.findall("[0-9]+", token))
        return ("plus", whole, ("over", top, bottom))
    plain, _, period = re.sub(r"\\(?:overline|bar) ?|\}", "", token).partition("{")
    value = Fraction(plain.removesuffix(".") or 0)
    if period:
        places = len(plain.partition(".")[2])
        value += Fraction(int(period), (10 ** len(period) - 1) * 10**places)
    return ("number", value)


def _chain(operands: list[tuple[str, Tree]]) -> Tree:
    return operands[0][1] if len(operands) == 1 else ("chain", *operands)


def _negative(tree: Tree, negative: bool) -> Tree:
    return ("negative", tree) if negative else tree


@dataclass
class _Reader:
    """Recursive descent through the tokens. Methods read what they are named after."""

    tokens: list[str]  # the last one is empty
    position: int = 0
    depth: int = 0
    bars: int = 0
    names: set[str] = field(default_factory=set)
    bound: str = ""  # the variable of the sum or product that is being read

    @property
    def token(self) -> str:
        return self.tokens[self.position]

    def take(self, expected: str | None = None) -> str:
        token = self.token
        if not token or (expected is not None and token != expected):
            raise Unreadable(f"expected {expected}, got {token!r}")
        self.position += 1
        return token

    def accept(self, token: str) -> bool:
        """Takes a token if it is the next one."""
        found = self.token == token
        self.position += found
        return found

    def sum(self) -> Tree:
        terms = [("plus", self.product())]
        while self.token in ("+", "-"):
            sign = "plus" if self.take() == "+" else "minus"
            terms.append((sign, self.product()))
        return _chain(terms)

    def product(self) -> Tree:
        negative = self.is_negated()
        factors = [("times", self.power())]
        while True:
            if sign := _SIGNS.get(self.token):
                self.take()
                minus = sign != "mod" and self.is_negated()
                factors.append((sign, _negative(self.power(), minus)))
            elif self.starts_factor():
                before = self.tokens[self.position - 1]
                if _is_number(self.token) and before not in (")", "]", "!"):
                    raise Unreadable("a number after a factor")
                factors.append(("times", self.power()))
            else:
                return _negative(_chain(factors), negative)

    def is_negated(self) -> bool:
        """Whether the signs before a factor make it negative."""
        negative = False
        while self.token in ("-", "+"):
            negative ^= self.take() == "-"
        return negative

    def starts_factor(self) -> bool:
        if self.token == "|":
            return not self.bars
        is_command = self.token in _COMMANDS or self.token in _LETTERS or self.token in _CLOSING
        return is_command or _is_letter(self.token) or _is_number(self.token)

    def power(self) -> Tree:
        base = self.primary()
        for _ in range(_MAX_POSTFIXES):
            if self.accept("!"):
                base = ("factorial", base)
            elif not self.accept("^"):
                return base
            elif self.accept("\\circ"):
                base = ("times", base, ("name", "\\circ"))
            else:
                base = ("power", base, self.argument(signed=True))
                if self.token == "^":
                    raise Unreadable("a double exponent")
        raise TooLarge("too many exponents and factorials of one factor")

    def argument(self, signed: bool = False) -> Tree:
        """The argument of a command or a sign: a group in braces, a digit, letter or command."""
        if self.token == "{":
            return self.group("{")
        if signed and self.accept("-"):
            return ("negative", self.argument())
        token = self.token
        if token.isdecimal() and len(token) > 1:  # \\frac12, x^10: one digit is taken
            self.tokens[self.position : self.position + 1] = [token[0], token[1:]]
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
        if _is_number(token):
            return _number(self.take())
        if _is_letter(token) or token in _LETTERS:
            return self.name(self.take())
        if token in ("(", "[", "{"):
            return self.group(token)
        if self.accept("|"):
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

    def name(self, name: str) -> Tree:
        """A letter or a command for one, with its subscript."""
        if name in _FUNCTION_LETTERS and self.token == "(":
            raise Unreadable("a function of unknown meaning")
        if self.accept("_"):
            braced = self.accept("{")
            name += "_" + self.take()
            while braced and not self.accept("}"):
                name += self.take()
        if name != self.bound:
            self.names.add(name)
        return ("name", name)

    def function(self, command: str) -> Tree:
        name = _FUNCTIONS[command]
        power = base = None
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
        called: Tree = ("call", name, inner)
        if base is not None:
            called = ("over", ("call", "ln", inner), ("call", "ln", base))
        return called if power is None else ("power", called, power)

    def bare_argument(self) -> Tree:
        """The argument of \\sin without brackets: factors up to a sign or another function."""
        negative = self.accept("-")
        factors = [("times", self.power())]
        while self.starts_factor() and self.token[1:] not in _FUNCTIONS and self.token != "(":
            factors.append(("times", self.power()))
        while self.accept("/"):
            factors.append(("over", self.power()))
        return _negative(_chain(factors), negative)

    def fraction(self, command: str) -> Tree:
        return ("over" if command == "frac" else "binomial", self.argument(), self.argument())

    def sqrt(self, command: str) -> Tree:
        index = self.group("[") if self.token == "[" else ("number", Fraction(2))
        return ("power", self.argument(), ("over", ("number", Fraction(1)), index))

    def several(self, command: str) -> Tree:
        """\\gcd(a, b, ...) and the like."""
        self.take("(")
        arguments = [self.sum()]
        while self.accept(","):
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


_COMMANDS: dict[str, Callable[[_Reader, str], Tree]] = {
    f"\\{name}": read
    for read, names in (
        (_Reader.fraction, ["frac", "binom"]),
        (_Reader.sqrt, ["sqrt"]),
        (_Reader.several, ["gcd", "lcm", "max", "min"]),
        (_Reader.series, ["sum", "prod"]),
        (_Reader.function, _FUNCTIONS),
    )
    for name in names
}
