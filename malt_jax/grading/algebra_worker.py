"""The child process of `malt_jax.grading.algebra`: reads pairs of answers, writes verdicts.

Each line of standard input is a JSON list of two LaTeX answers, each line of standard output a JSON
boolean. It ends with its input.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import resource
import sys
from typing import Any

CPU_SECONDS = 10
"""Of one question, after which the system ends a process whose parent is no more there to do so."""


def main() -> None:
    _limit(resource.RLIMIT_AS, int(sys.argv[1]) * 2)
    # What libraries print must not come between the verdicts.
    out = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    logging.disable()
    judge = _judge()
    judge(r"\frac{x}{2}", r"x^2 + \sqrt{3}")  # tables are built at the first use
    out.write(b'"ready"\n')
    for line in sys.stdin.buffer:
        used = resource.getrusage(resource.RUSAGE_SELF)
        _limit(resource.RLIMIT_CPU, int(used.ru_utime + used.ru_stime) + CPU_SECONDS)
        a, b = json.loads(line)
        out.write(json.dumps(judge(a, b)).encode() + b"\n")


def _judge() -> Any:
    import latex2sympy2_extended
    import math_verify.grader
    import math_verify.parser
    import sympy.parsing.sympy_parser as sympy_parser

    # SymPy evaluates strings as Python code, and the grammar hands it the text of each number.
    sympy_parser.eval_expr = _refuse
    sympy_parser.parse_expr = _number
    math_verify.parser.parse_expr = _refuse
    # The whole answer is read, by the grammar for LaTeX alone. math_verify.parse would look for a
    # part that can be read, and its grammar for plain expressions is Python's own.
    rules = latex2sympy2_extended.NormalizationConfig(
        basic_latex=True, units=False, malformed_operators=True, nits=True, boxed="none"
    )

    def parse(latex: str) -> Any:
        is_complex = math_verify.grader.should_treat_as_complex(latex)
        return latex2sympy2_extended.latex2sympy(
            latex, is_real=not is_complex, normalization_config=rules
        )

    def judge(a: str, b: str) -> bool:
        try:
            left, right = parse(a), parse(b)
            options = {"float_rounding": 15, "numeric_precision": 30, "timeout_seconds": None}
            return bool(
                math_verify.verify(left, right, **options)
                and math_verify.verify(right, left, **options)
            )
        except (Exception, RecursionError, MemoryError):
            return False

    return judge


def _number(text: str, *arguments: Any, **options: Any) -> Any:
    """The exact value of a number's text."""
    from sympy import Rational

    if not re.fullmatch(r"[0-9]{1,60}(?:\.[0-9]{0,60})?|\.[0-9]{1,60}", text):
        _refuse(text)
    return Rational(text)


def _refuse(*arguments: Any, **options: Any) -> Any:
    raise ValueError("text is never evaluated")


def _limit(what: int, value: int) -> None:
    # Not every system has every limit; the parent watches as well.
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(what, (value, resource.getrlimit(what)[1]))


if __name__ == "__main__":
    main()
