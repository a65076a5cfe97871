"""Where a reply gives its answer: the last \\boxed{}, a final-answer line, a letter, a number.

All searches take time linear in the length of the reply, of which only the end is read.
"""

from __future__ import annotations

import re
from fractions import Fraction

from malt_jax.grading.canonical import find_numbers, read_number
from malt_jax.grading.quantities import SCALES

MAX_REPLY = 20_000
"""Characters at the end of a reply in which the answer is looked for."""
MAX_ANSWER = 1_000
"""Characters of an answer; a longer one is none."""

_MARKER = re.compile(r"final answer(?: is)?[*_]{0,3}(?:[:=]| [-–—] )?|####", re.IGNORECASE)
_WEAK_MARKER = re.compile(
    r"\b(?:(?:answer|option|choice)(?: is)?|choose|pick|select)\b[*_]{0,3}[:=]?", re.IGNORECASE
)
_OPENED_FORMULA = re.compile(r"(?:\\\[|\\\(|\$\$)\s*\n\s*")
MARKUP = " \t\r\n*_`\"'“”‘’"

_ANSWER_IS = re.compile(r"\banswer(?: is|:| =)[*_]{0,3}:?", re.IGNORECASE)
_POLITENESS = re.compile(r"[.\s]*I hope (?:it|this) (?:is correct|helps).{0,200}$", re.IGNORECASE)
_FORMULA = re.compile(
    r"\$\$([^$]{1,500})\$\$|\$((?:[^$\n\\]|\\.){1,500})\$|\\\((.{1,500}?)\\\)|\\\[(.{1,500}?)\\\]",
    re.DOTALL,
)
# A number in such a line is a part of the answer, not the answer.
_NOT_RATIONAL = re.compile(
    r"\\(?:infty|pm|binom)(?![a-z])|√|π|±|\^|[0-9]i\b"
    r"|(?<![A-Za-z])(?:sqrt|pi|sin|cos|tan|log|ln)(?![A-Za-z])"
)
_IS = re.compile(r".{1,300}\b(?:is|are|equals) ([^$]{1,100})$")
_SENTENCE = re.compile(r"(.{1,60}?[0-9}$)a-z*])(?:\.|,? (?:because|since|as|so|which))(?: |$)")
_SCALE = re.compile(rf"[ \t]({'|'.join(SCALES)})\b", re.IGNORECASE)
_BARE_ANSWER = 120
"""Characters of a reply that may be nothing but its answer."""

_BRACES = re.compile(r"\\(?:boxed|fbox)[ \t]*\{|\\.|[{}]", re.DOTALL)
_BARE_BOXED = re.compile(r"\\(?:boxed|fbox) *([A-Za-z0-9.]+)")

_CHOICE_MARKUP = re.compile(r"\\(?:boxed|text|textbf|mathrm)\{|[*_`\"“”‘’$\\{}\[\]]")
_LEAD_IN = re.compile(
    r"(?:the )?(?:correct |final |right )?(?:(?:answer|option|choice|letter)\b)?(?: is)?[: ]{0,3}",
    re.IGNORECASE,
)
_CHOICE = re.compile(r"(\()?([A-Ja-j])(?![A-Za-z0-9'’]|\.[a-z])(\))?(.*)")
_DRESS = re.compile(r"\s*$|[).:;,]|\s*[-–—]\s")
_SECOND_CHOICE = re.compile(r"[).:,]{0,2}\s*(?:and|or|&|/|,)\s*\(?[A-HJ]\)?(?![A-Za-z0-9'’])")
_DRESSED_CHOICE = re.compile(
    r"\(([A-J])\)|\*\*\(?([A-J])[).:]{0,2}(?:\*\*|\s)|\\boxed\{(?:\\text\{)?\(?([A-J])\)?\}"
)


def last_boxed(text: str) -> str | None:
    """What the last \\boxed{} with balanced braces holds, or a last \\boxed 2 without braces."""
    reply = text[-MAX_REPLY:]
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


def final_line(reply: str, marker: re.Pattern[str] = _MARKER) -> str | None:
    """The first line with content behind the last marker that has any."""
    end = len(reply)
    for match in reversed(list(marker.finditer(reply))):
        # Behind a marker without content stands nothing but markup and later such markers.
        content = reply[match.end() : end].lstrip(MARKUP + ":")
        if opened := _OPENED_FORMULA.match(content):
            content = content[opened.end() :]
        if content:
            return content.partition("\n")[0].rstrip(MARKUP)
        end = match.start()
    return None


def plain_numbers(text: str) -> str:
    """LaTeX's spellings of numbers in those of plain text."""
    text = re.sub(r"\\[dt]?frac *\{ *(-?[0-9]{1,200}) *\} *\{ *([0-9]{1,200}) *\}", r" \1/\2", text)
    text = re.sub(r"\\!|\\?%|\\(?=\$)", "", text)
    return text.replace("{,}", ",").replace("\u2212", "-").replace("\u00a0", " ")


def number(reply: str) -> Fraction | None:
    """The number that a reply ends with."""
    line = final_line(reply)
    if line is None:
        line = last_boxed(reply)
    if line is None:
        line = final_line(reply, _ANSWER_IS)
        if line is not None and not re.search("[0-9]", line):
            line = None
    if line is None:
        numbers = _numbers(reply)
    else:
        line = line[:MAX_ANSWER]
        if _NOT_RATIONAL.search(line):
            return None
        line = plain_numbers(line)
        line = line.rpartition("=")[2] if re.search("=.*[0-9]", line) else line
        numbers = find_numbers(line)
        # "18 eggs a day for 7 days" gives its answer first, "in 7 days 18 eggs" last.
        if numbers and not re.search("[A-Za-z0-9]", line[: numbers[0].start()]):
            numbers = numbers[:1]
    if not numbers:
        return None
    value = read_number(numbers[-1])
    scale = _SCALE.match(numbers[-1].string, numbers[-1].end())
    return value * SCALES[scale[1].lower()] if value is not None and scale else value


def _numbers(reply: str) -> list[re.Match[str]]:
    """The numbers of a text, without those that are part of a name, such as B2."""
    plain = plain_numbers(reply)
    return [
        found
        for found in find_numbers(plain)
        if not (found.start(4) and plain[found.start(4) - 1].isalpha())
    ]


def any_answer(reply: str) -> str | None:
    """The answer of a reply of any format, as it stands there.

    From the last \\boxed{}, else from the last "Final Answer:" or "####" line, else from the last
    "answer is", else the last formula, else the last number.
    """
    if found := last_boxed(reply):
        return found
    for marker in (_MARKER, _ANSWER_IS):
        if found := final_answer(reply, marker):
            return found
    formulas = list(_FORMULA.finditer(reply))
    words = re.sub(r"\b(?:and|or)\b|\\[A-Za-z]+", "", _FORMULA.sub("", reply), flags=re.IGNORECASE)
    if formulas and re.search("[A-Za-z]{2}", words):
        if not re.search("[0-9]", reply[formulas[-1].end() :]):
            return _inner(formulas[-1])
    elif len(reply) <= _BARE_ANSWER and not re.search(r"[a-z]{2,} [a-z]{2,} [a-z]{2,}", reply):
        return reply.strip() or None
    numbers = _numbers(reply)
    return numbers[-1][0].strip() if numbers else None


def final_answer(reply: str, marker: re.Pattern[str] = _MARKER) -> str | None:
    """What the last final-answer line gives: "$x$. I hope it is correct.", "the area is $\\pi$"."""
    line = final_line(reply, marker)
    if line is None:
        return None
    line = _POLITENESS.sub("", line[:MAX_ANSWER]).rstrip(MARKUP + ".")
    formulas = list(_FORMULA.finditer(line))
    if formulas and formulas[0].start() == 0:
        # A unit may follow, or the next sentence.
        return _inner(formulas[0]) if line[formulas[0].end() :].startswith(". ") else line
    statement = _IS.match(line)
    if formulas and (statement is None or formulas[-1].end() > statement.end()):
        return _inner(formulas[-1])
    if formulas and statement is not None:
        line = statement[1]
    sentence = _SENTENCE.match(line)
    return sentence[1] if sentence else line


def _inner(formula: re.Match[str]) -> str:
    return next(filter(None, formula.groups()))


def letter(reply: str) -> str | None:
    """The choice behind the last "Final Answer:", else the one that the reply ends with."""
    line = final_line(reply)
    if line is not None:
        return _choice_of_line(line)
    line = final_line(reply, _WEAK_MARKER)
    if line is not None and (letter := _choice_of_line(line)):
        return letter
    lines = [line for line in reply.splitlines() if line.strip()]
    letters = [_leading_choice(line) for line in lines[-2:]]
    dressed = ["".join(found) for found in _DRESSED_CHOICE.findall(reply)]
    if lines and len({"".join(found) for found in _DRESSED_CHOICE.findall(lines[-1])}) > 1:
        return dressed[-1]  # "(A) is too far, so (C)"
    # Two lines in a row that start with a letter repeat the choices.
    if letters and letters[-1] and not (len(letters) == 2 and letters[0]):
        return letters[-1]
    return dressed[-1] if dressed else None


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
