"""Equality of answers: by their structure, part by part, and by the values of the parts."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache
from typing import TypeGuard

from malt_jax.grading import values
from malt_jax.grading.answers import FLIPPED, Answer, Named, Parts, Relation, Words, read_answer
from malt_jax.grading.canonical import is_balanced, plain
from malt_jax.grading.expressions import Expression, Unreadable, read_expression
from malt_jax.grading.quantities import Quantity, same_quantity

_ONE_OR_SEVERAL = re.compile(r"-?\d{1,3}(?:,\d{3})+")


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
    return False


def same(a: Answer, b: Answer) -> bool:
    """Whether two answers are equal."""
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
    if isinstance(a, Parts) and isinstance(b, Parts):
        return _same_parts(a, b)
    return _text(a) == _text(b) is not None


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
        # x = 1, y = 2 as the point (1, 2)
        named = _named_items(one)
        if other.kind == "()" and one.kind == "list" and len(named) == len(one.items):
            return same(Parts("()", tuple(named[name] for name in sorted(named))), other)
    comparable = a.kind == b.kind or (_is_unordered(a) and _is_unordered(b))
    if not comparable or len(a.items) != len(b.items):
        return False
    if a.is_ordered:
        return all(map(same, a.items, b.items))
    return _matched(a.items, b.items)


def _matched(a: Sequence[Answer], b: Sequence[Answer]) -> bool:
    """Whether the items can be paired, in any order, each with an equal one."""
    left = list(b)
    for item in a:
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
