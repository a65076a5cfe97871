r"""Canonical texts: numbers as exact rationals, LaTeX in one spelling.

The rules for LaTeX undo what authors vary without a change of meaning: spaces, \left and \right,
\dfrac, short fractions, Unicode signs, Markdown, thousands separators, a final point. Rational
numbers get one text. Units, names of variables and the order of parts stay: `equality` judges them.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

MAX_DIGITS = 200
"""Digits of a numerator or denominator; a number with more is not read."""
MAX_EXPONENT = 2 * MAX_DIGITS

_DIGITS = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_NUMBER = re.compile(
    # A sign after a digit, a letter or a bracket subtracts or joins; it belongs to no number.
    r"((?<![0-9A-Za-z)\]}%])[-+][ ]?)?[$€£]?[ ]?([-+])?"
    rf"(?:([0-9]{{1,9}})[ ](?=[0-9]{{1,9}}/[0-9]))?((?:{_DIGITS}(?:\.[0-9]+)?|\.[0-9]+))"
    rf"(?:[eE]([+-]?[0-9]{{1,3}})(?![0-9]))?(?:[ ]?/[ ]?({_DIGITS}))?"
)


def find_numbers(text: str) -> list[re.Match[str]]:
    """Matches of all numbers in a text, in order: 18, -$1,450.50, 3/4, 2 1/2, .5, 3e5."""
    return list(_NUMBER.finditer(text))


def read_number(match: re.Match[str]) -> Fraction | None:
    """The value of a match of `find_numbers`; None when it is too large or divides by 0."""
    sign, inner_sign, whole, decimal, exponent, denominator = match.groups()
    too_long = max(len(decimal), len(denominator or "")) > 2 * MAX_DIGITS
    if (sign and inner_sign) or too_long or abs(int(exponent or 0)) > MAX_EXPONENT:
        return None
    divisor = int((denominator or "1").replace(",", ""))
    if divisor == 0:
        return None
    value = Fraction(decimal.replace(",", "")) * Fraction(10) ** int(exponent or 0) / divisor
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


_SIGN_NAMES = """
times cdot cdot div pi theta alpha beta gamma phi omega lambda infty le ge ne approx pm cup cap in
emptyset
"""
_NAMED_SIGNS = zip("×⋅·÷πθαβγφωλ∞≤≥≠≈±∪∩∈∅", _SIGN_NAMES.split(), strict=True)
FULL_WIDTH: dict[int, str] = {
    **{code + 0xFEE0: chr(code) for code in range(0x21, 0x7F)},
    **{
        ord(sign): ascii_sign for sign, ascii_sign in zip("。，、", (". ", ", ", ", "), strict=True)
    },
}
"""For str.translate: the signs of Chinese texts as those of ASCII."""
_SIGNS = str.maketrans(
    {
        **{chr(code): sign for code, sign in FULL_WIDTH.items()},
        **dict.fromkeys("−–—‐‑‒﹣－", "-"),
        **dict.fromkeys("\u00a0\u2002\u2003\u2009\u200a\u202f\u2007\u3000", " "),
        **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", ""),
        **dict.fromkeys("’‘ʼ′", "'"),
        **dict.fromkeys("“”", '"'),
        **{sign: f"\\{name} " for sign, name in _NAMED_SIGNS},
        **{sign: f"^{digit}" for digit, sign in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")},
        **{"½": r"\frac{1}{2}", "⅓": r"\frac{1}{3}", "⅔": r"\frac{2}{3}"},
        **{"¼": r"\frac{1}{4}", "¾": r"\frac{3}{4}"},
        **{"∗": "*", "ℝ": r"\mathbb{R}", "°": r"^\circ "},
    }
)
_WITHOUT_MEANING = """
left right middle big Big bigg Bigg bigl Bigl biggl Biggl bigm Bigm biggm Biggm bigr Bigr biggr
Biggr displaystyle textstyle scriptstyle limits
"""
_COMMANDS = {
    **dict.fromkeys(_WITHOUT_MEANING.split(), ""),
    **dict.fromkeys(["quad", "qquad"], " "),
    **dict.fromkeys(["dfrac", "tfrac", "cfrac"], r"\frac"),
    **dict.fromkeys(["dbinom", "tbinom"], r"\binom"),
    **dict.fromkeys(["lvert", "rvert", "vert"], "|"),
    **dict.fromkeys(["leqslant", "leqq", "leq", "le"], r"\le "),
    **dict.fromkeys(["geqslant", "geqq", "geq", "ge"], r"\ge "),
    **dict.fromkeys(["neq", "ne"], r"\ne "),
    **dict.fromkeys(["ast", "star"], "*"),
    **dict.fromkeys(["varnothing", "emptyset"], r"\emptyset "),
    **dict.fromkeys(["degree", "degrees"], r"^\circ "),
    **{"lbrace": r"\{", "rbrace": r"\}", "lbrack": "[", "rbrack": "]", "lt": "<", "gt": ">"},
    "infty": r"\infty ",
}
_FUNCTIONS = "(?:arc)?(?:sin|cos|tan|cot|sec|csc)|sinh|cosh|tanh|ln|log"

_RULES: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # Groups of three digits: 10,\!000  10{,}000  10\,000
        (r"(?<=\d) ?(?:,? ?\\!|\{ ?, ?\}|\\,) ?(?=\d{3}(?!\d))", ""),
        (r"\\phantom ?(?:\{[^{}]*\}|-|[0-9])|\\[hv]space\*? ?\{[^{}]*\}|\\!", ""),
        (r"(?<!\\)\\[,;: >]|~|[ \t\r\n]+", " "),
        (r"\\(?:left|right|middle) ?\.|(?<!\\)\\[()\[\]]", ""),
        (r"\\([A-Za-z]+)", lambda match: _COMMANDS.get(match[1], match[0])),
        (r"\^ ?\{ ?\\circ ?\}|\^ ?\\circ(?![A-Za-z])", r"^\\circ "),
        (r"\\(?:operatorname|mathrm|text) ?\{ ?(" + _FUNCTIONS + r") ?\}", r"\\\1 "),
        (r"\\operatorname ?\{ ?(gcd|lcm|max|min) ?\}", r"\\\1 "),
        (r"\^ ?\{ ?(?:\\(?:text|mathrm) ?\{ ?)?(?:st|nd|rd|th) ?\}? ?\}", r"\\text{th}"),
        (
            r"\\(?:text(?:bf|it|rm|sf|tt|normal|up)|[mh]box|math(?:rm|sf|it)|operatorname) ?\{",
            r"\\text{",
        ),
        (r"\\(?:mathbf|boldsymbol|bm|mathnormal|underline) ?\{([^{}]*)\}", r"\1"),
        (r"\\text ?\{ ?([ie]) ?\}", r"\1"),
        (r"\\(?:color|textcolor) ?\{[a-zA-Z]{1,20}\}", ""),
        (r"\\mathbb ?\{? ?([A-Z]) ?\}?", r"\\mathbb{\1}"),
        (r"\{ ?([^{}]{1,50}?) ?\\choose ?([^{}]{1,50}?) ?\}", r"\\binom{\1}{\2}"),
        (r"\\text ?\{\s*(-?[0-9.,]+|-?\\infty|[ ]*)\s*\}", r" \1 "),
        (r"\\frac ?([0-9])(?=[ 0-9{\\a-zA-Z])", r"\\frac{\1}"),
        (r"(\\frac ?\{[^{}]{0,200}\}) ?([0-9a-zA-Z])", r"\1{\2}"),
        (r"\\sqrt ?([0-9a-zA-Z])", r"\\sqrt{\1}"),
        (r"([\^_]) ?\{ ?([A-Za-z0-9]) ?\}", r"\1\2"),
        (r"<=|=<", r"\\le "),
        (r">=|=>", r"\\ge "),
        (r"!=|\\not ?=", r"\\ne "),
        (r"(?<![A-Za-z\\])[+]?(?:infinity|\\infty(?![A-Za-z]))", r"\\infty "),
        (r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi "),
        (r"(?<![A-Za-z\\])sqrt ?\(([^()]{1,100})\)", r"\\sqrt{\1}"),
        (r"√ ?\(([^()]{1,100})\)|√ ?([0-9]{1,50}|[a-z])", r"\\sqrt{\1\2}"),
        (r"(?<!\\)%", r"\\%"),
        # Money before its number as money after it.
        (r"€ ?([0-9][0-9.,]*)|([0-9]) ?€", r"\1\2\\text{euros}"),
        (r"£ ?([0-9][0-9.,]*)|([0-9]) ?£", r"\1\2\\text{pounds sterling}"),
        # A comma and a space separate two numbers even if the second one has three digits.
        (r"(?<=[0-9]),\s+(?=[0-9]{3}(?![0-9]))", ";"),
        (r" {2,}", " "),
    )
)
_SPACES_THAT_SEPARATE_NOTHING = re.compile(r"(?<![A-Za-z0-9.]) | (?![A-Za-z0-9.])")
_EMPHASIS = re.compile(r"(\*\*|__|\*|_|`+)([^*`]+)\1[.,:;]?")
_LEAD_IN = re.compile(
    r"(?i)(?:so |thus |hence |therefore )?,? ?(?:the )?(?:final |correct )?answer"
    r"(?: is| ?:|=)(?: ?:)? ?"
)
_BOXED = re.compile(r"(?s)\\(?:boxed|fbox) ?\{(.*)\}")
_FRACTION = re.compile(
    r"(-?) ?(?:([0-9]{1,200}) ?)?\\frac ?\{ ?(-?[0-9]{1,200}) ?\} ?\{ ?(-?[0-9]{1,200}) ?\}"
)
_SPACED_GROUPS = re.compile(r"-?[1-9][0-9]{0,2}(?: [0-9]{3})+(?:\.[0-9]+)?")
_MAX_PASSES = 6


def normalize_latex(answer: str) -> str | None:
    """The canonical spelling of a LaTeX answer of bounded length.

    Rational numbers become `format_number` of their value. A canonical answer is left as it is.
    None when nothing is left, or for input made to change at every pass.
    """
    for _ in range(_MAX_PASSES):
        normalized = _normalize_once(answer)
        if normalized == answer:
            return answer or None
        answer = normalized
    return None


def _normalize_once(answer: str) -> str:
    answer = _without_dollars(answer.translate(_SIGNS)).strip()
    if "\\begin" not in answer:  # where \\ begins no row, it is a command escaped twice
        answer = re.sub(r"\\\\(?=[A-Za-z])", r"\\", answer)
    if match := _EMPHASIS.fullmatch(answer):
        answer = match[2]
    for pattern, replacement in _RULES:
        answer = pattern.sub(replacement, answer)
    answer = answer.strip()
    if match := _LEAD_IN.match(answer):
        answer = answer[match.end() :]
    if (match := _BOXED.fullmatch(answer)) and is_balanced(match[1]):
        answer = match[1].strip()
    answer = re.sub(r"^(?:=|\\approx(?![a-z])) ?", "", answer)
    if not answer.endswith("..."):
        answer = re.sub(r"[ .,;:\\]+$", "", answer)
    answer = without_outer_braces(answer.strip('"` '))
    if _SPACED_GROUPS.fullmatch(answer):
        answer = answer.replace(" ", "")
    value = _rational(answer)
    if value is not None:
        return format_number(value)
    return _SPACES_THAT_SEPARATE_NOTHING.sub("", answer)


def _without_dollars(answer: str) -> str:
    """Dollars that enclose mathematics are dropped; one before a number is money."""
    dollars = len(re.findall(r"(?<!\\)\$", answer))
    if dollars % 2 and re.match(r"-?\s*\$\s*-?[\d.]", answer):
        answer = re.sub(r"(?<!\\)\$", r"\\$", answer, count=1)
    return re.sub(r"(?<!\\)\$", " ", answer)


def without_outer_braces(answer: str) -> str:
    """Without the braces of a group that holds everything."""
    if answer.startswith("{") and answer.endswith("}") and is_balanced(answer[1:-1]):
        return answer[1:-1].strip()
    return answer


def is_balanced(text: str) -> bool:
    """Whether every brace has its partner."""
    depth = 0
    for brace in re.findall(r"\\.|[{}]", text):
        depth += {"{": 1, "}": -1}.get(brace, 0)
        if depth < 0:
            return False
    return depth == 0


def _rational(text: str) -> Fraction | None:
    """The value of \\frac{p}{q}, n\\frac{p}{q} or a plain number, else None."""
    match = _FRACTION.fullmatch(text)
    if match is None:
        # "60,120" may be two numbers, which shows when it is compared.
        return None if re.search("[$€£,]", text) else parse_number(text)
    sign, whole, numerator, denominator = match.groups()
    if int(denominator) == 0 or (whole and "-" in numerator + denominator):
        return None
    value = Fraction(int(numerator), int(denominator)) + int(whole or 0)
    return -value if sign else value


def text_content(latex: str) -> str | None:
    """The content of a single \\text{...} around everything."""
    match = re.fullmatch(r"\\text ?\{([^{}]*)\}", latex)
    return match[1].strip() if match else None


def plain(latex: str) -> str:
    """Without \\text around its words, and without spaces, except those between digits."""
    latex = re.sub(r"\\text ?\{([^{}]*)\}", r"\1", latex)
    return re.sub(r"(?<![0-9])\s+|\s+(?![0-9])", "", latex)
