"""Answers: found in a reply, brought to one canonical form, and compared.

Nothing that a model wrote is ever evaluated: replies are cut to a bounded length, searched in
linear time, and numbers are compared exactly as rationals of bounded size. LaTeX is compared by its
normalised text: equality that takes algebra (\\sqrt{8} and 2\\sqrt{2}, sets in another order) is
not seen.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

from malt_jax.latex import normalize_latex
from malt_jax.rationals import find_numbers, format_number, parse_number, read_number

Kind = Literal["number", "boxed", "letter", "text"]
"""Answer formats: a number; LaTeX in \\boxed{}; the letter of a choice; words."""
KINDS: tuple[Kind, ...] = get_args(Kind)

MAX_REPLY = 20_000
"""Characters at the end of a reply in which the answer is looked for."""
MAX_ANSWER = 1_000
"""Characters of an answer; a longer one is none."""

_MARKER = re.compile(r"final answer(?: is)?[*_]{0,3}[:=]?|####", re.IGNORECASE)
_WEAK_MARKER = re.compile(r"\b(?:answer|option|choice)(?: is)?[*_]{0,3}[:=]?", re.IGNORECASE)
_MARKUP = " \t\r\n*_`\"'“”‘’"

_BRACES = re.compile(r"\\(?:boxed|fbox)[ \t]*\{|\\.|[{}]", re.DOTALL)
_BARE_BOXED = re.compile(r"\\(?:boxed|fbox) *([A-Za-z0-9.]+)")

_CHOICE_MARKUP = re.compile(r"\\(?:boxed|text|textbf|mathrm)\{|[*_`\"“”‘’$\\{}\[\]]")
_LEAD_IN = re.compile(
    r"(?:the )?(?:correct |final |right )?(?:(?:answer|option|choice|letter)\b)?(?: is)?[: ]{0,3}",
    re.IGNORECASE,
)
_CHOICE = re.compile(r"(\()?([A-Ja-j])(?![A-Za-z0-9'’])(\))?(.*)")
_DRESS = re.compile(r"\s*$|[).:;,]|\s*[-–—]\s")
_SECOND_CHOICE = re.compile(r"[).:,]{0,2}\s*(?:and|or|&|/|,)\s*\(?[A-HJ]\)?(?![A-Za-z0-9'’])")
_DRESSED_CHOICE = re.compile(
    r"\(([A-J])\)|\*\*\(?([A-J])[).:]{0,2}(?:\*\*|\s)|\\boxed\{(?:\\text\{)?\(?([A-J])\)?\}"
)


def extract(kind: Kind, reply: str) -> str | None:
    """The answer that a reply ends with, in canonical form; None when it gives none.

    number: the number behind the last "Final Answer:" (or "####"), else the last number.
    boxed:  the last balanced \\boxed{}, else what stands behind the last "Final Answer:".
    letter: the choice behind the last "Final Answer:", else the one that the reply ends with.
    text:   what stands behind the last "Final Answer:", else in the last \\boxed{}.
    """
    reply = reply[-MAX_REPLY:]
    if kind == "number":
        return _extract_number(reply)
    if kind == "letter":
        return _extract_letter(reply)
    sources = (_last_boxed, _final_line) if kind == "boxed" else (_final_line, _last_boxed)
    for source in sources:
        if found := source(reply):
            return normalize(kind, found)
    return None


def normalize(kind: Kind, answer: str) -> str | None:
    """The canonical form of a bare answer, such as a data set's; None when it is not of its kind.

    A canonical answer is left as it is.
    """
    if len(answer) > MAX_ANSWER:
        return None
    if kind == "number":
        value = parse_number(_plain_numbers(answer).strip().removesuffix("."))
        return None if value is None else format_number(value)
    if kind == "boxed":
        latex = normalize_latex(answer)
        return None if latex is None or len(latex) > MAX_ANSWER else latex
    if kind == "letter":
        letter = answer.strip(_MARKUP + "().").upper()
        return letter if re.fullmatch("[A-J]", letter) else None
    return " ".join(answer.casefold().split()).strip(_MARKUP + ".") or None


def equal(kind: Kind, a: str, b: str) -> bool:
    """Whether two answers have the same canonical form. Symmetric; false for what has none."""
    canonical = normalize(kind, a)
    return canonical is not None and canonical == normalize(kind, b)


def last_boxed(text: str) -> str | None:
    """What the last \\boxed{} with balanced braces holds, or a last \\boxed 2 without braces."""
    return _last_boxed(text[-MAX_REPLY:])


def _last_boxed(reply: str) -> str | None:
    opened: list[tuple[bool, int]] = []
    start, found = -1, None
    for part in _BRACES.finditer(reply):
        if part[0] == "}":
            boxed, begin = opened.pop() if opened else (False, 0)
            if boxed and begin > start:
                start, found = begin, reply[begin : part.start()]
        elif part[0] == "{" or len(part[0]) > 2:
            opened.append((len(part[0]) > 2, part.end()))
    for bare in _BARE_BOXED.finditer(reply):
        if bare.start(1) > start:
            start, found = bare.start(1), bare[1]
    return None if found is None else found.strip()


def _final_line(reply: str, marker: re.Pattern[str] = _MARKER) -> str | None:
    """The first line with content behind the last marker that has any."""
    end = len(reply)
    for match in reversed(list(marker.finditer(reply))):
        # Behind a marker without content stands nothing but markup and later such markers.
        content = reply[match.end() : end].lstrip(_MARKUP + ":")
        if content:
            return content.partition("\n")[0].rstrip(_MARKUP)
        end = match.start()
    return None


def _plain_numbers(text: str) -> str:
    """LaTeX's spellings of numbers in those of plain text."""
    text = re.sub(r"\\[dt]?frac *\{ *(-?[0-9]{1,200}) *\} *\{ *([0-9]{1,200}) *\}", r" \1/\2", text)
    text = re.sub(r"\\!|\\?%|\\(?=\$)", "", text)
    return text.replace("{,}", ",").replace("\u2212", "-").replace("\u00a0", " ")


def _extract_number(reply: str) -> str | None:
    line = _final_line(reply)
    if line is None:
        numbers = find_numbers(_plain_numbers(reply))
    else:
        line = _plain_numbers(line[:MAX_ANSWER])
        line = line.rpartition("=")[2] if re.search("=.*[0-9]", line) else line
        numbers = find_numbers(line)
        # "18 eggs a day for 7 days" gives its answer first, "in 7 days 18 eggs" last.
        if numbers and not re.search("[A-Za-z0-9]", line[: numbers[0].start()]):
            numbers = numbers[:1]
    value = read_number(numbers[-1]) if numbers else None
    return None if value is None else format_number(value)


def _extract_letter(reply: str) -> str | None:
    line = _final_line(reply)
    if line is not None:
        return _choice_of_line(line)
    line = _final_line(reply, _WEAK_MARKER)
    if line is not None and (letter := _choice_of_line(line)):
        return letter
    lines = [line for line in reply.splitlines() if line.strip()]
    letters = [_leading_choice(line) for line in lines[-2:]]
    # Two lines in a row that start with a letter repeat the choices.
    if letters and letters[-1] and not (len(letters) == 2 and letters[0]):
        return letters[-1]
    dressed = _DRESSED_CHOICE.findall(reply)
    return "".join(dressed[-1]) if dressed else None


def _choice_of_line(line: str) -> str | None:
    """The choice that a line begins with, else the only one in it that is dressed as such."""
    dressed = {"".join(found) for found in _DRESSED_CHOICE.findall(line[:MAX_ANSWER])}
    return _leading_choice(line) or (dressed.pop() if len(dressed) == 1 else None)


def _leading_choice(line: str) -> str | None:
    """The choice that a line begins with: "C", "(c)", "C.", "C: ground", "option C", "C ground".

    "A" and "I" followed by a word are an article and a pronoun. Two choices are none.
    """
    line = _CHOICE_MARKUP.sub("", line[:MAX_ANSWER]).strip()
    lead = _LEAD_IN.match(line)
    line = line[lead.end() :] if lead else line
    match = _CHOICE.match(line)
    if match is None:
        return None
    opening, letter, closing, rest = match.groups()
    if _SECOND_CHOICE.match(rest):
        return None
    dressed = bool(opening and closing) or bool(_DRESS.match((closing or "") + rest))
    word = letter.islower() or letter in "AI"
    return letter.upper() if dressed or not word else None
