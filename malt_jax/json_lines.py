"""JSON Lines: UTF-8 text with one JSON object a line."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from malt_jax.errors import UserError


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file, each with its place, "FILE:LINE". Empty lines are passed over.

    Raises OSError when the file cannot be read, UserError for a line that holds no JSON object.
    """
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        place = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            fields = json.loads(line.decode("utf-8-sig"))
        except UnicodeDecodeError as error:
            raise UserError(f"{place}: not UTF-8 text: {error}") from error
        except (ValueError, RecursionError) as error:
            raise UserError(f"{place}: not valid JSON: {error}") from error
        if not isinstance(fields, dict):
            raise UserError(f"{place}: expected a JSON object, got {fields!r:.80}")
        yield place, fields
