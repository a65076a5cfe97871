"""The grader against a file of cases: ordinary spellings and hostile input."""

import json
from collections import defaultdict
from pathlib import Path

import pytest

from malt_jax.grading import equal
from malt_jax.grading.__main__ import judge

CASES = [json.loads(line) for line in Path(__file__).with_name("cases.jsonl").open()]
CATEGORIES = defaultdict(list)
for case in CASES:
    CATEGORIES[case["category"]].append(case)


def test_the_file_has_cases_of_all_kinds():
    assert len(CASES) >= 400
    assert {case["kind"] for case in CASES} == {"answer", "text", "letter"}
    assert {case["expected"] for case in CASES} == {True, False}
    assert len({(case["kind"], case["gold"], case["prediction"]) for case in CASES}) == len(CASES)


@pytest.mark.parametrize("category", sorted(CATEGORIES))
def test_verdicts(category: str):
    wrong = [
        case
        for case in CATEGORIES[category]
        if judge(case["kind"], case["gold"], case["prediction"])["verdict"] != case["expected"]
    ]
    assert not wrong


def test_verdicts_do_not_depend_on_the_order():
    for case in CASES:
        if case["kind"] == "answer":
            assert equal("boxed", case["prediction"], case["gold"]) == case["expected"]
