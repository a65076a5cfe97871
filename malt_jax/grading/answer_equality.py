"""Equality of answers: by their structure, part by part, and by the values of the parts.

What neither can tell is left open, for a computer algebra system to decide.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction

from malt_jax.grading import expression_equality
from malt_jax.grading.answer_reader import read
from malt_jax.grading.answers import (
    FLIPPED,
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
from malt_jax.grading.expressions import Expression, TooLarge, Unreadable, scaled
from malt_jax.grading.latex import is_balanced, plain
from malt_jax.grading.quantities import same_quantity

_ONE_OR_SEVERAL = re.compile(r"-?\d{1,3}(?:,\d{3})+")


def equal(a: str, b: str) -> bool | None:
    """Whether two canonical answers are equal; None when it takes more algebra to tell."""
    if not (is_balanced(a) and is_balanced(b)):
        return False
    verdict = same(read(a), read(b))
    if verdict is False:
        # "60,120" is a number, unless it stands against a list.
        for one, other in ((a, b), (b, a)):
            answer = read(other)
            several = isinstance(answer, Parts) and answer.kind in ("list", "set")
            if several and _ONE_OR_SEVERAL.fullmatch(one):
                return same(read(one.replace(",", ";")), answer)
    return verdict


def same(a: Answer, b: Answer) -> bool | None:
    """Whether two answers are equal; None when it takes more algebra to tell."""
    if isinstance(a, Named) or isinstance(b, Named):
        return _same_named(a, b)
    if isinstance(a, Quantity) and isinstance(b, Quantity):
        return same_quantity(a, b)
    if isinstance(a, Parts) and isinstance(b, Parts):
        return _same_parts(a, b)
    if isinstance(a, Relation) and isinstance(b, Relation):
        return _same_relation(a, b)
    if isinstance(a, Matrix) and isinstance(b, Matrix):
        return _same_matrix(a, b)
    if isinstance(a, InBase) and isinstance(b, InBase):
        return a == b
    if isinstance(a, Words) or isinstance(b, Words):
        return _same_words(a, b)
    if isinstance(a, Opaque) or isinstance(b, Opaque):
        return _same_opaque(a, b)
    for one, other in ((a, b), (b, a)):
        if isinstance(one, Parts) and one.kind in ("set", "list", "union") and len(one.items) == 1:
            return same(one.items[0], other)
    return None if isinstance(a, Matrix) and isinstance(b, Matrix) else False


def _same_words(a: Answer, b: Answer) -> bool:
    def text(answer: Answer) -> str | None:
        if isinstance(answer, Words):
            return answer.text
        if isinstance(answer, (Opaque, Quantity)):
            return plain(answer.latex).casefold()
        return None

    left, right = text(a), text(b)
    if left is None or right is None:
        return False
    return left.replace(" ", "") == right.replace(" ", "")


def _same_opaque(a: Answer, b: Answer) -> bool | None:
    if isinstance(a, Opaque) and isinstance(b, Opaque) and plain(a.latex) == plain(b.latex):
        return True
    if any(isinstance(answer, Quantity) and answer.refused for answer in (a, b)):
        return False
    return False if any(isinstance(answer, InBase) for answer in (a, b)) else None


def _same_named(a: Answer, b: Answer) -> bool | None:
    if isinstance(a, Named) and isinstance(b, Named):
        verdict = same(a.value, b.value) if a.name == b.name else False
        if verdict is not False or a.relation is None or b.relation is None:
            return verdict
        return _same_relation(a.relation, b.relation)
    named, other = (a, b) if isinstance(a, Named) else (b, a)
    assert isinstance(named, Named)
    if isinstance(other, Relation):
        return False if named.relation is None else _same_relation(named.relation, other)
    if isinstance(other, Parts) and other.kind == "list" and named.name.startswith("("):
        # (x, y) = (1, 2) is x = 1, y = 2
        names = named.name[1:-1].split(",")
        values = {item.name: item.value for item in other.items if isinstance(item, Named)}
        if len(values) == len(other.items) == len(names) and set(values) == set(names):
            return same(named.value, Parts("()", tuple(values[name] for name in names)))
    return same(named.value, other)


def _same_parts(a: Parts, b: Parts) -> bool | None:
    for one, other in ((a, b), (b, a)):
        # x = 1, y = 2 as the point (1, 2)
        named = {item.name: item.value for item in one.items if isinstance(item, Named)}
        if other.kind == "()" and one.kind == "list" and len(named) == len(one.items):
            return same(Parts("()", tuple(named[name] for name in sorted(named))), other)
    unordered = {"set", "list", "union"}
    if a.kind != b.kind and not (a.kind in unordered and b.kind in unordered):
        # One interval may be written as a union.
        return None if "union" in (a.kind, b.kind) else False
    if len(a.items) != len(b.items):
        # Unions and sets may be written with more parts than they need: {1} u {2, 3}.
        return None if "union" in (a.kind, b.kind) else False
    if a.is_ordered:
        return _all(same(x, y) for x, y in zip(a.items, b.items, strict=True))
    verdict = _matched(a.items, b.items, same)
    return None if verdict is False and "union" in (a.kind, b.kind) else verdict


def _same_relation(a: Relation, b: Relation) -> bool | None:
    if [plain(side) for side in a.sides] == [plain(side) for side in b.sides]:
        return a.signs == b.signs
    if len(a.signs) != len(b.signs):
        return False
    for one, other, flipped in ((a, b, False), (a, b, True)):
        signs, sides = other.signs, other.sides
        differences = other.differences
        if flipped:
            signs = tuple(FLIPPED.get(sign, sign) for sign in reversed(signs))
            sides = sides[::-1]
            if differences is not None:
                differences = tuple(_negated(part) for part in reversed(differences))
        if one.signs != signs:
            continue
        if [plain(side) for side in one.sides] == [plain(side) for side in sides]:
            return True
        if one.differences is None or differences is None:
            continue
        verdicts = (
            _proportional(x, y, positive=sign in FLIPPED)
            for x, y, sign in zip(one.differences, differences, signs, strict=True)
        )
        if len(signs) == 1 and next(verdicts):
            return True
        if len(signs) > 1 and _all(map(same, map(read, one.sides), map(read, sides))):
            return True
    known = a.differences is not None and b.differences is not None
    return False if known else None


def _negated(expression: Expression) -> Expression:
    return scaled(expression, Fraction(-1))


def _proportional(a: Expression, b: Expression, positive: bool) -> bool:
    try:
        return expression_equality.proportional(a, b, positive)
    except (TooLarge, Unreadable):
        return False


def _same_matrix(a: Matrix, b: Matrix) -> bool | None:
    if a.bars != b.bars or [len(row) for row in a.rows] != [len(row) for row in b.rows]:
        return False
    pairs = zip(a.rows, b.rows, strict=True)
    return _all(same(x, y) for left, right in pairs for x, y in zip(left, right, strict=True))


def _all(verdicts: Iterator[bool | None]) -> bool | None:
    known: bool | None = True
    for verdict in verdicts:
        if verdict is False:
            return False
        known = known if verdict else None
    return known


def _matched(
    a: Sequence[Answer], b: Sequence[Answer], equal: Callable[[Answer, Answer], bool | None]
) -> bool | None:
    """Whether the items can be paired, in any order, each with an equal one."""
    left = list(b)
    unsure: list[Answer] = []
    for item in a:
        partner = next((i for i, other in enumerate(left) if equal(item, other) is True), None)
        if partner is None:
            unsure.append(item)
        else:
            left.pop(partner)
    for item in unsure:
        if all(equal(item, other) is False for other in left):
            return False
    return None if unsure else True
