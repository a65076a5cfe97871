"""Where rows come from: files, saved data sets, the Hugging Face hub, TensorFlow Datasets.

A source is written as one text, as `task.train` and `task.test` have it:

    questions.jsonl, questions.parquet      a file; with * in its name, all such files in order
    DIRECTORY or DIRECTORY:SPLIT            saved by `datasets` or written by TensorFlow Datasets
    hub:OWNER/NAME[/CONFIG]:SPLIT           a data set on the Hugging Face hub
    tfds:NAME[/CONFIG]:SPLIT                a data set that TensorFlow Datasets knows by name
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from malt_jax.errors import UserError
from malt_jax.tasks.row import Row
from malt_jax.tasks.sources import array_records, files, hub


def read(source: str, field: str, default_split: str) -> Iterator[Row]:
    """The rows of a source, in their order.

    field:         the configuration's field that names the source, for messages.
    default_split: of a saved data set, when the source names none.

    Raises UserError, with what to put where, for a source that cannot be read.
    """
    if source.startswith("hub:"):
        return hub.read(source.removeprefix("hub:"), field)
    if source.startswith("tfds:"):
        return array_records.read_named(source.removeprefix("tfds:"), field)
    name, _, split = source.rpartition(":")
    directory = Path(name or source)
    if directory.is_dir():
        split = split if name else default_split
        if array_records.is_data_set(directory):
            return array_records.read_directory(directory, split)
        if hub.is_saved(directory):
            return hub.read_saved(directory, split)
        raise UserError(
            f"{directory} is a directory, but no data set saved by `datasets` or written by"
            f" TensorFlow Datasets; name files in it with {field}='{directory}/*.jsonl'"
        )
    return files.read(source, field)


def fingerprint(sources: Sequence[str]) -> str:
    """A digest of sources: of the files' contents where they name files, else of their text."""
    digest = hashlib.sha256("\n".join(sources).encode())
    for source in sources:
        if source.startswith(("hub:", "tfds:")):
            continue
        name, _, _ = source.rpartition(":")
        directory = Path(name or source)
        inside = sorted(directory.rglob("*")) if directory.is_dir() else files.matching(source)
        for path in inside:
            if path.is_file():
                digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()
