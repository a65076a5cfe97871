"""Files of a run, on a disk or in a bucket of Google Cloud Storage."""

from __future__ import annotations

import contextlib
import fnmatch
import importlib.util
import json
import logging
import os
import re
import secrets
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from upath import UPath

from malt_jax.errors import UserError


def location(address: str | os.PathLike[str] | UPath) -> UPath:
    """The path of an address: a path on a disk, or gs://BUCKET/PATH.

    Raises UserError for an address of another kind, and for a bucket if gcsfs is not installed.
    """
    if isinstance(address, UPath):
        return address
    text = os.fspath(address)
    # One slash is what pathlib leaves of two.
    scheme = re.match(r"([a-z][a-z0-9+.-]+):/+", text)
    if scheme is None:
        return UPath(text)
    if scheme[1] != "gs":
        raise UserError(f"{text}: a run is in a directory of a disk or at gs://BUCKET/PATH")
    if importlib.util.find_spec("gcsfs") is None:
        raise UserError(
            f"{text}: buckets need gcsfs; install it with: pip install 'malt_jax[gcs]', or mount"
            " the bucket (docs/pods.md)"
        )
    # Its errors are raised, so the log does not need them.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    # Without a cache of listings, because other processes write too.
    return UPath(f"gs://{text[scheme.end() :]}", use_listings_cache=False)


def on_disk(address: str | os.PathLike[str]) -> Path:
    """The path of an address on a disk. Raises UserError for one in a bucket."""
    path = location(address)
    if in_bucket(path):
        raise UserError(f"{path}: name a directory on a disk; this one is in a bucket")
    return Path(str(path))


def in_bucket(path: UPath) -> bool:
    """Whether a file is an object of a bucket."""
    return path.protocol in ("gs", "gcs")


def names_in(directory: UPath, pattern: str) -> list[str]:
    """The sorted names of a directory's entries that match; none if there is no such directory."""
    try:
        if in_bucket(directory):
            below = directory.fs.ls(directory.path, detail=False)
            names = [path.rpartition("/")[2] for path in below]
        else:
            names = [path.name for path in directory.iterdir()]
    except FileNotFoundError:
        return []
    return sorted(fnmatch.filter(names, pattern))


def files_below(directory: UPath) -> list[str]:
    """The sorted paths of all files below a directory, relative to it."""
    root = directory.absolute().path
    return sorted(os.path.relpath(file, root) for file in directory.fs.find(root))


def modified(file: UPath) -> float:
    """The time of a file's last change, in seconds since 1970.

    Raises FileNotFoundError when there is none.
    """
    if in_bucket(file):
        changed: float = file.fs.modified(file.path).timestamp()
        return changed
    return os.stat(str(file)).st_mtime


@contextlib.contextmanager
def reached(path: UPath) -> Iterator[None]:
    """Turns errors of a disk or a bucket into a UserError that names `path`."""
    try:
        yield
    except UserError:
        raise
    except OSError as error:
        raise UserError(f"cannot use {path}: {error.strerror or error}") from None
    except Exception as error:
        # Of credentials, of HTTP, of asyncio: they have no base class in common.
        if not in_bucket(path):
            raise
        text = str(error).partition("\n")[0][:300]
        raise UserError(
            f"cannot use {path}: {type(error).__name__}: {text}; is there such a bucket, and may"
            " this machine's account write there? (gcloud auth application-default login)"
        ) from None


@contextlib.contextmanager
def naming(path: Path | UPath) -> Iterator[None]:
    """Names a file in the errors of writing to it, such as a full disk: the system names none."""
    try:
        yield
    except OSError as error:
        if error.errno is not None:
            error.filename = str(path)
        raise


def write_atomically(path: str | os.PathLike[str] | UPath, content: bytes | str) -> None:
    """Writes a file (text: UTF-8), of which others see all or nothing, even if the machine stops.

    On a disk the content is written to a temporary file next to `path`, synced, and renamed;
    missing parent directories are made. The upload of an object to a bucket is atomic.

    Raises OSError for a disk, UserError for a bucket that cannot be written to.
    """
    path = location(path)
    data = content.encode() if isinstance(content, str) else content
    if in_bucket(path):
        with reached(path):
            path.fs.pipe_file(path.path, data)
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with naming(path), aside.open("xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(str(aside), str(path))
    except BaseException:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise
    sync(path.parent)


def sync(path: Path | UPath) -> None:
    """Flushes a file, or the entries of a directory, to the disk."""
    descriptor = os.open(str(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(directory: Path | UPath) -> None:
    """Flushes a directory, everything below it, and its entry in its parent to the disk."""
    if isinstance(directory, UPath) and in_bucket(directory):
        return
    for path in [*directory.rglob("*"), directory, directory.parent]:
        sync(path)


@contextlib.contextmanager
def new_directory(directory: Path) -> Iterator[Path]:
    """A directory to fill, which gets the name `directory` when the block ends without an error.

    Until then it is a hidden directory next to it, which an error removes. So `directory` appears
    whole, readable by all, or not at all. A directory that has the name already is replaced: the
    caller has to check whether it may be.
    """
    directory.parent.mkdir(parents=True, exist_ok=True)
    hidden = f".{directory.name}-"
    aside = Path(tempfile.mkdtemp(prefix=hidden, dir=directory.parent))
    try:
        yield aside
        # mkdtemp and some libraries give access to the owner alone.
        for path in [aside, *aside.rglob("*")]:
            path.chmod(0o755 if path.is_dir() else 0o644)
        sync_tree(aside)
        if directory.exists():
            old = Path(tempfile.mkdtemp(prefix=hidden, dir=directory.parent))
            directory.rename(old)
            aside.rename(directory)
            shutil.rmtree(old)
        else:
            aside.rename(directory)
        sync(directory.parent)
    except BaseException:
        shutil.rmtree(aside, ignore_errors=True)
        raise


def remove_tree(directory: UPath) -> None:
    """Removes a directory and everything below it, if it exists."""
    with contextlib.suppress(FileNotFoundError):
        directory.fs.rm(directory.path, recursive=True)


def read_json_object(path: Path) -> dict[str, Any]:
    """The JSON object in a UTF-8 file.

    Raises OSError when the file cannot be read, UserError when it holds no JSON object.
    """
    return parse_json_object(path.read_bytes(), str(path))


def parse_json_object(text: bytes, place: str) -> dict[str, Any]:
    """A JSON object from UTF-8 text, with or without a byte-order mark.

    Raises UserError, which names `place`, for anything else, also for a key that occurs twice.
    """
    try:
        fields = json.loads(text.decode("utf-8-sig"), object_pairs_hook=_distinct)
    except UnicodeDecodeError as error:
        raise UserError(f"{place}: not UTF-8 text: {error}") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{place}: not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise UserError(f"{place}: expected a JSON object, got {fields!r:.80}")
    return fields


def read_json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """The objects of a file, each with its place, "FILE:LINE". Empty lines are passed over.

    Raises OSError when the file cannot be read, UserError for a line that holds no JSON object.
    """
    for number, line in enumerate(path.read_bytes().split(b"\n"), start=1):
        if line.strip():
            place = f"{path}:{number}"
            yield place, parse_json_object(line, place)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r:.80} occurs twice")
    return fields
