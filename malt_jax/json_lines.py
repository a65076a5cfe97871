"""JSON Lines: UTF-8 text with one JSON object a line."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from malt_jax.files import parse_json_object


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file, each with its place, "FILE:LINE". Empty lines are passed over.

    Raises OSError when the file cannot be read, UserError for a line that holds no JSON object.
    """
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if line.strip():
            place = f"{path}:{number}"
            yield place, parse_json_object(line, place)
