from pathlib import Path

import pytest

from malt_jax.errors import UserError
from malt_jax.files import read_json_lines


def test_objects_come_with_their_places(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"b": "\xc3\xa9\xe2\x80\xa8"}')
    assert list(read_json_lines(file)) == [
        (f"{file}:1", {"a": 1}),
        (f"{file}:4", {"b": "é\u2028"}),  # a line separator within a string ends no line
    ]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "not valid JSON"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"a": "\xff"}', "not UTF-8 text"),
        (b"[1]", r"expected a JSON object, got \[1\]"),
    ],
)
def test_a_line_that_is_no_object_is_named(tmp_path: Path, line: bytes, problem: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"{}\n" + line)
    with pytest.raises(UserError, match=rf"rows\.jsonl:2: {problem}"):
        list(read_json_lines(file))
