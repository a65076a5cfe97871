"""What an answer is (a number with its unit, a list, an interval, an equation...) and its equality.

An answer in canonical LaTeX is taken apart here: lists, sets, tuples, intervals, unions, matrices,
relations, times, words. The parts are compared by `malt_jax.grading.expressions`. A comparison that
neither can make is left open, for a computer algebra system to decide.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from malt_jax.grading import expressions
from malt_jax.grading.expressions import Expression, TooLarge, Unreadable
from malt_jax.grading.rationals import parse_number
from malt_jax.grading.units import SCALES, canonical_unit, is_known_unit

MAX_PARTS = 100
MAX_DEPTH = 12


@dataclass(frozen=True)
class Words:
    """A text: "Thursday", "no solution"."""

    text: str


@dataclass(frozen=True)
class Quantity:
    """A number or an expression; `expression` is None when the grammar does not reach it."""

    latex: str
    expression: Expression | None
    unit: str = ""
    percent: bool = False
    refused: bool = False


@dataclass(frozen=True)
class InBase:
    """Digits in a base that is written with them: 664_7."""

    digits: str
    base: str


@dataclass(frozen=True)
class Parts:
    """Several answers in one.

    kind: "list", "and" or "or" (inequalities), "set", "union": without order; two brackets such as
        "(]" for a tuple or an interval, ":" for a ratio or a time.
    """

    kind: str
    items: tuple[Answer, ...]

    @property
    def is_ordered(self) -> bool:
        return self.kind not in ("list", "and", "or", "set", "union")


@dataclass(frozen=True)
class Matrix:
    """Rows of a matrix or of a vector; `bars` for a determinant."""

    rows: tuple[tuple[Answer, ...], ...]
    bars: bool


@dataclass(frozen=True)
class Named:
    """x = 5, f(x) = x^2, x \\in [1, 2], (x, y) = (1, 2)."""

    name: str
    value: Answer
    relation: Relation | None


@dataclass(frozen=True)
class Relation:
    """Sides and the signs between them, as in 2x + y = 5 or a < b \\le c."""

    signs: tuple[str, ...]
    sides: tuple[str, ...]
    differences: tuple[Expression, ...] | None
    """For each sign: right side - left side."""


@dataclass(frozen=True)
class Opaque:
    """LaTeX that is nothing of the above."""

    latex: str


Answer = Words | Quantity | InBase | Parts | Matrix | Named | Relation | Opaque

_TOKEN = re.compile(
    r"\\(?:begin|end) ?\{[A-Za-z]+\*?\}(?:\{[lcr|]*\})?|\\[A-Za-z]+|\\.|.", re.DOTALL
)
_OPENING = frozenset(["(", "[", "{", "\\{", "\\langle", "\\lfloor", "\\lceil"])
_CLOSING = frozenset([")", "]", "}", "\\}", "\\rangle", "\\rfloor", "\\rceil"])
_FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le"}
_RELATIONS = frozenset(["=", "\\equiv", "<", ">", "\\le", "\\ge", "\\ne", "\\in", "\\approx"])
_INEQUALITIES = frozenset(_FLIPPED)
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
_ONE_OR_SEVERAL = re.compile(r"-?\d{1,3}(?:,\d{3})+")
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
_SET_BUILDER = re.compile(r"([a-zA-Z])(?: ?\\in ?\\mathbb\{R\})? ?(?:\\mid|\\colon|:|\|) ?(.*)")
_SQUARE_METRES = re.compile(r"(.*[0-9}]) (m ?\^ ?\{? ?[23] ?\}?)")
_DEGREES = re.compile(r"(.*[^\s]) ?\^ ?\\circ ?(?:\\text ?\{ ?[CF]? ?\}|[CF])?", re.DOTALL)
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)")
_SCALE = re.compile(rf"(.*[0-9]) ?(?:\\text ?\{{ ?)?({'|'.join(SCALES)})\b ?([A-Za-z ]*)\}}?")
_CHOICE = re.compile(r"\(? ?(?:\\text ?\{)? ?\(? ?([A-Z]) ?\)? ?\}? ?\)?")
_WORDS = re.compile(r"[A-Za-z][A-Za-z0-9'. ,;:!?()/&-]*")
_NUMBER_WORDS = {word: Fraction(value) for value, word in enumerate(["zero", "one", *_BASE_NAMES])}


REALS = Parts(
    "()",
    (
        Quantity("-\\infty", Expression(expressions.MINUS_INFINITY, frozenset(), False)),
        Quantity("\\infty", Expression(expressions.INFINITY, frozenset(), False)),
    ),
)


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
    return _read_quantity(latex)


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
    match = _CLOCK.fullmatch(_text_content(latex) or latex)
    if match is None or not 1 <= int(match[1]) <= 12:
        return None
    hour = int(match[1]) % 12 + (12 if match[4].lower() == "p" else 0)
    parts = [str(hour), match[2] or "00", *([match[3]] if match[3] else [])]
    return Parts(":", tuple(_read_quantity(str(int(part))) for part in parts))


def _read_list(latex: str, depth: int) -> Answer | None:
    inner = _text_content(latex)
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
        return any(sign in _INEQUALITIES for sign in item.signs)
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
            return Named(_plain(sides[0]), _read(sides[-1], depth + 1), relation)
        values = [_read(side, depth + 1) for side in sides] if signs[0] == "=" else []
        if values and all(isinstance(value, Quantity) for value in values):
            constant = [value for value in values if _is_constant(value)]
            if len(constant) == len(values) and all(same(values[0], v) is True for v in values):
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


def _is_constant(answer: Answer) -> bool:
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
        return Named(_plain(sides[0]), Parts("union", around), _relation(sides, signs))
    if any(sign not in ("<", "\\le") for sign in signs):
        if any(sign not in (">", "\\ge") for sign in signs):
            return None
        sides, signs = sides[::-1], [_FLIPPED[sign] for sign in reversed(signs)]
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
    name = _plain(sides[1])
    given = [i for i, side in enumerate(sides) if not side.endswith("\\infty")]
    between = range(given[0], given[-1])
    relation = _relation([sides[i] for i in given], [signs[i] for i in between])
    return Named(name, Parts(kind, (low, high)), relation)


def _difference(left: str, right: str) -> Expression | None:
    try:
        return expressions.difference(expressions.read(right), expressions.read(left))
    except Unreadable:
        return None


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


def _text_content(latex: str) -> str | None:
    """What a single \\text{...} around everything holds."""
    match = re.fullmatch(r"\\text ?\{([^{}]*)\}", latex)
    return match[1].strip() if match else None


def _plain(latex: str) -> str:
    """Without \\text around its words, and without spaces that could be anywhere."""
    return re.sub(r"\s+", "", re.sub(r"\\text ?\{([^{}]*)\}", r"\1", latex))


def _read_words(latex: str, depth: int) -> Answer | None:
    if match := _CHOICE.fullmatch(latex):
        return Quantity(match[1], expressions.read(match[1]))
    if latex == "\\emptyset":
        return Words(latex)
    content = re.sub(r"\\text ?\{([^{}]*)\}", r" \1 ", latex)
    content = " ".join(content.split())
    if not _WORDS.fullmatch(content) or "\\" in content:
        return None
    is_text = _text_content(latex) is not None
    has_word = re.search(r"[A-Za-z]{4}|^[A-Z][a-z]{1,2}$", content)
    if not has_word and not (is_text and re.search("[A-Za-z]{2}", content)):
        return None
    if re.fullmatch(r"[A-Za-z]{1,3}(?:\(.*\)|[-/].*)", content):
        return None
    words = re.sub(r"\s+", " ", content.casefold()).strip(" .")
    if words in ("all real numbers", "all reals"):
        return REALS
    if words in _NUMBER_WORDS:
        return Quantity(words, expressions.read(str(_NUMBER_WORDS[words])))
    return Words(re.sub(r"^(?:the|an?) (?=\w)", "", words))


def _read_quantity(latex: str) -> Answer:
    content = _text_content(latex)
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
        tree_of = expressions.MINUS_INFINITY if "-" in value else expressions.INFINITY
        return Quantity(value, Expression(tree_of, frozenset(), False))
    try:
        return Quantity(value, expressions.read(value), unit, percent)
    except Unreadable:
        if re.search(r"\d \d", value):  # two numbers side by side are none
            return Quantity(value, None, refused=True)
        if unit or percent:
            return Quantity(value, None, unit, percent)
        return Opaque(latex)


def equal(a: str, b: str) -> bool | None:
    """Whether two canonical answers are equal; None when it takes more algebra to tell."""
    if not (_is_balanced(a) and _is_balanced(b)):
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


def _is_balanced(latex: str) -> bool:
    depth = 0
    for token in _TOKEN.findall(latex):
        depth += (token == "{") - (token == "}")
        if depth < 0:
            return False
    return depth == 0


def same(a: Answer, b: Answer) -> bool | None:
    """Whether two answers are equal; None when it takes more algebra to tell."""
    if isinstance(a, Named) or isinstance(b, Named):
        return _same_named(a, b)
    if isinstance(a, Quantity) and isinstance(b, Quantity):
        return _same_quantity(a, b)
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
            return _plain(answer.latex).casefold()
        return None

    left, right = text(a), text(b)
    if left is None or right is None:
        return False
    return left.replace(" ", "") == right.replace(" ", "")


def _same_opaque(a: Answer, b: Answer) -> bool | None:
    if isinstance(a, Opaque) and isinstance(b, Opaque) and _plain(a.latex) == _plain(b.latex):
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


def _same_quantity(a: Quantity, b: Quantity) -> bool | None:
    if a.refused or b.refused:
        return False
    units = {unit for unit in (a.unit, b.unit) if unit}
    if len(units) > 1 or (units and (a.percent or b.percent)):
        return False
    if a.expression is None or b.expression is None:
        return True if _plain(a.latex) == _plain(b.latex) else None
    try:
        if expressions.equal(a.expression, b.expression):
            return True
        if a.percent == b.percent:
            return False
        part, whole = (a, b) if a.percent else (b, a)
        assert part.expression is not None and whole.expression is not None
        hundredth = expressions.scaled(part.expression, Fraction(1, 100))
        return expressions.equal(hundredth, whole.expression)
    except TooLarge:
        return False
    except Unreadable:
        return None


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
    if [_plain(side) for side in a.sides] == [_plain(side) for side in b.sides]:
        return a.signs == b.signs
    if len(a.signs) != len(b.signs):
        return False
    for one, other, flipped in ((a, b, False), (a, b, True)):
        signs, sides = other.signs, other.sides
        differences = other.differences
        if flipped:
            signs = tuple(_FLIPPED.get(sign, sign) for sign in reversed(signs))
            sides = sides[::-1]
            if differences is not None:
                differences = tuple(_negated(part) for part in reversed(differences))
        if one.signs != signs:
            continue
        if [_plain(side) for side in one.sides] == [_plain(side) for side in sides]:
            return True
        if one.differences is None or differences is None:
            continue
        verdicts = (
            _proportional(x, y, positive=sign in _INEQUALITIES)
            for x, y, sign in zip(one.differences, differences, signs, strict=True)
        )
        if len(signs) == 1 and next(verdicts):
            return True
        if len(signs) > 1:
            equal_sides = _all(
                same(_read(x, 1), _read(y, 1)) for x, y in zip(one.sides, sides, strict=True)
            )
            if equal_sides:
                return True
    known = a.differences is not None and b.differences is not None
    return False if known else None


def _negated(expression: Expression) -> Expression:
    return expressions.scaled(expression, Fraction(-1))


def _proportional(a: Expression, b: Expression, positive: bool) -> bool:
    try:
        return expressions.proportional(a, b, positive)
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
