"""The data of the page: compressed, and in files of their own where there is much of it.

A page that is opened from the disk cannot fetch files, but it can load scripts. So a file of data
is a script that calls `maltData(NAME, TEXT)`, where TEXT is gzip-compressed JSON in base64. In this
form nothing in it can be taken for HTML or JavaScript.
"""

from __future__ import annotations

import base64
import gzip
import json
from collections.abc import Iterable, Iterator
from typing import Any

from upath import UPath

from malt_jax.files import names_in, write_atomically
from malt_jax.viewer.trees import ShownQuestion

DATA = "data"
"""The folder of the files, next to the page."""
CHUNK = 1_000_000
"""Characters of JSON after which a new chunk begins; the page reads one chunk at a time."""
INLINE = 4_000_000
"""Characters up to which all data is inside the page."""


def pack(text: str) -> str:
    """A text, compressed, in base64."""
    # Without the time, so that equal data gives equal files.
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode("ascii")


def to_json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


class Chunks:
    """Packed data by name, which is in the page or, above INLINE characters, in files."""

    def __init__(self, out: UPath) -> None:
        self.inline: dict[str, str] = {}
        self._folder = out / DATA
        self._size = 0
        self._written: set[str] = set()

    @property
    def in_files(self) -> bool:
        return self._size > INLINE

    def entries(self, prefix: str, questions: Iterable[ShownQuestion]) -> Iterator[dict[str, Any]]:
        """Adds the questions' contents, and gives their entries with the names of their chunks."""
        contents: list[str] = []
        number = 0
        for entry, content in questions:
            contents.append(f'"{entry["id"]}":{to_json(content)}')
            yield {**entry, "chunk": f"{prefix}-{number}"}
            if sum(map(len, contents)) > CHUNK:
                self._add(f"{prefix}-{number}", contents)
                contents, number = [], number + 1
        if contents:
            self._add(f"{prefix}-{number}", contents)

    def remove_others(self) -> None:
        """Deletes the files of an earlier page that this one does not use."""
        for name in names_in(self._folder, "*.js"):
            if name not in self._written:
                (self._folder / name).unlink()

    def _add(self, name: str, contents: list[str]) -> None:
        packed = pack(f"{{{','.join(contents)}}}")
        self._size += len(packed)
        self.inline[name] = packed
        if self.in_files:
            for waiting, text in self.inline.items():
                file = f"{waiting}.js"
                write_atomically(self._folder / file, f'maltData("{waiting}","{text}");\n')
                self._written.add(file)
            self.inline.clear()
