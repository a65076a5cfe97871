"""Units behind (or before) a number, in one spelling."""

from __future__ import annotations

import re

_SYNONYMS = {
    "dollar": r"\$ usd dollars bucks dollar",
    "cent": "cents cent",
    "euro": "euros eur euro",
    "pound sterling": "pounds#sterling pound#sterling gbp",
    "degree": r"^\circ degrees deg degree degrees#celsius",
    "m": "meters metre metres meter m",
    "cm": "centimeters centimeter centimetre centimetres cms cm",
    "mm": "millimeters millimeter millimetre millimetres mm",
    "km": "kilometers kilometer kilometre kilometres kms km",
    "in": "inches inch in",
    "ft": "feet foot ft",
    "yd": "yards yard yd",
    "mi": "miles mile mi",
    "mi/h": "mph",
    "km/h": "kph kmh kmph",
    "h": "hours hour hrs hr h",
    "min": "minutes minute mins min",
    "s": "seconds second secs sec s",
    "day": "days day",
    "week": "weeks week",
    "month": "months month",
    "year": "years year yrs yr years#old year#old",
    "g": "grams gram g",
    "kg": "kilograms kilogram kilo kilos kgs kg",
    "mg": "milligrams milligram mg",
    "lb": "pounds pound lbs lb",
    "oz": "ounces ounce oz",
    "l": "liters liter litre litres l",
    "ml": "milliliters milliliter millilitre millilitres ml",
    "gal": "gallons gallon gal",
    "unit": "units unit u",
    "person": "people persons person",
    "child": "children child kids kid",
    "ordinal": "st nd rd th",
}
_NAMES = {
    spelling.replace("#", " "): name
    for name, spellings in _SYNONYMS.items()
    for spelling in spellings.split()
}
_POWERS = {
    **dict.fromkeys(["square", "sq", "sq.", "squared"], "2"),
    **dict.fromkeys(["cubic", "cu", "cu.", "cubed"], "3"),
}
# Words behind a number that make another number, or no number, of it.
_NUMBER_WORDS = """
    hundred thousand million billion trillion dozen score half halves third thirds quarter
    quarters fourth fourths fifth fifths sixth sixths seventh eighth eighths ninth tenth tenths
    hundredth hundredths thousandth thousandths millionth over under plus minus times divided by
    squared cubed factorial remainder mod modulo base and or to not am pm less more than before
    after is are negative below sqrt root pi infinity even odd if for with k ks tens hundreds
    thousands millions billions pair pairs dozens power the choose percent pct percentage
"""
_NO_UNITS = frozenset(_NUMBER_WORDS.split())
SCALES = {
    "dozen": 12,
    "hundred": 100,
    "thousand": 1_000,
    "million": 1_000_000,
    "billion": 1_000_000_000,
    "trillion": 1_000_000_000_000,
}
_KNOWN = frozenset(_NAMES)
_WORD = re.compile(r"[A-Za-z]+[.']?")


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
    if len(words) > 1:
        for place in (0, -1):
            if not power and words[place] in _POWERS:
                power = _POWERS[words.pop(place)]
                break
    name = " ".join(words)
    if name in _NAMES:
        name = _NAMES[name]
    else:
        for word in words:
            if not _WORD.fullmatch(word) or word in _NO_UNITS:
                return None
        if len(words) > 5:
            return None
        name = " ".join(_NAMES.get(word, _singular(word)) for word in words)
    return f"{name}^{power}" if power else name


def is_known_unit(text: str) -> bool:
    """Whether words are a unit by name, not just any words."""
    name = text.strip().lower().rstrip(".")
    return name in _KNOWN and len(name) > 1


def _singular(word: str) -> str:
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word
