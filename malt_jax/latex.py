"""LaTeX answers in one spelling, so that equal ones are mostly equal texts.

The rules undo what authors vary: spaces, \\left and \\right, \\dfrac, short fractions, degree and
percent signs, \\text around words, a variable the answer is assigned to, units behind a number.
They never compute anything but the value of a rational number.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from malt_jax.rationals import format_number, parse_number

_RULES: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"\\!|\{,\}(?=[0-9]{3})", lambda match: "," if match[0] == "{,}" else ""),
        (r"\\[,;: ]|~|\\q?quad(?![A-Za-z])|[ \t\r\n]+", " "),
        (r"\\(?:left|right|displaystyle|limits)(?![A-Za-z])|\\[()\[\]]|\\?\$|\\?%", ""),
        (r"\^ ?(?:\\circ(?![A-Za-z])|\{ ?\\circ ?\})|\\degrees?(?![A-Za-z])|°", ""),
        (r"\\(?:text|textbf|textit|textrm|mbox|mathrm|mathbf|operatorname) ?\{([^{}]*)\}", r" \1 "),
        (r"\\[dtc]frac(?![A-Za-z])", r"\\frac"),
        (r"\\frac ?([0-9])", r"\\frac{\1}"),
        (r"(\\frac ?\{[^{}]{0,200}\}) ?([0-9])", r"\1{\2}"),
        (r"\\sqrt ?([0-9])", r"\\sqrt{\1}"),
        (r"([\^_]) ?\{ ?([A-Za-z0-9]) ?\}", r"\1\2"),
        (r"\\(?:leq|le)(?![A-Za-z])|≤", r"\\le "),
        (r"\\(?:geq|ge)(?![A-Za-z])|≥", r"\\ge "),
        (r"\\(?:neq|ne)(?![A-Za-z])|≠", r"\\ne "),
        (r"−|–", "-"),
        (r"π", r"\\pi "),
        (r"√ ?([0-9]{1,50})", r"\\sqrt{\1}"),
        (r" {2,}", " "),
    )
)
_SPACES_THAT_SEPARATE_NOTHING = re.compile(r"(?<![A-Za-z0-9]) | (?![A-Za-z0-9])")
_ASSIGNED = re.compile(r"(?:[A-Za-z]|\\[a-z]{1,10})(?:_[A-Za-z0-9])? ?=([^=<>]*)")
_WITH_UNIT = re.compile(r"(.*[0-9}.]) ?([A-Za-z]{2,20}(?: [A-Za-z]{1,20}){0,3})\.?(?:\^[23])?")
_FRACTION = re.compile(
    r"(-?) ?(?:([0-9]{1,200}) ?)?\\frac ?\{ ?(-?[0-9]{1,200}) ?\} ?\{ ?(-?[0-9]{1,200}) ?\}\.?"
)
_UNIT_NAMES = """
per square sq cubic unit units percent degree degrees dollar dollars cent cents mm cm km inch
inches foot feet yard yards mile miles meter meters metre metres centimeter centimeters
kilometer kilometers mph kph second seconds minute minutes hour hours day days week weeks month
months year years gram grams kg kilogram kilograms pound pounds ounce ounces liter liters litre
litres ml gallon gallons people students ways
"""
_UNITS = frozenset(_UNIT_NAMES.split())
_MAX_PASSES = 4


def normalize_latex(answer: str) -> str | None:
    """The canonical spelling of a LaTeX answer of bounded length.

    Rational numbers become `rationals.format_number` of their value. A canonical answer is left as
    it is. None when nothing is left, or for input made to change at every pass.
    """
    for _ in range(_MAX_PASSES):
        normalized = _normalize_once(answer)
        if normalized == answer:
            return answer or None
        answer = normalized
    return None


def _normalize_once(answer: str) -> str:
    for pattern, replacement in _RULES:
        answer = pattern.sub(replacement, answer)
    answer = answer.strip()
    if match := _ASSIGNED.fullmatch(answer):
        answer = match[1].strip()
    match = _WITH_UNIT.fullmatch(answer)
    if match and all(word.lower() in _UNITS for word in match[2].split()):
        answer = match[1].strip()
    value = _rational(answer)
    if value is not None:
        return format_number(value)
    if answer.endswith("."):
        answer = answer[:-1]
    return _SPACES_THAT_SEPARATE_NOTHING.sub("", answer)


def _rational(text: str) -> Fraction | None:
    """The value of \\frac{p}{q}, n\\frac{p}{q} or a plain number, else None."""
    match = _FRACTION.fullmatch(text)
    if match is None:
        return parse_number(text.removesuffix("."))
    sign, whole, numerator, denominator = match.groups()
    if int(denominator) == 0 or (whole and "-" in numerator + denominator):
        return None
    value = Fraction(int(numerator), int(denominator)) + int(whole or 0)
    return -value if sign else value
