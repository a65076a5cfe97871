"""Reads an answer in canonical LaTeX: takes apart what has parts, down to numbers and words.

What no reader here knows is a quantity of `malt_jax.grading.quantities`, or opaque.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import TypeGuard

from malt_jax.grading import expression_reader
from malt_jax.grading.answers import (
    FLIPPED,
    REALS,
    Answer,
    InBase,
    Matrix,
    Named,
    Opaque,
    Parts,
    Quantity,
    Relation,
    Words,
)
from malt_jax.grading.expression_values import LOW, Evaluator, Number, is_real, value_at
from malt_jax.grading.expressions import Expression, TooLarge, Unreadable, difference
from malt_jax.grading.latex import plain, text_content
from malt_jax.grading.quantities import read_quantity, same_quantity

MAX_PARTS = 100
MAX_DEPTH = 12

_TOKEN = re.compile(
    r"\\(?:begin|end) ?\{[A-Za-z]+\*?\}(?:\{[lcr|]*\})?|\\[A-Za-z]+|\\.|.", re.DOTALL
)
_OPENING = frozenset(["(", "[", "{", "\\{", "\\langle", "\\lfloor", "\\lceil"])
_CLOSING = frozenset([")", "]", "}", "\\}", "\\rangle", "\\rfloor", "\\rceil"])
_RELATIONS = frozenset(["=", "\\equiv", "<", ">", "\\le", "\\ge", "\\ne", "\\in", "\\approx"])
_AND_OR = re.compile(
    r",? ?(?:\\text ?\{[ ,]*(and|or)[ ,]*\}|(?<![A-Za-z\\])(and|or)(?![A-Za-z])) ?", re.IGNORECASE
)
_LETTER_NAME = (
    r"(?:[A-Za-z]|\\(?!pi(?![a-z]))[a-z]{2,8})(?:_(?:[A-Za-z0-9]|\{[A-Za-z0-9,]{1,8}\}))?'*"
)
_NAME = re.compile(
    rf"(?:{_LETTER_NAME}"
    rf"|(?:\\overline|\\vec|\\hat) ?\{{?[A-Za-z]{{1,3}}\}}?"
    rf"|m?\\angle ?[A-Z]{{1,3}}|[A-Z]{{2,4}}|\|[A-Z]{{1,3}}\|"
    r"|[A-Za-z](?:\^\{-1\})? ?\([^()=<>]{1,20}\)"
    r"|(?:\\text ?\{[^{}]{1,60}\}|[A-Za-z]{3,20}(?: [A-Za-z]{2,20}){0,4})(?:_[A-Za-z0-9])?)"
)
_NAMES = re.compile(rf"\( ?{_LETTER_NAME}(?: ?, ?{_LETTER_NAME})+ ?\)")
_THOUSANDS = re.compile(r"[^\d(\[{]*[1-9]\d{0,2}(?:,\d{3})+(?![\d,])[^,]*")
_IN_BASE = re.compile(
    r"(?:\\text ?\{)?(-?[0-9A-F]+)\}? ?"
    r"(?:_ ?\{? ?(?:\\text ?\{)?(?:base ?)?([0-9]{1,2}|[a-z]+)\}?\}?"
    r"|\(? ?(?:\\text ?\{)? ?\(?(?:in )?base ?\}? ?([0-9]{1,2}|[a-z]+)\)?\}?\)?)"
)
_BASES = """
two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen
"""
_BASE_NAMES = {name: str(value) for value, name in enumerate(_BASES.split(), start=2)}
_CLOCK = re.compile(
    r"(\d{1,2})(?: ?: ?(\d\d))?(?: ?: ?(\d\d))? ?(?:\\text ?\{)? ?([ap])\.? ?m\.? ?\}?",
    re.IGNORECASE,
)
_MATRIX = re.compile(
    r"\\begin ?\{([pbvBV]?matrix|array)\}(?:\{[lcr|]*\})?(.*)\\end ?\{\1\}", re.DOTALL
)
_REALS_WITHOUT = re.compile(r"\\mathbb\{R\} ?\\(?:setminus|backslash) ?\\\{(.*)\\\}")
_SET_BUILDER = re.compile(r"([a-zA-Z])(?: ?\\in ?\\mathbb\{R\})? ?(?:\\mid|\\colon|:|\|) ?(.*)")
_CHOICE = re.compile(r"\(? ?(?:\\text ?\{)? ?\(? ?([A-Z]) ?\)? ?\}? ?\)?")
_WORDS = re.compile(r"[A-Za-z][A-Za-z0-9'. ,;:!?()/&-]*")
_NUMBER_WORDS = {word: Fraction(value) for value, word in enumerate(["zero", "one", *_BASE_NAMES])}


@lru_cache(maxsize=8192)
def read(latex: str) -> Answer:
    """The structure of a canonical answer. What cannot be read is Opaque; nothing is raised."""
    try:
        return _read(latex, 0)
    except (TooLarge, RecursionError):
        return Quantity(latex, None, refused=True)


def _read(latex: str, depth: int) -> Answer:
    latex = latex.strip()
    if depth > MAX_DEPTH:
        raise TooLarge("nested too deeply")
    if latex == "\\mathbb{R}":
        return REALS
    for reader in (
        _read_in_base,
        _read_clock,
        _read_list,
        _read_relation,
        _read_reals_without,
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


def _read_in_base(latex: str, depth: int) -> Answer | None:
    match = _IN_BASE.fullmatch(latex)
    if match is None:
        return None
    base = match[2] or match[3]
    base = _BASE_NAMES.get(base, base)
    return InBase(match[1], base) if base.isdigit() else None


def _read_clock(latex: str, depth: int) -> Answer | None:
    match = _CLOCK.fullmatch(text_content(latex) or latex)
    if match is None or not 1 <= int(match[1]) <= 12:
        return None
    hour = int(match[1]) % 12 + (12 if match[4].lower() == "p" else 0)
    parts = [str(hour), match[2] or "00", *([match[3]] if match[3] else [])]
    return Parts(":", tuple(read_quantity(str(int(part))) for part in parts))


def _read_list(latex: str, depth: int) -> Answer | None:
    inner = text_content(latex)
    if inner is not None and re.search(r",|;| and | or ", inner):
        latex = inner
    word = ""
    if _THOUSANDS.fullmatch(latex) and not _AND_OR.search(latex):
        return None if "," not in latex else _read_without_commas(latex, depth)

    def to_comma(match: re.Match[str]) -> str:
        nonlocal word
        word = (match[1] or match[2]).lower()
        return "\x00"

    marked = _AND_OR.sub(to_comma, latex)
    pieces = [part for _, part in _pieces(marked, frozenset([",", ";", "\x00"])) if part]
    if "\x00" in "".join(pieces):  # an "and" within brackets
        marked = _AND_OR.sub(lambda match: ",", latex)
        pieces = [part for _, part in _pieces(marked, frozenset([",", ";"])) if part]
    if len(pieces) < 2:
        return None
    items = tuple(_read(part, depth + 1) for part in pieces)
    if word and any(_is_inequality(item) for item in items):
        union = _as_union(items) if word == "or" else None
        return union or Parts(word, items)
    flat: list[Answer] = []
    for item in items:
        nested = isinstance(item, Parts) and item.kind == "list"
        flat.extend(item.items if nested and isinstance(item, Parts) else [item])
    return Parts("list", tuple(flat))


def _read_without_commas(latex: str, depth: int) -> Answer:
    return _read(re.sub(r"(?<=\d),(?=\d{3})", "", latex), depth + 1)


def _is_inequality(item: Answer) -> bool:
    if isinstance(item, Relation):
        return any(sign in FLIPPED for sign in item.signs)
    return isinstance(item, Named) and isinstance(item.value, Parts) and item.value.is_ordered


def _as_union(items: Sequence[Answer]) -> Answer | None:
    names = {item.name for item in items if isinstance(item, Named)}
    if len(names) != 1 or not all(isinstance(item, Named) for item in items):
        return None
    values = tuple(item.value for item in items if isinstance(item, Named))
    return Named(names.pop(), Parts("union", values), None)


def _read_relation(latex: str, depth: int) -> Answer | None:
    pieces = _pieces(latex, _RELATIONS)
    if len(pieces) < 2:
        return None
    signs = ["=" if sign == "\\equiv" else sign for sign, _ in pieces[1:]]
    sides = [part for _, part in pieces]
    if "\\approx" in signs:  # the value before it is the exact one
        place = signs.index("\\approx")
        if place == 0 and (_is_name(sides[0]) or not sides[0]):
            return _read(sides[1], depth + 1)
        else:
            return _read(_join(sides[: place + 1], signs[:place]), depth + 1)
    if not all(sides):
        return Opaque(latex)
    if all(sign in ("=", "\\in") for sign in signs):
        if len(sides) == 2 and signs == ["="] and _is_name(sides[1]) and not _is_name(sides[0]):
            sides.reverse()
        if _is_name(sides[0]):
            relation = _relation([sides[0], sides[-1]], ["="]) if "\\in" not in signs else None
            return Named(plain(sides[0]), _read(sides[-1], depth + 1), relation)
        values = [_read(side, depth + 1) for side in sides] if signs[0] == "=" else []
        constants = [value for value in values if _is_constant(value)]
        if constants and len(constants) == len(values):
            first, *others = constants
            if all(same_quantity(first, other) is True for other in others):
                return values[-1]
    interval = _read_interval(sides, signs, depth)
    return interval or _relation(sides, signs)


def _relation(sides: Sequence[str], signs: Sequence[str]) -> Relation:
    differences = [_difference(left, right) for left, right in itertools.pairwise(sides)]
    known = tuple(difference for difference in differences if difference is not None)
    return Relation(tuple(signs), tuple(sides), known if len(known) == len(signs) else None)


def _join(sides: Sequence[str], signs: Sequence[str]) -> str:
    return sides[0] + "".join(f"{sign} {side}" for sign, side in zip(signs, sides[1:], strict=True))


def _is_name(latex: str) -> bool:
    if _NAMES.fullmatch(latex):
        return True
    return bool(_NAME.fullmatch(latex)) and latex not in ("e", "i", "\\infty", "\\emptyset")


def _is_constant(answer: Answer) -> TypeGuard[Quantity]:
    return (
        isinstance(answer, Quantity)
        and answer.expression is not None
        and answer.expression.is_constant
    )


def _read_interval(sides: list[str], signs: list[str], depth: int) -> Answer | None:
    """x > 5, 1 < x \\le 2 and x \\ne 0 as the intervals they are."""
    if signs == ["\\ne"] and _is_name(sides[0]):
        hole = _read(sides[1], depth + 1)
        if not _is_constant(hole):
            return None
        around = (Parts("()", (REALS.items[0], hole)), Parts("()", (hole, REALS.items[1])))
        return Named(plain(sides[0]), Parts("union", around), _relation(sides, signs))
    if any(sign not in ("<", "\\le") for sign in signs):
        if any(sign not in (">", "\\ge") for sign in signs):
            return None
        sides, signs = sides[::-1], [FLIPPED[sign] for sign in reversed(signs)]
    if len(sides) == 2:
        if _is_name(sides[0]):
            sides, signs = ["-\\infty", *sides], ["<", *signs]
        else:
            sides, signs = [*sides, "\\infty"], [*signs, "<"]
    if len(sides) != 3 or not _is_name(sides[1]):
        return None
    low, high = _read(sides[0], depth + 1), _read(sides[2], depth + 1)
    if not _is_constant(low) or not _is_constant(high):
        return None
    kind = ("(" if signs[0] == "<" else "[") + (")" if signs[1] == "<" else "]")
    name = plain(sides[1])
    given = [i for i, side in enumerate(sides) if not side.endswith("\\infty")]
    between = range(given[0], given[-1])
    relation = _relation([sides[i] for i in given], [signs[i] for i in between])
    return Named(name, Parts(kind, (low, high)), relation)


def _difference(left: str, right: str) -> Expression | None:
    try:
        return difference(expression_reader.read(right), expression_reader.read(left))
    except Unreadable:
        return None


def _read_reals_without(latex: str, depth: int) -> Answer | None:
    """\\mathbb{R} \\setminus \\{1, 2\\} as the union of the intervals between the points."""
    match = _REALS_WITHOUT.fullmatch(latex)
    if match is None:
        return None
    points: list[tuple[Number, Quantity]] = []
    for item in _items(match[1], depth):
        if not _is_constant(item) or not item.expression or item.unit:
            return Opaque(latex)
        value = value_at(item.expression.tree, {}, LOW)
        if value is None or not is_real(value):
            return Opaque(latex)
        points.append((LOW.re(Evaluator(LOW, {}).inexact(value)), item))
    points.sort(key=lambda point: point[0])
    ends = [REALS.items[0], *(item for _, item in points), REALS.items[1]]
    return Parts("union", tuple(Parts("()", pair) for pair in itertools.pairwise(ends)))


def _read_union(latex: str, depth: int) -> Answer | None:
    pieces = [part for _, part in _pieces(latex, frozenset(["\\cup"]))]
    if len(pieces) < 2:
        return None
    return Parts("union", tuple(_read(part, depth + 1) for part in pieces))


def _read_plus_minus(latex: str, depth: int) -> Answer | None:
    signs = len(re.findall(r"\\(?:pm|mp)(?![a-z])", latex))
    if not signs:
        return None
    if signs > 2:
        return Opaque(latex)
    upper = re.sub(r"\\mp(?![a-z])", "-", re.sub(r"\\pm(?![a-z])", "+", latex))
    lower = re.sub(r"\\mp(?![a-z])", "+", re.sub(r"\\pm(?![a-z])", "-", latex))
    return Parts("list", (_read(upper, depth + 1), _read(lower, depth + 1)))


def _read_bracketed(latex: str, depth: int) -> Answer | None:
    tokens = _TOKEN.findall(latex)
    if len(tokens) < 2 or tokens[0] not in _OPENING or tokens[-1] not in _CLOSING:
        return None
    level = 0
    for token in tokens[:-1]:
        level += (token in _OPENING) - (token in _CLOSING)
        if level == 0:
            return None
    opening, closing = tokens[0], tokens[-1]
    inner = latex[len(opening) : -len(closing)].strip()
    if opening == "\\{" and closing == "\\}":
        if not inner:
            return Words("\\emptyset")
        if built := _SET_BUILDER.fullmatch(inner):
            condition = _read(built[2], depth + 1)
            right_name = isinstance(condition, Named) and condition.name == built[1]
            return condition if right_name else Opaque(latex)
        if re.search(r"\\mid|\\colon|(?<!\|)\|[^|]*$|:", inner):
            return Opaque(latex)
        return Parts("set", _items(inner, depth))
    if opening == "\\langle":
        opening, closing = "(", ")"
    if opening not in "([" or closing not in ")]":
        return None
    items = _items(inner, depth)
    if len(items) > 1:
        return Parts(opening + closing, items)
    if opening + closing == "()" and not _CHOICE.fullmatch(latex):
        return _read(inner, depth + 1)
    return None


def _items(inner: str, depth: int) -> tuple[Answer, ...]:
    """The elements between brackets, where a comma separates, whatever digits follow."""
    inner = _AND_OR.sub(",", inner)
    pieces = [part for _, part in _pieces(inner, frozenset([",", ";"])) if part]
    items: list[Answer] = []
    for piece in pieces:
        item = _read(piece, depth + 1)
        expanded = isinstance(item, Parts) and item.kind == "list"
        items.extend(item.items if expanded and isinstance(item, Parts) else [item])
    return tuple(items)


def _read_matrix(latex: str, depth: int) -> Answer | None:
    match = _MATRIX.fullmatch(latex.removeprefix("[").removesuffix("]")) or _MATRIX.fullmatch(
        latex.removeprefix("(").removesuffix(")")
    )
    if match is None or "\\begin" in match[2]:
        return None
    rows = [row for row in re.split(r"\\\\(?:\[[^\]]*\])?|\\cr", match[2])]
    cells = tuple(
        tuple(_read(cell, depth + 1) for cell in row.split("&")) for row in rows if row.strip()
    )
    if sum(map(len, cells)) > MAX_PARTS:
        raise TooLarge("too many parts")
    return Matrix(cells, bars=match[1] in ("vmatrix", "Vmatrix"))


def _read_ratio(latex: str, depth: int) -> Answer | None:
    pieces = [part for _, part in _pieces(latex, frozenset([":", "\\colon"]))]
    if len(pieces) < 2 or not all(pieces):
        return None
    items = tuple(_read(part, depth + 1) for part in pieces)
    return Parts(":", items) if all(isinstance(item, Quantity) for item in items) else None


def _read_words(latex: str, depth: int) -> Answer | None:
    if match := _CHOICE.fullmatch(latex):
        return Quantity(match[1], expression_reader.read(match[1]))
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
        return Quantity(words, expression_reader.read(str(_NUMBER_WORDS[words])))
    return Words(re.sub(r"^(?:the|an?) (?=\w)", "", words))
