"""Numbers as people write them, as exact rationals of bounded size, and back as text."""

from __future__ import annotations

import re
from fractions import Fraction

MAX_DIGITS = 200
"""Digits of a numerator or denominator; a number with more is not read."""
MAX_EXPONENT = 2 * MAX_DIGITS

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_DECIMAL = rf"(?:{_DIGITS}(?:\.[0-9]+)?|\.[0-9]+)"
_NUMBER = re.compile(
    # A sign behind a digit, a letter or a bracket subtracts or joins; it belongs to no number.
    r"((?<![0-9A-Za-z)\]}%])[-+][ ]?)?[$€£]?[ ]?([-+])?"
    rf"(?:([0-9]{{1,9}})[ ](?=[0-9]{{1,9}}/[0-9]))?({_DECIMAL})"
    rf"(?:[eE]([+-]?[0-9]{{1,3}})(?![0-9]))?(?:[ ]?/[ ]?({_DIGITS}))?"
)


def find_numbers(text: str) -> list[re.Match[str]]:
    """The places of all numbers in a text, in order: 18, -$1,450.50, 3/4, 2 1/2, .5, 3e5."""
    return list(_NUMBER.finditer(text))


def read_number(match: re.Match[str]) -> Fraction | None:
    """The value at a place that `find_numbers` gave; None when it is too large or divides by 0."""
    sign, inner_sign, whole, decimal, exponent, denominator = match.groups()
    if sign and inner_sign:
        return None
    if max(map(len, (decimal, denominator or ""))) > 2 * MAX_DIGITS:
        return None
    if abs(int(exponent or 0)) > MAX_EXPONENT:
        return None
    value = Fraction(decimal.replace(",", "")) * Fraction(10) ** int(exponent or 0)
    if denominator:
        divisor = int(denominator.replace(",", ""))
        if divisor == 0:
            return None
        value /= divisor
    value += int(whole or 0)
    if max(value.numerator, value.denominator) >= 10**MAX_DIGITS:
        return None
    return -value if "-" in (sign or "") + (inner_sign or "") else value


def parse_number(text: str) -> Fraction | None:
    """The value of a text that is one number and nothing else."""
    match = _NUMBER.fullmatch(text.strip())
    return None if match is None else read_number(match)


def format_number(value: Fraction) -> str:
    """The canonical text of a rational: an integer, a short decimal, or p/q in lowest terms."""
    numerator, denominator = value.numerator, value.denominator
    if denominator == 1:
        return str(numerator)
    places = next((p for p in range(1, 13) if 10**p % denominator == 0), None)
    if places is None:
        return f"{numerator}/{denominator}"
    digits = str(abs(numerator) * 10**places // denominator).rjust(places + 1, "0")
    return f"{'-' if numerator < 0 else ''}{digits[:-places]}.{digits[-places:]}"
