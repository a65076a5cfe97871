"""Quantities: a number or an expression with its unit, read and compared."""

from __future__ import annotations

import re
from fractions import Fraction

from malt_jax.grading import expression_equality, expression_reader
from malt_jax.grading.answers import Answer, Opaque, Quantity
from malt_jax.grading.expressions import (
    INFINITY,
    MINUS_INFINITY,
    Expression,
    TooLarge,
    Unreadable,
    scaled,
)
from malt_jax.grading.latex import plain, text_content
from malt_jax.grading.rationals import parse_number
from malt_jax.grading.units import SCALES, canonical_unit, is_known_unit

_TRAILING_TEXT = re.compile(r"(.*[^\s\\]) ?\\text ?\{([^{}]*)\} ?(\^ ?\{? ?[23] ?\}?)?", re.DOTALL)
_TRAILING_WORDS = re.compile(
    r"(.*?[0-9}.)]) ?((?:[A-Za-z]{2,20}\.?|[a-z]/[a-z]{1,6})(?:(?: | ?/ ?)[A-Za-z]{1,20}){0,4}"
    r"(?: ?\^ ?\{?[23]\}?)?)",
    re.DOTALL,
)
_MODULO = re.compile(
    r"(.*?[^\s(]) ?(?:\\pmod ?\{? ?(\d+) ?\}?"
    r"|\(? ?(?:\\text ?\{)? ?\(?\\?(?<!b)mod ?\}? ?(\d+) ?\)?)",
    re.DOTALL,
)
_SQUARE_METRES = re.compile(r"(.*[0-9}]) (m ?\^ ?\{? ?[23] ?\}?)")
_DEGREES = re.compile(r"(.*[^\s]) ?\^ ?\\circ ?(?:\\text ?\{ ?[CF]? ?\}|[CF])?", re.DOTALL)
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)")
_SCALE = re.compile(rf"(.*[0-9]) ?(?:\\text ?\{{ ?)?({'|'.join(SCALES)})\b ?([A-Za-z ]*)\}}?")


def read_quantity(latex: str) -> Answer:
    """A number or an expression with a unit, money, a percentage; else Opaque."""
    content = text_content(latex)
    value, unit, percent = content if content and content[0].isdigit() else latex, "", False
    if match := re.match(r"(-?) ?\\\$ ?(?=[-\d.\\(])", value):
        value, unit = match[1] + value[match.end() :], "dollar"
    if value.endswith("\\$"):
        value, unit = value[:-2].strip(), "dollar"
    if match := re.fullmatch(
        r"(.*?) ?(?:\\%|\\text ?\{ ?(?:percent|pct|percentage|\\%) ?\}|"
        r"(?:percent|pct|percentage))",
        value,
        re.DOTALL,
    ):
        value, percent = match[1].strip(), True
    elif not _TRIGONOMETRY.search(value) and (match := _DEGREES.fullmatch(value)):
        value, unit = match[1].strip(), "degree"
    elif match := _TRAILING_TEXT.fullmatch(value):
        named = canonical_unit(match[2] + (match[3] or ""))
        if named:
            value, unit = match[1].strip(), unit or named
    elif match := _SQUARE_METRES.fullmatch(value):
        value, unit = match[1], canonical_unit(match[2]) or ""
    elif match := _TRAILING_WORDS.fullmatch(value):
        words = match[2]
        bare = re.sub(r"[^A-Za-z ].*", "", words).strip()
        named = canonical_unit(words)
        if named and (is_known_unit(bare) or re.search("[A-Za-z]{3}|^[mk]?[mglb]/", words)):
            value, unit = match[1].strip(), unit or named
    if value.endswith(".."):  # digits that are left out
        return Quantity(value, None, refused=True)
    value = value.strip().removesuffix(".")
    if unit and re.fullmatch(r".*[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?", value):
        value = re.sub(r"(?<=\d),(?=\d{3})", "", value)
    if not unit and not percent and (match := _SCALE.fullmatch(value)):
        number = parse_number(match[1])
        if number is not None and (not match[3].strip() or canonical_unit(match[3])):
            tree = ("number", number * SCALES[match[2]])
            named = canonical_unit(match[3]) or ""
            return Quantity(value, Expression(tree, frozenset(), False), named)
    if match := _MODULO.fullmatch(value):
        value, unit = match[1].strip(), f"mod {match[2] or match[3]}"
    number = parse_number(value) if "$" not in value else None
    if number is not None:
        tree = ("number", number)
        return Quantity(value, Expression(tree, frozenset(), False), unit, percent)
    if re.fullmatch(r"[-+]? ?\\infty", value):
        tree_of = MINUS_INFINITY if "-" in value else INFINITY
        return Quantity(value, Expression(tree_of, frozenset(), False))
    try:
        return Quantity(value, expression_reader.read(value), unit, percent)
    except Unreadable:
        if re.search(r"\d \d", value):  # two numbers side by side are none
            return Quantity(value, None, refused=True)
        if unit or percent:
            return Quantity(value, None, unit, percent)
        return Opaque(latex)


def same_quantity(a: Quantity, b: Quantity) -> bool | None:
    """Whether two quantities are equal; None when their expressions are beyond the grammar."""
    if a.refused or b.refused:
        return False
    units = {unit for unit in (a.unit, b.unit) if unit}
    if len(units) > 1 or (units and (a.percent or b.percent)):
        return False
    if a.expression is None or b.expression is None:
        return True if plain(a.latex) == plain(b.latex) else None
    try:
        if expression_equality.equal(a.expression, b.expression):
            return True
        if a.percent == b.percent:
            return False
        part, whole = (a, b) if a.percent else (b, a)
        assert part.expression is not None and whole.expression is not None
        hundredth = scaled(part.expression, Fraction(1, 100))
        return expression_equality.equal(hundredth, whole.expression)
    except TooLarge:
        return False
    except Unreadable:
        return None
