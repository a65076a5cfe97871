"""Rows of JSON Lines (UTF-8, one object a line) and Parquet files."""

from __future__ import annotations

import glob
from collections.abc import Iterator
from pathlib import Path

import pyarrow
import pyarrow.parquet

from malt_jax.errors import UserError
from malt_jax.json_lines import read_json_lines
from malt_jax.tasks.row import Row


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
            if path.suffix == ".parquet":
                yield from _read_parquet(path)
            else:
                yield from (Row(*row) for row in read_json_lines(path))
        except OSError as error:
            raise UserError(
                f"{path}: cannot be read ({error.strerror or error}); put the questions there as"
                f" JSON Lines or Parquet, or name another file with {field}=FILE"
            ) from error


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
