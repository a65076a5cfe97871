"""Equality of answers: by their structure, part by part, and by the values of the parts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from fractions import Fraction
from functools import lru_cache
from typing import TypeGuard

from malt_jax.grading import values
from malt_jax.grading.answers import FLIPPED, Answer, Named, Parts, Relation, Words, read_answer
from malt_jax.grading.canonical import is_balanced, plain
from malt_jax.grading.expressions import Expression, Unreadable, read_expression
from malt_jax.grading.quantities import Quantity, same_quantity

_ONE = Quantity("1", Expression(("number", Fraction(1))))
# The left side of a + b = 5, \sin A = 0.6 or a:b = 2:3: names, sums and quotients of names.
_NAMES_ONLY = re.compile(
    r"(?:[A-Za-z]_\{[^{}]*\}|[A-Za-z]_[A-Za-z0-9]|\\(?:frac|sin|cos|tan|angle|triangle|cdot)(?![a-z])"
    r"|\\(?:alpha|beta|gamma|theta|phi|omega|circ)(?![a-z])|[A-Za-z]\([^()=<>]{1,20}\)"
    r"|\[[A-Z]{3,5}\]|[A-Za-z{}: +/-])+"
)
_ONE_OR_SEVERAL = re.compile(r"-?[1-9]\d{0,2}(?:,\d{3})+")
# 12,5 or 1.234,5 or 3{,}5, with a unit; but 3,5 is a list of two digits
_DECIMAL_COMMA = re.compile(
    r"(?!-?\d,\d$)(-?(?:\\\$)?(?:\d{1,3}(?:\.\d{3})+|\d+))(?:,|\{,\})(\d+)([^\d,;()\[\]]*)"
)


@lru_cache(maxsize=100_000)
def equal(a: str, b: str) -> bool:
    """Whether two canonical answers in LaTeX are equal."""
    if not (is_balanced(a) and is_balanced(b)):
        return False
    first, second = read_answer(a), read_answer(b)
    if same(first, second):
        return True
    # "60,120" is a number, unless the other answer is a list.
    for text, other in ((a, second), (b, first)):
        several = isinstance(other, Parts) and other.kind in ("list", "set")
        if several and _ONE_OR_SEVERAL.fullmatch(text):
            return same(read_answer(text.replace(",", ";")), other)
    # "12,5" is a list, unless the other answer is a number.
    for text, other in ((a, second), (b, first)):
        decimal = _DECIMAL_COMMA.fullmatch(text)
        if decimal and isinstance(other, Quantity) and not _ONE_OR_SEVERAL.fullmatch(text):
            whole, places, unit = decimal.groups()
            return same(read_answer(f"{whole.replace('.', '')}.{places}{unit}"), other)
    return False


def same(a: Answer, b: Answer) -> bool:
    """Whether two answers are equal."""
    if a == b:
        return True
    if isinstance(a, Named) or isinstance(b, Named):
        return _same_named(a, b)
    if isinstance(a, Quantity) and isinstance(b, Quantity):
        return same_quantity(a, b)
    if isinstance(a, Relation) and isinstance(b, Relation):
        return _same_relation(a, b)
    for one, other in ((a, b), (b, a)):
        is_item = not isinstance(other, Parts) or other.kind in ("base", "matrix", "bars")
        if _is_unordered(one) and len(one.items) == 1 and is_item:
            return same(one.items[0], other)
        if isinstance(one, Relation):
            value = _stated_value(one)
            return value is not None and same(value, other)
    if isinstance(a, Parts) and isinstance(b, Parts):
        return _same_parts(a, b)
    for one, other in ((a, b), (b, a)):
        if isinstance(one, Parts) and _is_fraction(one, other):
            return _same_ratio(one.items, (other, _ONE))
    return _text(a) == _text(b) is not None


def _is_fraction(ratio: Parts, answer: Answer) -> bool:
    """Whether both may be a fraction: 2/3 and 2:3 may, but not 2:1 or 7:30, nor 2."""
    if ratio.kind != ":" or same(ratio.items[-1], _ONE) or _may_be_time(ratio):
        return False
    if not isinstance(answer, Quantity) or not answer.is_constant:
        return False
    return re.fullmatch(r"-?\d+", answer.latex) is None


def _stated_value(relation: Relation) -> Answer | None:
    """The value c in a + b = c, \\frac{a}{b} = c or a:b = c; None for other equations.

    An equation such as x + y = 0 or 2x + y = 5 describes a line and states no value.
    """
    if relation.signs != ("=",):
        return None
    names, side = (
        relation.sides if _NAMES_ONLY.fullmatch(relation.sides[0]) else relation.sides[::-1]
    )
    if not _NAMES_ONLY.fullmatch(names):
        return None
    value = read_answer(side)
    is_ratio = isinstance(value, Parts) and value.kind == ":"
    is_number = isinstance(value, Quantity) and value.is_constant and side != "0"
    return value if is_ratio or is_number else None


def _is_unordered(answer: Answer) -> TypeGuard[Parts]:
    return isinstance(answer, Parts) and answer.kind in ("list", "set", "union")


def _text(answer: Answer) -> str | None:
    """The text of words, and of a quantity in order to compare it with words."""
    if isinstance(answer, Words):
        return answer.text.replace(" ", "")
    return plain(answer.latex).casefold().replace(" ", "") if isinstance(answer, Quantity) else None


def _same_named(a: Answer, b: Answer) -> bool:
    if isinstance(a, Named) and isinstance(b, Named):
        if a.name == b.name and same(a.value, b.value):
            return True
        return bool(a.relation and b.relation and _same_relation(a.relation, b.relation))
    named, other = (a, b) if isinstance(a, Named) else (b, a)
    assert isinstance(named, Named)
    if isinstance(other, Relation):
        return named.relation is not None and _same_relation(named.relation, other)
    if isinstance(other, Parts) and other.kind == "list" and named.name.startswith("("):
        # (x, y) = (1, 2) is x = 1, y = 2
        names, items = named.name[1:-1].split(","), _named_items(other)
        if len(items) == len(other.items) == len(names) and set(items) == set(names):
            return same(named.value, Parts("()", tuple(items[name] for name in names)))
    return same(named.value, other)


def _named_items(parts: Parts) -> dict[str, Answer]:
    return {item.name: item.value for item in parts.items if isinstance(item, Named)}


def _same_parts(a: Parts, b: Parts) -> bool:
    for one, other in ((a, b), (b, a)):
        if one.kind == "list" and other.kind == "()" and _may_repeat(one):
            return all(same(item, other) for item in one.items)
        # x = 1, y = 2 as the point (1, 2)
        named = _named_items(one)
        if other.kind == "()" and one.kind == "list" and len(named) == len(one.items):
            return same(Parts("()", tuple(named[name] for name in sorted(named))), other)
    comparable = a.kind == b.kind or (_is_unordered(a) and _is_unordered(b))
    if not comparable:
        return False
    if _may_repeat(a) and _may_repeat(b):
        return _covered(a.items, b.items) and _covered(b.items, a.items)
    if len(a.items) != len(b.items):
        return False
    if _is_padded(a) != _is_padded(b):
        return False
    if a.is_ordered and all(map(same, a.items, b.items)):
        return True
    if a.kind == ":" and not (_may_be_time(a) and _may_be_time(b)):
        return _same_ratio(a.items, b.items)
    return not a.is_ordered and _matched(a.items, b.items)


def _may_be_time(ratio: Parts) -> bool:
    """Whether it may be a time: 7:30."""
    minutes = [item.latex for item in ratio.items[1:] if isinstance(item, Quantity)]
    return all(re.fullmatch(r"[0-5]\d", part) for part in minutes)


def _is_padded(parts: Parts) -> bool:
    """Whether it is a time with a leading zero: 1:02 is not 1:2."""
    later = parts.items[1:] if parts.kind == ":" else ()
    return any(isinstance(item, Quantity) and re.match(r"0\d", item.latex) for item in later)


def _may_repeat(parts: Parts) -> bool:
    """Whether items that are given twice count once: those of a set, and tuples of a list."""
    tuples = all(isinstance(item, Parts) and item.kind == "()" for item in parts.items)
    return parts.kind == "set" or (parts.kind == "list" and tuples)


def _covered(a: Sequence[Answer], b: Sequence[Answer]) -> bool:
    """Whether each item is equal to one of the others."""
    return all(any(same(item, other) for other in b) for item in a)


def _same_ratio(a: Sequence[Answer], b: Sequence[Answer]) -> bool:
    """Whether two ratios are equal up to a common factor."""
    first, second = _shares(a), _shares(b)
    return bool(first) and len(first) == len(second) and all(map(same_quantity, first, second))


def _shares(ratio: Sequence[Answer]) -> list[Quantity]:
    """The terms of a ratio, divided by the last one; none if one has a unit or no value."""
    terms = [item for item in ratio if isinstance(item, Quantity) and not item.unit]
    divisor = terms[-1].expression if terms else None
    if divisor is None or len(terms) < len(ratio) or any(t.percent for t in terms):
        return []
    return [
        Quantity(term.latex, term.expression and term.expression.over(divisor)) for term in terms
    ]


def _matched(a: Sequence[Answer], b: Sequence[Answer]) -> bool:
    """Whether the items can be paired, in any order, each with an equal one."""
    left = list(b)
    for item in a:
        if item in left:  # the same text: its value is not needed
            left.remove(item)
            continue
        partner = next((i for i, other in enumerate(left) if same(item, other)), None)
        if partner is None:
            return False
        left.pop(partner)
    return True


def _same_relation(a: Relation, b: Relation) -> bool:
    return _same_sides(a, b) or _same_sides(a, b.flipped())


def _same_sides(a: Relation, b: Relation) -> bool:
    if a.signs != b.signs:
        return False
    if [plain(side) for side in a.sides] == [plain(side) for side in b.sides]:
        return True
    if len(a.signs) > 1:
        return all(map(same, map(read_answer, a.sides), map(read_answer, b.sides)))
    try:
        return values.proportional(_difference(a), _difference(b), a.signs[0] in FLIPPED)
    except Unreadable:
        return False


def _difference(relation: Relation) -> Expression:
    """Right side - left side, which is 0 in an equation."""
    left, right = map(read_expression, relation.sides)
    return right.minus(left)
