"""Rows of JSON Lines (UTF-8, one object a line) and Parquet files."""

from __future__ import annotations

import glob
import json
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet

from malt_jax.errors import UserError
from malt_jax.tasks.row import Row, shorten


def matching(pattern: str) -> list[Path]:
    """The files that a name stands for: itself, or with * in it all such files by name."""
    path = Path(pattern)
    if path.exists() or not glob.has_magic(pattern):
        return [path]
    return [Path(name) for name in sorted(glob.glob(pattern, recursive=True))]


def read(pattern: str, field: str) -> Iterator[Row]:
    """The rows of a file, or of all files that a pattern matches, one file after another.

    Raises UserError for a file that cannot be read, naming the file and the line.
    """
    paths = matching(pattern)
    if not paths:
        raise UserError(f"{field}={pattern}: there are no such files; put the questions there")
    for path in paths:
        try:
            yield from _read_parquet(path) if path.suffix == ".parquet" else _read_jsonl(path)
        except OSError as error:
            raise UserError(
                f"{path}: cannot be read ({error.strerror or error}); put the questions there as"
                f" JSON Lines or Parquet, or name another file with {field}=FILE"
            ) from error


def _read_jsonl(path: Path) -> Iterator[Row]:
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
            raise UserError(f"{place}: expected a JSON object, got {shorten(fields)}")
        yield Row(place, fields)


def _read_parquet(path: Path) -> Iterator[Row]:
    number = 0
    try:
        with path.open("rb") as opened, pyarrow.parquet.ParquetFile(opened) as file:
            for batch in file.iter_batches():
                for fields in batch.to_pylist():
                    number += 1
                    yield Row(f"{path}, row {number}", fields)
    except pyarrow.ArrowException as error:
        raise UserError(f"{path}: not a Parquet file: {str(error).splitlines()[0]}") from error
