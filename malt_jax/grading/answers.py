"""Answers taken apart: words, quantities, several parts, equations and inequalities."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeGuard

from malt_jax.grading.canonical import plain, text_content, without_outer_braces
from malt_jax.grading.expressions import INFINITIES, Expression, TooLarge
from malt_jax.grading.quantities import Quantity, read_quantity, same_quantity
from malt_jax.grading.values import Number, value_at

MAX_PARTS = 100
MAX_DEPTH = 12

FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}
"""The signs of inequalities, each with its sign when the sides are exchanged."""


@dataclass(frozen=True)
class Words:
    """A text: "Thursday", "no solution"."""

    text: str


@dataclass(frozen=True)
class Parts:
    """Several answers in one.

    kind: without order "list", "set", "union", "and" or "or" (inequalities); with order two
        brackets such as "(]" (a tuple or an interval), ":" (a ratio or a time), "matrix" or "bars"
        (a determinant) of items "row", "base" (digits in a base, such as 664_7).
    """

    kind: str
    items: tuple[Answer, ...]

    @property
    def is_ordered(self) -> bool:
        return self.kind not in ("list", "and", "or", "set", "union")


@dataclass(frozen=True)
class Relation:
    """Sides and the signs between them, as in 2x + y = 5 or a < b \\le c."""

    signs: tuple[str, ...]
    sides: tuple[str, ...]

    def flipped(self) -> Relation:
        signs = tuple(FLIPPED.get(sign, sign) for sign in reversed(self.signs))
        return Relation(signs, self.sides[::-1])


@dataclass(frozen=True)
class Named:
    """x = 5, f(x) = x^2, x \\in [1, 2], (x, y) = (1, 2)."""

    name: str
    value: Answer
    relation: Relation | None = None


Answer = Words | Quantity | Parts | Named | Relation

INFINITY = Quantity("\\infty", Expression(INFINITIES[0]))
MINUS_INFINITY = Quantity("-\\infty", Expression(INFINITIES[1]))
REALS = Parts("()", (MINUS_INFINITY, INFINITY))

_TOKEN = re.compile(r"(?s)\\(?:begin|end) ?\{[A-Za-z]+\*?\}(?:\{[lcr|]*\})?|\\[A-Za-z]+|\\.|.")
_OPENING = frozenset(["(", "[", "{", "\\{", "\\langle", "\\lfloor", "\\lceil"])
_CLOSING = frozenset([")", "]", "}", "\\}", "\\rangle", "\\rfloor", "\\rceil"])
_RELATIONS = frozenset(["=", "\\equiv", *FLIPPED, "\\ne", "\\in", "\\approx"])
_AND_OR = re.compile(
    r"(?i),? ?(?:\\text ?\{[ ,]*(and|or)[ ,]*\}|(?<![A-Za-z\\])(and|or)(?![A-Za-z])) ?"
)
_LETTER_NAME = (
    r"(?:[A-Za-z]|\\(?!pi(?![a-z]))[a-z]{2,8})(?:_(?:[A-Za-z0-9]|\{[A-Za-z0-9,]{1,8}\}))?'*"
)
_NAME = re.compile(
    rf"(?!(?:e|i|\\infty|\\emptyset)$)(?:{_LETTER_NAME}"
    rf"|\( ?{_LETTER_NAME}(?: ?, ?{_LETTER_NAME})+ ?\)"
    rf"|(?:\\overline|\\vec|\\hat) ?\{{?[A-Za-z]{{1,3}}\}}?"
    rf"|m?\\angle ?[A-Z]{{1,3}}|[A-Z]{{2,4}}|\|[A-Z]{{1,3}}\|"
    r"|[A-Za-z](?:\^\{-1\})? ?\([^()=<>]{1,20}\)"
    r"|(?:\\text ?\{[^{}]{1,60}\}|[A-Za-z]{3,20}(?: [A-Za-z]{2,20}){0,4})(?:_[A-Za-z0-9])?)"
)
_THOUSANDS = re.compile(r"[^\d(\[{]*[1-9]\d{0,2}(?:,\d{3})+(?![\d,])[^,]*")
_IN_BASE = re.compile(
    r"(?:\\text ?\{)?(-?[0-9A-F]+)\}? ?"
    r"(?:_ ?\{? ?(?:\\text ?\{)?(?:base ?)?([0-9]{1,2}|[a-z]+)\}?\}?"
    r"|\(? ?(?:\\text ?\{)? ?\(?(?:in )?base ?\}? ?([0-9]{1,2}|[a-z]+)\)?\}?\)?)"
)
_NUMERALS = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen
sixteen
"""
_NUMBER_WORDS = {name: str(value) for value, name in enumerate(_NUMERALS.split())}
_CLOCK = re.compile(
    r"(?i)(\d{1,2})(?: ?: ?(\d\d))?(?: ?: ?(\d\d))? ?(?:\\text ?\{)? ?([ap])\.? ?m\.? ?\}?"
)
_MATRIX = re.compile(
    r"(?s)[(\[]?\\begin ?\{([pbvBV]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end ?\{\1\}[)\]]?"
)
_REALS_WITHOUT = re.compile(r"\\mathbb\{R\} ?\\(?:setminus|backslash) ?\\\{(.*)\\\}")
_SET_BUILDER = re.compile(r"([a-zA-Z])(?: ?\\in ?\\mathbb\{R\})? ?(?:\\mid|\\colon|:|\|) ?(.*)")
_CHOICE = re.compile(r"\(? ?(?:\\text ?\{)? ?\(? ?([A-Z]) ?\)? ?\}? ?\)?")
_WORDS = re.compile(r"[A-Za-z][A-Za-z0-9'. ,;:!?()/&-]*")


@lru_cache(maxsize=8192)
def read_answer(latex: str) -> Answer:
    """The structure of a canonical answer.

    An answer that cannot be read is a Quantity without an expression; nothing is raised.
    """
    try:
        return _read(latex, 0)
    except (TooLarge, RecursionError):
        return Quantity(latex)


def _read(latex: str, depth: int) -> Answer:
    latex = without_outer_braces(latex.strip())
    if depth > MAX_DEPTH:
        raise TooLarge("nested too deeply")
    for reader in (
        _read_in_base,
        _read_clock,
        _read_list,
        _read_relation,
        _read_reals,
        _read_union,
        _read_bracketed,
        _read_matrix,
        _read_plus_minus,
        _read_ratio,
        _read_words,
    ):
        answer = reader(latex, depth)
        if answer is not None:
            return answer
    return read_quantity(latex)


def _pieces(latex: str, separators: frozenset[str]) -> list[tuple[str, str]]:
    """The parts outside of all brackets, each with the separator before it ("" for the first)."""
    pieces = [("", "")]
    depth = 0
    for token in _TOKEN.findall(latex):
        depth += token in _OPENING or token.startswith("\\begin")
        depth -= token in _CLOSING or token.startswith("\\end")
        if depth == 0 and token in separators:
            pieces.append((token, ""))
        else:
            pieces[-1] = (pieces[-1][0], pieces[-1][1] + token)
    if len(pieces) > MAX_PARTS:
        raise TooLarge("too many parts")
    return [(sign, part.strip()) for sign, part in pieces]


def _split(latex: str, *separators: str) -> list[str]:
    return [part for _, part in _pieces(latex, frozenset(separators))]


def _read_in_base(latex: str, depth: int) -> Answer | None:
    match = _IN_BASE.fullmatch(latex)
    if match is None:
        return None
    base = match[2] or match[3]
    base = _NUMBER_WORDS.get(base, base)
    return Parts("base", (Words(match[1]), Words(base))) if base.isdigit() else None


def _read_clock(latex: str, depth: int) -> Answer | None:
    match = _CLOCK.fullmatch(text_content(latex) or latex)
    if match is None or not 1 <= int(match[1]) <= 12:
        return None
    hour = int(match[1]) % 12 + (12 if match[4].lower() == "p" else 0)
    parts = [str(hour), match[2] or "00", *([match[3]] if match[3] else [])]
    return Parts(":", tuple(map(read_quantity, parts)))


def _list_pieces(latex: str) -> list[str]:
    """The texts that commas, "and" or "or" separate."""
    pieces = _split(_AND_OR.sub("\x00", latex), ",", ";", "\x00")
    if "\x00" in "".join(pieces):  # an "and" within brackets
        pieces = _split(_AND_OR.sub(",", latex), ",", ";")
    return [piece for piece in pieces if piece]


def _items(pieces: Sequence[str], depth: int) -> tuple[Answer, ...]:
    """The answers of a list's pieces; a list among them gives its own items."""
    items: list[Answer] = []
    for item in (_read(piece, depth + 1) for piece in pieces):
        items.extend(item.items if isinstance(item, Parts) and item.kind == "list" else [item])
    return tuple(items)


def _read_list(latex: str, depth: int) -> Answer | None:
    inner = text_content(latex)
    if inner is not None and re.search(r",|;| and | or ", inner):
        latex = inner
    joints = [match[1] or match[2] for match in _AND_OR.finditer(latex)]
    if not joints and _THOUSANDS.fullmatch(latex):
        return _read(re.sub(r"(?<=\d),(?=\d{3})", "", latex), depth + 1)
    pieces = _list_pieces(latex)
    if len(pieces) < 2:
        return None
    items = _items(pieces, depth)
    if points := _named_points(items):
        return points
    if not joints or not any(map(_is_inequality, items)):
        return Parts("list", items)
    named = [item for item in items if isinstance(item, Named)]
    if joints[-1].lower() == "and" or len(named) < len(items) or len({n.name for n in named}) > 1:
        return Parts(joints[-1].lower(), items)
    return Named(named[0].name, Parts("union", tuple(item.value for item in named)))


def _named_points(items: Sequence[Answer]) -> Named | None:
    """(x, y) = (1, 2), (3, 4): the name belongs to the whole list."""
    first, *others = items
    if not isinstance(first, Named) or not first.name.startswith("("):
        return None
    if not all(isinstance(item, Parts) for item in others):
        return None
    return Named(first.name, Parts("list", (first.value, *others)))


def _is_inequality(item: Answer) -> bool:
    if isinstance(item, Relation):
        return any(sign in FLIPPED for sign in item.signs)
    if not isinstance(item, Named) or (item.relation and "=" in item.relation.signs):
        return False
    return isinstance(item.value, Parts) and item.value.is_ordered


def _read_relation(latex: str, depth: int) -> Answer | None:
    pieces = _pieces(latex, _RELATIONS)
    if len(pieces) < 2:
        return None
    signs = ["=" if sign == "\\equiv" else sign for sign, _ in pieces[1:]]
    sides = [part for _, part in pieces]
    if "\\approx" in signs:  # the value before it is the exact one
        place = signs.index("\\approx")
        if place == 0 and (not sides[0] or _NAME.fullmatch(sides[0])):
            return _read(sides[1], depth + 1)
        return _read(latex.partition("\\approx")[0], depth + 1)
    if not all(sides):
        return Quantity(latex)
    if all(sign in ("=", "\\in") for sign in signs):
        if signs == ["="] and _NAME.fullmatch(sides[1]) and not _NAME.fullmatch(sides[0]):
            sides.reverse()
        if _NAME.fullmatch(sides[0]):
            relation = Relation(("=",), (sides[0], sides[-1])) if "\\in" not in signs else None
            return Named(plain(sides[0]), _read(sides[-1], depth + 1), relation)
        values = [_read(side, depth + 1) for side in sides] if signs[0] == "=" else []
        constants = [value for value in values if _is_constant(value)]
        known = bool(constants) and len(constants) == len(values)
        if known and all(same_quantity(constants[0], other) for other in constants[1:]):
            return values[-1]  # 2 + 3 = 5
    return _read_interval(sides, signs, depth) or Relation(tuple(signs), tuple(sides))


def _is_constant(answer: Answer) -> TypeGuard[Quantity]:
    return isinstance(answer, Quantity) and answer.is_constant


def _read_interval(sides: list[str], signs: list[str], depth: int) -> Answer | None:
    """x > 5, 1 < x \\le 2 and x \\ne 0 as the intervals they are."""
    relation = Relation(tuple(signs), tuple(sides))
    if signs == ["\\ne"] and _NAME.fullmatch(sides[0]):
        without = _reals_without([_read(sides[1], depth + 1)])
        return without and Named(plain(sides[0]), without, relation)
    if all(sign in (">", "\\ge") for sign in signs):
        relation = relation.flipped()
        sides, signs = list(relation.sides), list(relation.signs)
    if any(sign not in ("<", "\\le") for sign in signs):
        return None
    if len(sides) == 2 and _NAME.fullmatch(sides[0]):
        sides, signs = ["-\\infty", *sides], ["<", *signs]
    elif len(sides) == 2:
        sides, signs = [*sides, "\\infty"], [*signs, "<"]
    if len(sides) != 3 or not _NAME.fullmatch(sides[1]):
        return None
    ends = _read(sides[0], depth + 1), _read(sides[2], depth + 1)
    if not all(map(_is_constant, ends)):
        return None
    kind = ("(" if signs[0] == "<" else "[") + (")" if signs[1] == "<" else "]")
    return Named(plain(sides[1]), Parts(kind, ends), relation)


def _read_reals(latex: str, depth: int) -> Answer | None:
    """\\mathbb{R}, and \\mathbb{R} \\setminus \\{1, 2\\} as the intervals between the points."""
    if latex == "\\mathbb{R}":
        return REALS
    match = _REALS_WITHOUT.fullmatch(latex)
    return _reals_without(_items(_list_pieces(match[1]), depth)) if match else None


def _reals_without(points: Sequence[Answer]) -> Answer | None:
    numbers: list[tuple[Number, Quantity]] = []
    for point in points:
        if not _is_constant(point) or point.expression is None or point.unit:
            return None
        value = value_at(point.expression.tree, {})
        if value is None or not value.is_real:
            return None
        numbers.append((value.real, point))
    numbers.sort(key=lambda number: number[0])
    ends = [MINUS_INFINITY, *(point for _, point in numbers), INFINITY]
    return Parts("union", tuple(Parts("()", pair) for pair in itertools.pairwise(ends)))


def _read_union(latex: str, depth: int) -> Answer | None:
    pieces = _split(latex, "\\cup")
    if len(pieces) < 2:
        return None
    return Parts("union", tuple(_read(piece, depth + 1) for piece in pieces))


def _read_bracketed(latex: str, depth: int) -> Answer | None:
    tokens = _TOKEN.findall(latex)
    if len(tokens) < 2 or tokens[0] not in _OPENING or tokens[-1] not in _CLOSING:
        return None
    levels = itertools.accumulate((t in _OPENING) - (t in _CLOSING) for t in tokens[:-1])
    if 0 in levels:  # the brackets are not partners
        return None
    opening, closing = tokens[0], tokens[-1]
    inner = latex[len(opening) : -len(closing)].strip()
    if opening == "\\{" and closing == "\\}":
        return _read_set(inner, latex, depth)
    if opening == "\\langle":
        opening, closing = "(", ")"
    if opening not in "([" or closing not in ")]":
        return None
    items = _items(_list_pieces(inner), depth)
    if len(items) > 1:
        return Parts(opening + closing, items)
    if opening + closing == "()" and not _CHOICE.fullmatch(latex):
        return _read(inner, depth + 1)
    return None


def _read_set(inner: str, latex: str, depth: int) -> Answer:
    if not inner:
        return Words("\\emptyset")
    if built := _SET_BUILDER.fullmatch(inner):
        condition = _read(built[2], depth + 1)
        right_name = isinstance(condition, Named) and condition.name == built[1]
        return condition if right_name else Quantity(latex)
    if re.search(r"\\mid|\\colon|(?<!\|)\|[^|]*$|:", inner):
        return Quantity(latex)
    return Parts("set", _items(_list_pieces(inner), depth))


def _read_matrix(latex: str, depth: int) -> Answer | None:
    match = _MATRIX.fullmatch(latex)
    if match is None or "\\begin" in match[2]:
        return None
    lines = re.split(r"\\\\(?:\[[^\]]*\])?|\\cr", match[2])
    rows = [line.split("&") for line in lines if line.strip()]
    if sum(map(len, rows)) > MAX_PARTS:
        raise TooLarge("too many parts")
    cells = (Parts("row", tuple(_read(cell, depth + 1) for cell in row)) for row in rows)
    return Parts("bars" if match[1] in ("vmatrix", "Vmatrix") else "matrix", tuple(cells))


def _read_plus_minus(latex: str, depth: int) -> Answer | None:
    signs = len(re.findall(r"\\(?:pm|mp)(?![a-z])", latex))
    if not signs:
        return None
    if signs > 2:
        return Quantity(latex)
    upper = re.sub(r"\\mp(?![a-z])", "-", re.sub(r"\\pm(?![a-z])", "+", latex))
    lower = re.sub(r"\\mp(?![a-z])", "+", re.sub(r"\\pm(?![a-z])", "-", latex))
    return Parts("list", (_read(upper, depth + 1), _read(lower, depth + 1)))


def _read_ratio(latex: str, depth: int) -> Answer | None:
    pieces = _split(latex, ":", "\\colon")
    if len(pieces) < 2 or not all(pieces):
        return None
    items = tuple(_read(piece, depth + 1) for piece in pieces)
    return Parts(":", items) if all(isinstance(item, Quantity) for item in items) else None


def _read_words(latex: str, depth: int) -> Answer | None:
    if match := _CHOICE.fullmatch(latex):
        return read_quantity(match[1])
    if latex == "\\emptyset":
        return Words(latex)
    content = re.sub(r"\\text ?\{([^{}]*)\}", r" \1 ", latex)
    content = " ".join(content.split())
    if not _WORDS.fullmatch(content) or "\\" in content:
        return None
    is_text = text_content(latex) is not None
    has_word = re.search(r"[A-Za-z]{4}|^[A-Z][a-z]{1,2}$", content)
    if not has_word and not (is_text and re.search("[A-Za-z]{2}", content)):
        return None
    if re.fullmatch(r"[A-Za-z]{1,3}(?:\(.*\)|[-/].*)", content):
        return None
    words = re.sub(r"\s+", " ", content.casefold()).strip(" .")
    if words in ("all real numbers", "all reals"):
        return REALS
    if words in _NUMBER_WORDS:
        return read_quantity(_NUMBER_WORDS[words])
    return Words(re.sub(r"^(?:the|an?) (?=\w)", "", words))
