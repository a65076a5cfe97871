"""python -m malt_jax.grading: judges a file of answers."""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from malt_jax import grading
from malt_jax.command import command
from malt_jax.errors import UserError
from malt_jax.files import read_json_lines, write_atomically
from malt_jax.grading import extraction


def main(arguments: Sequence[str] | None = None, prog: str = "python -m malt_jax.grading") -> None:
    parser = argparse.ArgumentParser(
        prog=prog,
        epilog=f"example: {prog} cases.jsonl --out verdicts.jsonl",
        description="Judges answers. Each line of CASES is a JSON object with `kind`, `gold` and"
        " `prediction`. Kinds: answer, two bare answers; text, a whole reply, in which the answer"
        " is looked for first; letter, a reply that gives the letter of a choice. For each line,"
        " in order, a JSON object is written: `verdict` (true or false), `extracted` (the answer"
        " that was compared, or null) and `seconds`.",
    )
    parser.add_argument("cases", metavar="CASES.jsonl", type=Path)
    parser.add_argument("--out", metavar="FILE", type=Path, help="instead of standard output")
    options = parser.parse_args(arguments)
    rows = list(_rows(options.cases))
    verdicts = (json.dumps(judge(**row)) + "\n" for row in rows)
    if options.out is not None:
        write_atomically(options.out, "".join(verdicts))
    else:
        for verdict in verdicts:
            sys.stdout.write(verdict)


def judge(kind: str, gold: str, prediction: str) -> dict[str, Any]:
    """The verdict on one prediction, what was compared, and how long it took, in seconds."""
    start = time.perf_counter()
    verdict, extracted = _JUDGES[kind](gold, prediction)
    seconds = round(time.perf_counter() - start, 6)
    return {"verdict": verdict, "extracted": extracted, "seconds": seconds}


def _judge_answer(gold: str, prediction: str) -> tuple[bool, str | None]:
    return grading.equal("boxed", gold, prediction), grading.normalize("boxed", prediction)


def _judge_text(gold: str, prediction: str) -> tuple[bool, str | None]:
    if re.search(r"\\boxed|\\fbox|####|final answer", gold, re.IGNORECASE):
        gold = extraction.any_answer(gold) or ""
    prediction = extraction.end_of(prediction)
    found = extraction.any_answer(prediction)
    extracted = None if found is None else grading.normalize("boxed", found)
    if extracted is not None and grading.equal("boxed", gold, extracted):
        return True, extracted
    if extraction.last_boxed(prediction):
        return False, extracted
    # In a sentence, or without a number, the shape of the right answer says what to look for.
    if extracted is not None and re.search("[0-9]", extracted) and not _WORD.search(extracted):
        return False, extracted
    right = grading.normalize("number", grading.normalize("boxed", gold) or "")
    if right is not None:
        given = grading.extract("number", prediction)
        return given == right, given
    if re.fullmatch("[A-J]", gold.strip()):
        letter = grading.extract("letter", prediction)
        return letter == gold.strip(), letter
    return False, extracted


def _judge_letter(gold: str, prediction: str) -> tuple[bool, str | None]:
    right = grading.normalize("letter", gold) or grading.extract("letter", gold)
    letter = grading.extract("letter", prediction)
    return letter is not None and letter == right, letter


_WORD = re.compile(r"(?<![\\A-Za-z])[A-Za-z]{2}|[\u4e00-\u9fff]")
_JUDGES = {"answer": _judge_answer, "text": _judge_text, "letter": _judge_letter}
_FIELDS = ("kind", "gold", "prediction")


def _rows(path: Path) -> Iterator[dict[str, str]]:
    try:
        for place, row in read_json_lines(path):
            for field in _FIELDS:
                if field not in row:
                    raise UserError(f"{place}: field {field!r} is missing")
                allowed = "text" if field != "kind" else "one of " + ", ".join(_JUDGES)
                is_text = isinstance(row[field], str)
                if not is_text or (field == "kind" and row[field] not in _JUDGES):
                    got = f"{row[field]!r:.80}"
                    raise UserError(f"{place}: field {field!r} must be {allowed}, got {got}")
            yield {field: row[field] for field in _FIELDS}
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None


if __name__ == "__main__":
    command(main)
