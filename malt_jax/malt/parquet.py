"""Completions as rows of Parquet files, which hold the sampled ids unchanged."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from upath import UPath

from malt_jax.errors import UserError, require_no_machine_problem
from malt_jax.sampling.completions import Completions, Finish

COLUMNS = (
    ("text", pa.string()),
    ("ids", pa.list_(pa.int32())),
    ("log_probabilities", pa.list_(pa.float32())),
    ("finish", pa.string()),
)
"""The columns of a completion."""


def completion_rows(completions: Completions, texts: np.ndarray) -> Iterator[dict[str, Any]]:
    """The COLUMNS of every node, in row-major order."""
    for node in completions.nodes():
        length = completions.lengths[node]
        yield {
            "text": texts[node],
            "ids": completions.tokens[node][:length],
            "log_probabilities": completions.log_probabilities[node][:length],
            "finish": Finish(completions.finish[node]).name.lower(),
        }


def encode(rows: Sequence[Mapping[str, Any]], schema: pa.Schema) -> bytes:
    """A file with these rows and the schema's metadata."""
    buffer = io.BytesIO()
    table = pa.Table.from_pylist(list(rows), schema)
    pq.write_table(table, buffer, compression="zstd", write_page_checksum=True)
    return buffer.getvalue()


def decode(file: Path | UPath, schema: pa.Schema, contents: str) -> pa.Table:
    """The table of a file, with its metadata.

    Raises UserError when the file cannot be read or has other columns.
    """
    try:
        content = pa.BufferReader(file.read_bytes())
        table = pq.read_table(content, schema=schema, page_checksum_verification=True)
        return table.replace_schema_metadata(pq.read_schema(content).metadata)
    except (OSError, pa.ArrowException) as error:
        require_no_machine_problem(error)
        raise UserError(
            f"{file} cannot be read as {contents}: {error}; delete it, and it is made again"
        ) from None
