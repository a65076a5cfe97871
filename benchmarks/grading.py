"""Judgements a second on the answers of GSM8K and MATH.

python benchmarks/grading.py --gsm8k gsm8k/train.jsonl --math math/train.jsonl

The files have the rows of the data sets on the Hugging Face hub. Every answer is judged against
itself in another spelling and against the answer of another row, so half of the judgements come out
equal. Each pair is judged once: what is measured is work, not the memory of earlier verdicts.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections.abc import Callable
from pathlib import Path

from malt_jax.grading import Kind, all_boxed, equal, extract

SPELLINGS: tuple[Callable[[str], str], ...] = (
    lambda latex: latex.replace(r"\frac", r"\dfrac"),
    lambda latex: re.sub(r"\\frac\{(\d+)\}\{(\d+)\}", r"(\1/\2)", latex),
    lambda latex: f"x = {latex}" if "=" not in latex else latex,
    lambda latex: re.sub(r"(\d)\s*\\(sqrt|pi)", r"\1 \\cdot \\\2", latex),
    lambda latex: latex.replace("(", r"\left(").replace(")", r"\right)"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--gsm8k", type=Path, required=True)
    parser.add_argument("--math", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=2000, help="rows of each file (default: 2000)")
    options = parser.parse_args()
    generator = random.Random(0)

    solutions = [row["answer"] for row in _rows(options.gsm8k, options.rows, generator)]
    numbers = [solution.rpartition("####")[2].strip() for solution in solutions]
    replies = [s.replace("####", "Final Answer: $") for s in solutions]
    _measure("GSM8K", "number", replies, numbers)

    solutions = [row["solution"] for row in _rows(options.math, options.rows, generator)]
    answers = [all_boxed(solution) or "" for solution in solutions]
    replies = [
        f"So it is $\\boxed{{{generator.choice(SPELLINGS)(answer)}}}$." for answer in answers
    ]
    _measure("MATH", "boxed", replies, answers)


def _rows(path: Path, count: int, generator: random.Random) -> list[dict[str, str]]:
    with path.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return generator.sample(rows, min(count, len(rows)))


def _measure(name: str, kind: Kind, replies: list[str], answers: list[str]) -> None:
    others = [*answers[1:], answers[0]]
    start = time.perf_counter()
    right = 0
    for reply, answer, other in zip(replies, answers, others, strict=True):
        given = extract(kind, reply)
        if given is not None:
            right += equal(kind, answer, given)
            equal(kind, other, given)
    seconds = time.perf_counter() - start
    judgements = 2 * len(replies)
    print(
        f"{name}: {judgements / seconds:.0f} judgements/s ({judgements} in {seconds:.2f} s);"
        f" {right / len(replies):.1%} of the right replies judged right"
    )


if __name__ == "__main__":
    main()
