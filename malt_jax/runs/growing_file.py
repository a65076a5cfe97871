"""A text file that grows line by line, on a disk or in a bucket."""

from __future__ import annotations

from typing import Protocol

from upath import UPath

from malt_jax.files import in_bucket, write_atomically


class GrowingFile(Protocol):
    """What is written lasts after `flush` and after `close`."""

    def write(self, line: str) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


def growing(file: UPath, content: bytes) -> GrowingFile:
    """Goes on with a file that has this content."""
    return _Uploaded(file, content) if in_bucket(file) else _Appended(file)


class _Appended:
    """On a disk every line is written at once."""

    def __init__(self, file: UPath) -> None:
        file.parent.mkdir(parents=True, exist_ok=True)
        self._stream = file.open("a", encoding="utf-8")

    def write(self, line: str) -> None:
        self._stream.write(line)
        self._stream.flush()

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self._stream.close()


class _Uploaded:
    """In a bucket nothing can be appended: a flush writes the whole object anew."""

    def __init__(self, file: UPath, content: bytes) -> None:
        self._file, self._content = file, bytearray(content)
        self._written = len(content)

    def write(self, line: str) -> None:
        self._content += line.encode()

    def flush(self) -> None:
        if len(self._content) > self._written:
            write_atomically(self._file, bytes(self._content))
            self._written = len(self._content)

    def close(self) -> None:
        self.flush()
