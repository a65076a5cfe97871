"""Answers: found in a reply, brought to one canonical form, and compared.

Nothing that a model wrote is ever evaluated as a program. Replies are cut to a bounded length and
searched in linear time; numbers are compared exactly, LaTeX by a small grammar of our own.
docs/grading.md has the rules.
"""

from __future__ import annotations

import re
from typing import Literal, get_args

from malt_jax.grading import equality, extraction
from malt_jax.grading.canonical import format_number, normalize_latex, parse_number
from malt_jax.grading.extraction import MAX_ANSWER, MAX_REPLY, all_boxed

__all__ = ["KINDS", "MAX_REPLY", "Kind", "all_boxed", "equal", "extract", "normalize"]

Kind = Literal["number", "boxed", "letter", "text"]
"""Answer formats: a number; LaTeX in \\boxed{}; the letter of a choice; words."""
KINDS: tuple[Kind, ...] = get_args(Kind)


def extract(kind: Kind, reply: str) -> str | None:
    """The answer that a reply ends with, in canonical form; None when it gives none.

    "####", "<answer>", "Réponse finale :" and "最终答案：" are read like "Final Answer:". A marker
    without a readable answer is passed over.

    number: the number after the last "Final Answer:", else in the last \\boxed{}, else after the
            last "answer is", else the last number.
    boxed:  the last balanced \\boxed{} with those that "and" or commas join to it, else the text
            after the last "Final Answer:".
    letter: the choice after the last "Final Answer:", else the one that the reply ends with.
    text:   the text after the last "Final Answer:", else in the last \\boxed{}.
    """
    reply = extraction.end_of(reply)
    if kind == "number":
        value = extraction.number(reply)
        return None if value is None else format_number(value)
    if kind == "letter":
        return extraction.letter(reply)
    found = None
    if kind == "boxed":
        found = extraction.all_boxed(reply) or extraction.final_answer(reply)
    elif kind == "text":
        found = extraction.final_line(reply) or extraction.all_boxed(reply)
    return normalize(kind, found) if found else None


def normalize(kind: Kind, answer: str) -> str | None:
    """The canonical form of a bare answer, such as a data set's; None when it is not of its kind.

    A canonical answer is left as it is. Canonical answers of numbers, letters and words are equal
    exactly when their texts are; those of LaTeX are compared by `equal`.
    """
    if len(answer) > MAX_ANSWER:
        return None
    if kind == "number":
        plain = extraction.plain_numbers(answer).strip().removesuffix(".")
        value = parse_number(plain)
        return None if value is None else format_number(value)
    if kind == "boxed":
        latex = normalize_latex(answer)
        return None if latex is None or len(latex) > MAX_ANSWER else latex
    if kind == "letter":
        letter = answer.strip(extraction.MARKUP + "().").upper()
        return letter if re.fullmatch("[A-J]", letter) else None
    return " ".join(answer.casefold().split()).strip(extraction.MARKUP + ".") or None


def equal(kind: Kind, a: str, b: str) -> bool:
    """Whether two answers say the same. Symmetric; false for what has no canonical form."""
    first, second = normalize(kind, a), normalize(kind, b)
    if first is None or second is None:
        return False
    return first == second or (kind == "boxed" and equality.equal(*sorted((first, second))))
