"""Places of a reply that give its answer: a final-answer line, \\boxed{}, a letter, a number.

All searches take time linear in the length of the reply, of which only the end is read.
"""

from __future__ import annotations

import re
from fractions import Fraction

from malt_jax.grading.canonical import FULL_WIDTH, find_numbers, read_number
from malt_jax.grading.quantities import SCALES

MAX_REPLY = 20_000
"""Characters at the end of a reply in which the answer is looked for."""
MAX_ANSWER = 1_000
"""Characters of an answer; a longer one is none."""
MARKUP = " \t\r\n*_`\"'“”‘’"
_BARE_ANSWER = 120
"""Characters of a reply that may be nothing but its answer."""


class _Marker:
    """What stands before an answer, in English, French and Chinese."""

    def __init__(self, english: str, others: str) -> None:
        self._english = re.compile(f"(?i){english}")
        self._any = re.compile(f"(?i){english}|{others}")

    def matches(self, text: str) -> list[re.Match[str]]:
        # Texts of ASCII alone, which are searched in half the time, have no é and no 答.
        return list((self._english if text.isascii() else self._any).finditer(text))


_FRENCH_OR_CHINESE = (
    r"\bréponse(?: correcte| exacte)?[*_]{0,3}"
    r"(?: est\b(?: donc\b)?(?: la\b| l'option)?| ?:)[*_]{0,3}(?: ?:)?"
    r"|答案[*_]{0,3}(?:应[该当]?)?[是为选:][*_]{0,3}:?"
)
_MARKER = _Marker(
    r"final answer(?: is)?[*_]{0,3}(?:[:=]| [-–—] )?|####|<answer>",
    r"(?:réponse finale(?: est)?|最终答案(?:应[该当]?)?[是为]?)[*_]{0,3}(?: ?[:=]| [-–—] )?",
)
_ANSWER_IS = _Marker(r"(?<!final )\banswer(?: is|:| =)[*_]{0,3}:?", _FRENCH_OR_CHINESE)
_WEAK_MARKER = _Marker(
    r"\b(?:(?:answer|option|choice)(?: is)?|choose|pick|select)\b[*_]{0,3}[:=]?",
    rf"{_FRENCH_OR_CHINESE}|(?:选择|选项是?(?= ?\(?[A-J])|选(?!项))[*_]{{0,3}}:?",
)
_OPENED_FORMULA = re.compile(r"(?:\\\[|\\\(|\$\$)\s*\n\s*")
_POLITENESS = re.compile(r"(?i)[.\s]*I hope (?:it|this) (?:is correct|helps).{0,200}$")
_FORMULA = re.compile(
    r"(?s)\$\$([^$]{1,500})\$\$|\$((?:[^$\n\\]|\\.){1,500})\$|\\\((.{1,500}?)\\\)|\\\[(.{1,500}?)\\\]"
)
_BRACES = re.compile(r"(?s)\\(?:boxed|fbox)[ \t]*\{|\\.|[{}]")
_BARE_BOXED = re.compile(r"\\(?:boxed|fbox) *([A-Za-z0-9.]+)")
_BETWEEN_BOXES = re.compile(r"\\(?:text|q?quad)(?![A-Za-z])|\\[^A-Za-z]|[\s${}&*]")
_ASSIGNED = r"(?:[a-z]|\\[a-z]{2,8})(?:_?\w)?="
# "or" alone joins two spellings of one answer: \boxed{28} or \boxed{28_9}.
_JOINT = re.compile(
    rf"(?i)(?:[,;]|,?(?:and(?:also)?|et|和)|aswellas)(?:{_ASSIGNED})?|,?(?:or|ou|或){_ASSIGNED}"
)
_DECIMAL_COMMA = re.compile(r"(?<![0-9.,(\[])(?<![(\[]-)([0-9]+),([0-9]{1,2})(?![0-9]|,[0-9])")
_SPACED_GROUPS = re.compile(r"(?<![0-9.,/])[1-9][0-9]{0,2}(?: [0-9]{3})+(?![0-9])")

# A number in such a line is a part of the answer, not the answer.
_NOT_RATIONAL = re.compile(
    r"\\(?:infty|pm|binom)(?![a-z])|√|π|±|\^|[0-9]i\b"
    r"|(?<![A-Za-z])(?:sqrt|pi|sin|cos|tan|log|ln)(?![A-Za-z])"
)
_NOT = re.compile(
    r"(?:\b(?:not|never|pas)|n't|≠|!=|\\neq?|不[是为]) {0,3}(?:equal to |be )?[$(]{0,2}$"
)
_AFTER_LETTER = re.compile(r"(?<=[^\W\d_\u4e00-\u9fff])")  # B2, but not 有2
_STATED = re.compile(r"\b(?:is|equals) {1,3}$")
_IS = re.compile(r".{1,300}\b(?:is|are|equals) ([^$]{1,100})$")
_SENTENCE = re.compile(r"(.{1,60}?[0-9}$)a-z*])(?:\.|,? (?:because|since|as|so|which))(?: |$)")
_SCALE = re.compile(rf"(?i)[ \t]({'|'.join(SCALES)})\b")

_CHOICE_MARKUP = re.compile(r"\\(?:boxed|text|textbf|mathrm)\{|[*_`\"“”‘’$\\{}\[\]]")
_LEAD_IN = re.compile(
    r"(?i)(?:the )?(?:correct |final |right )?"
    r"(?:(?:answer|option|choice|letter)\b)?(?: is)?[: ]{0,3}"
)
_NO_LETTER = r"(?![A-Za-z0-9'’]|\.[a-z])"
_CHOICE = re.compile(rf"(\()?([A-Ja-j]){_NO_LETTER}(\))?(.*)")
_DRESS = re.compile(r"\s*$|[).:;,]|\s*[-–—]\s|[\u4e00-\u9fff]")
_SECOND_CHOICE = re.compile(r"[).:,]{0,2}\s*(?:and|or|&|/|,)\s*\(?[A-HJ]\)?(?![A-Za-z0-9'’])")
_DRESSED_CHOICE = re.compile(
    r"\(([A-J])\)|\*\*\(?([A-J])[).:]{0,2}(?:\*\*|\s)|\\boxed\{(?:\\text\{)?\(?([A-J])\)?\}"
)
_RULED_OUT = re.compile(
    r"(?:(?:\b(?:[Nn](?:ot|either|or)|[Rr]ather than|[Ii]nstead of|cannot be|pas|et non)"
    rf"|n't(?: be)?) (?:option |choice )?|不[是选] ?)\(?[A-J]{_NO_LETTER}\)?"
    rf"|\(?(?<![A-Za-z])[A-J]{_NO_LETTER}"
    r"(?:\)? (?:is|was)(?:n't| not| too| wrong| incorrect| false| out| ruled out| eliminated)\b"
    r"|[).:] (?:(?!\b(?:because|since|while|but|so)\b)[^.,;:()\n]){1,60}?"
    r" (?:is|was) (?:wrong|incorrect|false|ruled out|not (?:right|correct))\b"
    r"| ?(?:选项)?(?:不|是?错|被?排除))[^,.;\n]{0,200}"
)
_LAST_CHOICE = re.compile(
    r"\b(?:[Bb]ut|[Ss]o|[Ii]t is|[Ii]t's|[Hh]ence|[Tt]hus|be|is|with|leaving|leaves|choose"
    r"|pick|select|option|choice)"
    r" \(?([A-J])\)?[.!]?\s*$"
    r"|(?<!part )(?<!case )\(([a-j])\)(?:[.!]?\s*$|,? (?:because|since|as)\b)"
    r"|[a-z]{2}(?:[,:]| -) \(?([A-Ja-j])\)?[.!]?\s*$"
)
_ASSERTED = re.compile(
    r"(?=[(A-J])(?:(?<![A-Za-z] )|(?<=[Ss]o )|(?<=[Tt]hus )|(?<=[Aa]nd )|(?<=[Bb]ut )|(?<=that )"
    r"|(?<=ption )|(?<=hoice ))(?<![A-Za-z(])\(?([A-J])\)?"
    r" (?:(?:it )?is[.!]?\s*$|fits (?:better|best)"
    r"|(?:is|must be) (?:clearly )?(?:the )?(?:(?:only )?(?:correct|right)|best|answer)\b)"
)
_NEGATION = re.compile(r"\bnot\b|n't\b")


def end_of(reply: str) -> str:
    """The part of a reply that is read, with ASCII for the signs of Chinese texts."""
    reply = reply[-MAX_REPLY:]
    return reply if reply.isascii() else reply.translate(FULL_WIDTH)


def _boxes(text: str) -> list[tuple[int, int, str]]:
    """Start, end and content of each \\boxed{} with balanced braces, and of \\boxed 2."""
    boxes = [(bare.start(), bare.end(), bare[1]) for bare in _BARE_BOXED.finditer(text)]
    opened: list[re.Match[str]] = []
    for part in _BRACES.finditer(text):
        if part[0] != "}":
            if part[0] == "{" or len(part[0]) > 2:
                opened.append(part)
        elif opened and len((start := opened.pop())[0]) > 1:
            boxes.append((start.start(), part.end(), text[start.end() : part.start()].strip()))
    return sorted(boxes)


def last_boxed(text: str) -> str | None:
    """The content of the last \\boxed{} with balanced braces, or of a last \\boxed 2."""
    boxes = _boxes(text[-MAX_REPLY:])
    return boxes[-1][2] if boxes else None


def all_boxed(reply: str) -> str | None:
    """The last \\boxed{} and those joined to it by "and" or commas, as a list.

    A name may stand before each, then "or" joins too: $x = \\boxed{1}$ or $x = \\boxed{2}$.
    """
    reply = reply[-MAX_REPLY:]
    boxes = _boxes(reply)
    contents: list[str] = []
    end = 0
    for start, begin, content in reversed(boxes):
        between = _BETWEEN_BOXES.sub("", reply[begin:end][:50])
        if contents and (begin > end or not _JOINT.fullmatch(between)):
            break
        contents.append(content)
        end = start
    return ", ".join(reversed(contents)) if contents else None


def final_line(reply: str, marker: _Marker = _MARKER) -> str | None:
    """The first line with content after the last marker that has any."""
    end = len(reply)
    for match in reversed(marker.matches(reply)):
        # A comment in a block of code announces what the code prints.
        is_comment = match[0].casefold() == "final answer"
        in_code = is_comment and reply.count("```", 0, match.start()) % 2
        # After a marker without content come nothing but markup and later such markers.
        content = reply[match.end() : end].lstrip(MARKUP + ":")
        if opened := _OPENED_FORMULA.match(content):
            content = content[opened.end() :]
        content = content.partition("</answer>")[0]
        if content and not in_code:
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
    lines = [line for line in (final_line(reply), last_boxed(reply)) if line is not None]
    answer_is = final_line(reply, _ANSWER_IS)
    if answer_is is not None and re.search("[0-9]", answer_is):
        lines.append(answer_is)
    for line in lines:
        line = _DECIMAL_COMMA.sub(r"\1.\2", (last_boxed(line) or line)[:MAX_ANSWER])
        line = _SPACED_GROUPS.sub(lambda groups: groups[0].replace(" ", ""), line)
        if _NOT_RATIONAL.search(line):
            return None
        line = line.rpartition("=")[2] if re.search("=.*[0-9]", line) else line
        if numbers := _numbers(line, within_names=True):
            return _scaled(_main_number(numbers))
    numbers = [] if lines else _numbers(reply)
    return _scaled(numbers[-1]) if numbers else None


def _main_number(numbers: list[re.Match[str]]) -> re.Match[str]:
    """The number that a line gives as its answer.

    "18 eggs a day for 7 days" gives it first, "in 7 days 18 eggs" last, and "it is $18 for 7 days"
    after "is".
    """
    text = numbers[0].string
    if not re.search("[A-Za-z0-9]", text[: numbers[0].start()]):
        return numbers[0]
    for number in reversed(numbers):
        if _STATED.search(text[: number.start()][-20:]):
            is_last = re.search(r"[,;:=(]|\bso\b", text[number.end() :])
            return numbers[-1] if is_last else number
    return numbers[-1]


def _numbers(text: str, within_names: bool = False) -> list[re.Match[str]]:
    """The numbers of a text, without those that a "not" excludes or that are part of a name, B2."""
    plain = plain_numbers(text)
    return [
        found
        for found in find_numbers(plain)
        if not _NOT.search(plain[max(0, found.start() - 20) : found.start()])
        and (within_names or not _AFTER_LETTER.match(plain, found.start(4)))
    ]


def _scaled(number: re.Match[str]) -> Fraction | None:
    """The value of a number and of a word such as "million" after it."""
    value = read_number(number)
    scale = _SCALE.match(number.string, number.end())
    return value * SCALES[scale[1].lower()] if value is not None and scale else value


def any_answer(reply: str) -> str | None:
    """The answer of a reply of any format, as it is written there.

    From the last \\boxed{}, else from the last "Final Answer:" or "####" line, else from the last
    "answer is", else the last formula, else the last number.
    """
    if found := all_boxed(reply):
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


def final_answer(reply: str, marker: _Marker = _MARKER) -> str | None:
    """The answer of the last final-answer line: "$x$. I hope it is correct.", "the area is $2$"."""
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
    """The choice after the last "Final Answer:", else the one that the reply ends with.

    Choices that the reply rules out ("not A", "(B) is wrong") do not count.
    """
    reply = _RULED_OUT.sub(" ", reply)
    line = final_line(reply)
    if line is not None and re.search(r"(?<![A-Za-z])[A-Ja-j](?![A-Za-z'’])", line):
        return _choice_of_line(line)
    line = final_line(reply, _WEAK_MARKER)
    if line is not None and (letter := _choice_of_line(line)):
        return letter
    lines = [line for line in reply.splitlines() if line.strip()][-2:]
    # Two lines in a row that start with a letter repeat the choices.
    repeated = len(lines) == 2 and all(map(_leading_choice, lines))
    if lines and not repeated and (letter := _choice_of_line(lines[-1])):
        return letter
    dressed = _dressed_choices(reply)
    return dressed[-1] if dressed else None


def _dressed_choices(text: str) -> list[str]:
    return ["".join(found) for found in _DRESSED_CHOICE.findall(text)]


def _choice_of_line(line: str) -> str | None:
    """The choice that a line calls correct, or begins with; else the dressed one, or the last."""
    line = line[:MAX_ANSWER]
    if asserted := _ASSERTED.findall(line):
        return str(asserted[-1])
    dressed = set(_dressed_choices(line))
    if (letter := _leading_choice(line)) or len(dressed) > 1:
        return letter
    if dressed:
        return dressed.pop()
    last = _LAST_CHOICE.search(line)
    return _inner(last).upper() if last and not _NEGATION.search(line) else None


def _leading_choice(line: str) -> str | None:
    """The choice that a line begins with: "C", "(c)", "C.", "C: ground", "option C", "C ground".

    "A" and "I" followed by a word are an article and a pronoun. Two choices are none.
    """
    line = _CHOICE_MARKUP.sub("", line[:MAX_ANSWER]).strip()
    lead = _LEAD_IN.match(line)
    match = _CHOICE.match(line[lead.end() :] if lead else line)
    if match is None:
        return None
    opening, letter, closing, rest = match.groups()
    if _SECOND_CHOICE.match(rest):
        return None
    dressed = bool(opening and closing) or bool(_DRESS.match((closing or "") + rest))
    word = letter.islower() or letter in "AI"
    return letter.upper() if dressed or not word else None
