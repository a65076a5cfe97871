"""LaTeX answers in one spelling, without a loss of meaning.

The rules undo what authors vary and what says nothing: spaces, \\left and \\right, \\dfrac, short
fractions, Unicode signs, Markdown, thousands separators, a final point. Rational numbers get their
canonical text. Units, names of variables and the order of parts stay: they are for
`malt_jax.grading.answer_equality` to judge.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fractions import Fraction

from malt_jax.grading.rationals import format_number, parse_number

_SIGNS = {
    **dict.fromkeys("−–—‐‑‒﹣－", "-"),
    **dict.fromkeys("\u00a0\u2002\u2003\u2009\u200a\u202f\u2007\u3000", " "),
    **dict.fromkeys("\u200b\u200c\u200d\u2060\ufeff", ""),
    **dict.fromkeys("’‘ʼ′", "'"),
    **dict.fromkeys("“”", '"'),
    "×": r"\times ",
    "⋅": r"\cdot ",
    "·": r"\cdot ",
    "∗": "*",
    "÷": r"\div ",
    "π": r"\pi ",
    "θ": r"\theta ",
    "α": r"\alpha ",
    "β": r"\beta ",
    "γ": r"\gamma ",
    "φ": r"\phi ",
    "ω": r"\omega ",
    "λ": r"\lambda ",
    "∞": r"\infty ",
    "≤": r"\le ",
    "≥": r"\ge ",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "±": r"\pm ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∈": r"\in ",
    "∅": r"\emptyset ",
    "ℝ": r"\mathbb{R}",
    "°": r"^\circ ",
    "⁰": "^0",
    "¹": "^1",
    "²": "^2",
    "³": "^3",
    "⁴": "^4",
    "⁵": "^5",
    "⁶": "^6",
    "⁷": "^7",
    "⁸": "^8",
    "⁹": "^9",
    "½": r"\frac{1}{2}",
    "⅓": r"\frac{1}{3}",
    "⅔": r"\frac{2}{3}",
    "¼": r"\frac{1}{4}",
    "¾": r"\frac{3}{4}",
    "％": "%",
}
_SIGN = re.compile("[" + "".join(_SIGNS) + "]")
_COMMAND_END = r"(?![A-Za-z])"
_FUNCTIONS = "(?:arc)?(?:sin|cos|tan|cot|sec|csc)|sinh|cosh|tanh|ln|log"

_RULES: tuple[tuple[re.Pattern[str], str | Callable[[re.Match[str]], str]], ...] = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        # Groups of three digits: 10,\!000  10{,}000  10\,000
        (r"(?<=\d) ?(?:,? ?\\!|\{ ?, ?\}|\\,) ?(?=\d{3}(?!\d))", ""),
        (r"\\phantom ?(?:\{[^{}]*\}|-|[0-9])|\\[hv]space\*? ?\{[^{}]*\}|\\!", ""),
        (r"(?<!\\)\\[,;: >]|~|\\q?quad" + _COMMAND_END + r"|[ \t\r\n]+", " "),
        (r"\\(?:left|right|middle) ?\.", ""),
        (r"\\(?:left|right|middle|[bB]igg?[lrm]?)" + _COMMAND_END, ""),
        (r"\\(?:display|text|script)style" + _COMMAND_END + r"|\\limits" + _COMMAND_END, ""),
        (r"(?<!\\)\\[()\[\]]", ""),
        (r"\\lbrace" + _COMMAND_END, r"\\{"),
        (r"\\rbrace" + _COMMAND_END, r"\\}"),
        (r"\\(?:lvert|rvert|vert)" + _COMMAND_END, "|"),
        (r"\\(?:lbrack)" + _COMMAND_END, "["),
        (r"\\(?:rbrack)" + _COMMAND_END, "]"),
        (r"\^ ?\{ ?\\circ ?\}|\^ ?\\circ" + _COMMAND_END, r"^\\circ "),
        (r"\\degrees?" + _COMMAND_END, r"^\\circ "),
        (r"\\(?:operatorname|mathrm|text) ?\{ ?(" + _FUNCTIONS + r") ?\}", r"\\\1 "),
        (r"\\operatorname ?\{ ?(gcd|lcm|max|min) ?\}", r"\\\1 "),
        (r"\^ ?\{ ?(?:\\(?:text|mathrm) ?\{ ?)?(?:st|nd|rd|th) ?\}? ?\}", r"\\text{th}"),
        (
            r"\\(?:textbf|textit|textrm|textsf|texttt|textnormal|textup|mbox|hbox|mathrm|mathsf"
            r"|mathit|operatorname) ?\{",
            r"\\text{",
        ),
        (r"\\(?:mathbf|boldsymbol|bm|mathnormal|underline) ?\{([^{}]*)\}", r"\1"),
        (r"\\text ?\{ ?([ie]) ?\}", r"\1"),
        (r"\\(?:color|textcolor) ?\{[a-zA-Z]{1,20}\}", ""),
        (r"\\mathbb ?\{? ?([A-Z]) ?\}?", r"\\mathbb{\1}"),
        (r"\{ ?([^{}]{1,50}?) ?\\choose ?([^{}]{1,50}?) ?\}", r"\\binom{\1}{\2}"),
        (r"\\text ?\{\s*(-?[0-9.,]+|-?\\infty|[ ]*)\s*\}", r" \1 "),
        (r"\\[dtc]frac" + _COMMAND_END, r"\\frac"),
        (r"\\[dt]binom" + _COMMAND_END, r"\\binom"),
        (r"\\frac ?([0-9])(?=[ 0-9{\\a-zA-Z])", r"\\frac{\1}"),
        (r"(\\frac ?\{[^{}]{0,200}\}) ?([0-9a-zA-Z])", r"\1{\2}"),
        (r"\\sqrt ?([0-9a-zA-Z])", r"\\sqrt{\1}"),
        (r"([\^_]) ?\{ ?([A-Za-z0-9]) ?\}", r"\1\2"),
        (r"\\(?:leqslant|leqq|leq|le)" + _COMMAND_END + r"|<=|=<", r"\\le "),
        (r"\\(?:geqslant|geqq|geq|ge)" + _COMMAND_END + r"|>=|=>", r"\\ge "),
        (r"\\(?:neq|ne|not ?=)" + _COMMAND_END + r"|!=|\\not ?=", r"\\ne "),
        (r"\\lt" + _COMMAND_END, "<"),
        (r"\\gt" + _COMMAND_END, ">"),
        (r"\\(?:ast|star)" + _COMMAND_END, "*"),
        (r"\\(?:varnothing|emptyset)" + _COMMAND_END, r"\\emptyset "),
        (r"(?<![A-Za-z\\])[+]?(?:infinity|\\infty" + _COMMAND_END + ")", r"\\infty "),
        (r"(?<![A-Za-z\\])pi(?![A-Za-z])", r"\\pi "),
        (r"(?<![A-Za-z\\])sqrt ?\(([^()]{1,100})\)", r"\\sqrt{\1}"),
        (r"√ ?\(([^()]{1,100})\)|√ ?([0-9]{1,50}|[a-z])", r"\\sqrt{\1\2}"),
        (r"(?<!\\)%", r"\\%"),
        # Money before its number as money behind it.
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
    r"(?:so |thus |hence |therefore )?,? ?(?:the )?(?:final |correct )?answer"
    r"(?: is| ?:|=)(?: ?:)? ?",
    re.IGNORECASE,
)
_BOXED = re.compile(r"\\(?:boxed|fbox) ?\{(.*)\}", re.DOTALL)
_FRACTION = re.compile(
    r"(-?) ?(?:([0-9]{1,200}) ?)?\\frac ?\{ ?(-?[0-9]{1,200}) ?\} ?\{ ?(-?[0-9]{1,200}) ?\}"
)
_SPACED_GROUPS = re.compile(r"-?[1-9][0-9]{0,2}(?: [0-9]{3})+(?:\.[0-9]+)?")
_MAX_PASSES = 6


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
    answer = _SIGN.sub(lambda match: _SIGNS[match[0]], answer)
    answer = _without_dollars(answer).strip()
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
        answer = re.sub(r"(?:[ .,;:]|\\\\)+$", "", answer)
    answer = _without_outer_braces(answer.strip('"` '))
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


def _without_outer_braces(answer: str) -> str:
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
    """What a single \\text{...} around everything holds."""
    match = re.fullmatch(r"\\text ?\{([^{}]*)\}", latex)
    return match[1].strip() if match else None


def plain(latex: str) -> str:
    """Without \\text around its words, and without spaces that could be anywhere."""
    return re.sub(r"\s+", "", re.sub(r"\\text ?\{([^{}]*)\}", r"\1", latex))
