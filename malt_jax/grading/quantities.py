"""Quantities: a number or an expression with its unit, read and compared."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from malt_jax.grading import values
from malt_jax.grading.canonical import parse_number, plain, text_content
from malt_jax.grading.expressions import INFINITIES, Expression, Unreadable, read_expression

_SYNONYMS = r"""
dollar: $ usd dollars bucks dollar
cent: cents cent
euro: euros eur euro
pound sterling: pounds#sterling pound#sterling gbp
degree: ^\circ degrees deg degree degrees#celsius
m: meters metre metres meter m
cm: centimeters centimeter centimetre centimetres cms cm
mm: millimeters millimeter millimetre millimetres mm
km: kilometers kilometer kilometre kilometres kms km
in: inches inch in
ft: feet foot ft
yd: yards yard yd
mi: miles mile mi
mi/h: mph
km/h: kph kmh kmph
h: hours hour hrs hr h
min: minutes minute mins min
s: seconds second secs sec s
day: days day
week: weeks week
month: months month
year: years year yrs yr years#old year#old
g: grams gram g
kg: kilograms kilogram kilo kilos kgs kg
mg: milligrams milligram mg
lb: pounds pound lbs lb
oz: ounces ounce oz
l: liters liter litre litres l
ml: milliliters milliliter millilitre millilitres ml
gal: gallons gallon gal
unit: units unit u
person: people persons person
child: children child kids kid
ordinal: st nd rd th
"""
_NAMES = {
    spelling.replace("#", " ").replace("$", r"\$"): name
    for name, _, spellings in (line.partition(": ") for line in _SYNONYMS.split("\n") if line)
    for spelling in spellings.split()
}
_POWERS = {
    **dict.fromkeys(["square", "sq", "sq.", "squared"], "2"),
    **dict.fromkeys(["cubic", "cu", "cu.", "cubed"], "3"),
}
# Words after a number that make another number, or no number, of it.
_NUMBER_WORDS = """
hundred thousand million billion trillion dozen score half halves third thirds quarter
quarters fourth fourths fifth fifths sixth sixths seventh eighth eighths ninth tenth tenths
hundredth hundredths thousandth thousandths millionth over under plus minus times divided by
squared cubed factorial remainder mod modulo base and or to not am pm less more than before
after is are negative below sqrt root pi infinity even odd if for with k ks tens hundreds
thousands millions billions pair pairs dozens power the choose percent pct percentage
"""
_NO_UNITS = frozenset(_NUMBER_WORDS.split())
SCALES = {"dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6}
SCALES |= {"billion": 10**9, "trillion": 10**12}

_MONEY = re.compile(r"(-?) ?\\\$ ?(?=[-\d.\\(])")
_PERCENT = re.compile(
    r"(?s)(.*?) ?(?:\\%|\\text ?\{ ?(?:percent|pct|percentage|\\%) ?\}|(?:percent|pct|percentage))"
)
_TRAILING_TEXT = re.compile(r"(?s)(.*[^\s\\]) ?\\text ?\{([^{}]*)\} ?(\^ ?\{? ?[23] ?\}?)?")
_TRAILING_WORDS = re.compile(
    r"(?s)(.*?[0-9}.)]) ?((?:[A-Za-z]{2,20}\.?|[a-z]/[a-z]{1,6}|(?<= )m(?= ?\^))"
    r"(?:(?: | ?/ ?)[A-Za-z]{1,20}){0,4}(?: ?\^ ?\{?[23]\}?)?)"
)
_MODULO = re.compile(
    r"(?s)(.*?[^\s(]) ?(?:\\pmod ?\{? ?(\d+) ?\}?"
    r"|\(? ?(?:\\text ?\{)? ?\(?\\?(?<!b)mod ?\}? ?(\d+) ?\)?)"
)
_DEGREES = re.compile(r"(?s)(.*[^\s]) ?\^ ?\\circ ?(?:\\text ?\{ ?[CF]? ?\}|[CF])?")
_TRIGONOMETRY = re.compile(r"\\(?:sin|cos|tan|cot|sec|csc)")
_SCALE = re.compile(rf"(.*[0-9]) ?(?:\\text ?\{{ ?)?({'|'.join(SCALES)})\b ?([A-Za-z ]*)\}}?")


@dataclass(frozen=True)
class Quantity:
    """A number or an expression; `expression` is None when the grammar does not reach it."""

    latex: str
    expression: Expression | None = None
    unit: str = ""
    percent: bool = False

    @property
    def is_constant(self) -> bool:
        return self.expression is not None and not self.expression.variables


def canonical_unit(text: str) -> str | None:
    """The canonical name of a unit such as "square feet", "cm^2", "miles per hour", "apples".

    None for what is none: "million", "pm", "remainder 2". Any other words are a unit of their own,
    without regard to case and to a plural s.
    """
    text = re.sub(r"\bper\b", "/", text.strip().lower().replace(r"\ ", " "))
    text = re.sub(r"\s*/\s*", "/", re.sub(r"[.,;]+$", "", text)).strip(" -")
    text = re.sub(r"\s+", " ", text)
    if not text or len(text) > 60:
        return None
    if text in _NAMES:
        return _NAMES[text]
    text = text.removeprefix("/")
    if "/" in text:
        parts = [canonical_unit(part) for part in text.split("/")]
        return "/".join(part for part in parts if part) if all(parts) else None
    power = ""
    if match := re.search(r" ?\^ ?\{? ?([23]) ?\}?$", text):
        text, power = text[: match.start()], match[1]
    words = text.split(" ")
    for place in (0, -1):
        if len(words) > 1 and not power and words[place] in _POWERS:
            power = _POWERS[words.pop(place)]
    name = _NAMES.get(" ".join(words))
    if name is None:
        is_unit = all(re.fullmatch(r"[A-Za-z]+[.']?", w) and w not in _NO_UNITS for w in words)
        if not is_unit or len(words) > 5:
            return None
        name = " ".join(_NAMES.get(word, _singular(word)) for word in words)
    return f"{name}^{power}" if power else name


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def read_quantity(latex: str) -> Quantity:
    """A number or an expression with a unit, money, a percentage, a remainder of a modulus."""
    content = text_content(latex)
    value, unit, percent = _without_unit(content if content and content[0].isdigit() else latex)
    if value.endswith(".."):  # digits that are left out
        return Quantity(value)
    value = value.strip().removesuffix(".")
    if unit and re.fullmatch(r".*[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?", value):
        value = re.sub(r"(?<=\d),(?=\d{3})", "", value)
    if not unit and not percent and (match := _SCALE.fullmatch(value)):
        number = parse_number(match[1])
        if number is not None and (not match[3].strip() or canonical_unit(match[3])):
            named = canonical_unit(match[3]) or ""
            return Quantity(value, Expression(("number", number * SCALES[match[2]])), named)
    if match := _MODULO.fullmatch(value):
        value, unit = match[1].strip(), f"mod {match[2] or match[3]}"
    number = parse_number(value) if "$" not in value else None
    if number is not None:
        return Quantity(value, Expression(("number", number)), unit, percent)
    if re.fullmatch(r"[-+]? ?\\infty", value):
        return Quantity(value, Expression(INFINITIES["-" in value]))
    try:
        return Quantity(value, read_expression(value), unit, percent)
    except Unreadable:
        return Quantity(value if unit or percent else latex, None, unit, percent)


def _without_unit(value: str) -> tuple[str, str, bool]:
    """The value, its unit, and whether it is a percentage."""
    unit = ""
    if match := _MONEY.match(value):
        value, unit = match[1] + value[match.end() :], "dollar"
    if value.endswith("\\$"):
        value, unit = value[:-2].strip(), "dollar"
    if match := _PERCENT.fullmatch(value):
        return match[1].strip(), unit, True
    if not _TRIGONOMETRY.search(value) and (match := _DEGREES.fullmatch(value)):
        return match[1].strip(), "degree", False
    if match := _TRAILING_TEXT.fullmatch(value):
        named = canonical_unit(match[2] + (match[3] or ""))
        return (match[1].strip(), unit or named, False) if named else (value, unit, False)
    if match := _TRAILING_WORDS.fullmatch(value):
        words = match[2]
        bare = re.sub(r"[^A-Za-z ].*", "", words).strip().lower()
        named = canonical_unit(words)
        known = (bare in _NAMES and len(bare) > 1) or re.search(
            r"[A-Za-z]{3}|^[mk]?[mglb]/|^m ?\^", words
        )
        if named and known:
            return match[1].strip(), unit or named, False
    return value, unit, False


def same_quantity(a: Quantity, b: Quantity) -> bool:
    """Whether two quantities are equal; those that the grammar does not reach, by their texts."""
    units = {unit for unit in (a.unit, b.unit) if unit}
    if len(units) > 1 or (units and (a.percent or b.percent)):
        return False
    if a.expression is None or b.expression is None:
        return plain(a.latex) == plain(b.latex)
    try:
        if values.equal(a.expression, b.expression):
            return True
        if a.percent == b.percent:
            return False
        part, whole = (a.expression, b.expression) if a.percent else (b.expression, a.expression)
        return values.equal(part.times(Fraction(1, 100)), whole)
    except Unreadable:
        return False
