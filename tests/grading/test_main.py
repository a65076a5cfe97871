"""The command that judges a file."""

import json
from pathlib import Path

import pytest

from malt_jax.errors import UserError
from malt_jax.grading.__main__ import main

ROWS = [
    {"kind": "answer", "gold": r"\frac{1}{2}", "prediction": "0.5"},
    {"kind": "text", "gold": "18", "prediction": "It is so.\nFinal Answer: $18"},
    {"kind": "letter", "gold": "C", "prediction": "Final Answer: (B) bank"},
    {"kind": "text", "gold": "18", "prediction": ""},
]


def _write(path: Path, rows: list) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
    return str(path)


def test_rows_are_judged_in_order(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    cases, out = _write(tmp_path / "cases.jsonl", ROWS), tmp_path / "out.jsonl"
    main([cases])
    printed = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    main([cases, "--out", str(out)])
    written = [json.loads(line) for line in out.read_text().splitlines()]
    for rows in (printed, written):
        assert [(row["verdict"], row["extracted"]) for row in rows] == [
            (True, "0.5"),
            (True, r"\$18"),
            (False, "B"),
            (False, None),
        ]
        assert all(0 <= row["seconds"] < 2 for row in rows)


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"kind": "number", "gold": "1", "prediction": "1"}, "field 'kind' must be one of"),
        ({"kind": "answer", "prediction": "1"}, "field 'gold' is missing"),
        ({"kind": "answer", "gold": "1", "prediction": 1}, "field 'prediction' must be text"),
        ([1], "expected a JSON object"),
    ],
)
def test_a_bad_row_is_named(tmp_path: Path, row: object, problem: str):
    cases = _write(tmp_path / "cases.jsonl", [ROWS[0], row])
    with pytest.raises(UserError, match=problem) as error:
        main([cases])
    assert f"{cases}:2" in str(error.value)


def test_files_that_cannot_be_read(tmp_path: Path):
    with pytest.raises(UserError, match="cannot be read"):
        main([str(tmp_path / "none.jsonl")])
    (tmp_path / "cases.jsonl").write_bytes(b"{'kind'")
    with pytest.raises(UserError, match=r"cases\.jsonl:1: not valid JSON"):
        main([str(tmp_path / "cases.jsonl")])
