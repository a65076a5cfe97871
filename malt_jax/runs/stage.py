"""Stages: directories whose files are recorded with their checksums, so that damage is found."""

from __future__ import annotations

import dataclasses
import errno
import fnmatch
import hashlib
import json
import logging
import platform
import time
from collections.abc import Callable, Iterable
from typing import Any

from upath import UPath

from malt_jax.distributed.processes import barrier, broadcast, is_coordinator
from malt_jax.errors import UserError
from malt_jax.files import (
    files_below,
    names_in,
    parse_json_object,
    remove_tree,
    sync_tree,
    write_atomically,
)
from malt_jax.runs.lock import always_held

logger = logging.getLogger(__name__)

MANIFEST = "manifest.json"
UNFINISHED = ".manifest.json"
"""The manifest of a stage in the making."""
_PART = 16 * 2**20
"""Bytes that are read at a time."""
_PATIENCE = 30.0
"""Seconds after which a process that does not see a file of process 0 takes it for missing."""


@dataclasses.dataclass
class Manifest:
    """The sizes and SHA-256 of a directory's files, and the seconds that it took to make them."""

    files: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    seconds: float = 0.0

    @staticmethod
    def read(file: UPath) -> Manifest:
        """Raises OSError, UserError or another ValueError when it is missing or malformed."""
        content = parse_json_object(file.read_bytes(), str(file))
        try:
            files = {
                name: {"bytes": int(entry["bytes"]), "sha256": str(entry["sha256"])}
                for name, entry in content["files"].items()
            }
            return Manifest(files, float(content["seconds"]))
        except (TypeError, KeyError, AttributeError) as error:
            raise ValueError(f"{file} is no manifest: {error!r}") from None

    def write(self, file: UPath) -> None:
        """Writes the manifest, whole."""
        content = {"seconds": self.seconds, "files": dict(sorted(self.files.items()))}
        write_atomically(file, json.dumps(content, indent=1) + "\n")

    def record(self, directory: UPath, name: str) -> None:
        """Takes in a file as it is now."""
        self.files[name] = _entry(directory / name)

    def problem(self, directory: UPath, name: str) -> str | None:
        """The damage of a recorded file; None when it has none."""
        path, entry = directory / name, self.files[name]
        if not path.exists():
            return "it is missing"
        if (size := path.stat().st_size) != entry["bytes"]:
            return f"it has {size} bytes, not {entry['bytes']}"
        return None if _entry(path) == entry else "its checksum is another"


def _entry(path: UPath) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_PART):
            digest.update(part)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


class Stage:
    """A stage in the making. All processes call its methods.

    Files are made by `write`, or by a library below `path` and then recorded. Files without a
    record do not count: the process that made them was interrupted.
    """

    def __init__(self, path: UPath, require_held: Callable[[], None] = always_held) -> None:
        self.path = path
        self._require_held = require_held
        self._manifest = Manifest()
        try:
            if is_coordinator() and (path / UNFINISHED).exists():
                self._manifest = Manifest.read(path / UNFINISHED)
        except (UserError, ValueError) as error:
            logger.warning("%s is damaged (%s), so the stage is made again", path, error)
        self._began = time.monotonic() - self._manifest.seconds

    def write(self, name: str, content: bytes | str) -> UPath:
        """Writes and records one file: it counts even if the run stops now."""
        if is_coordinator():
            self._require_held()
            write_atomically(self.path / name, content)
            self._record([name])
        return self.path / name

    def require_held(self) -> None:
        """Raises an error when the run is no longer this process's, or gone (`runs.lock`)."""
        if is_coordinator():
            self._require_held()

    def record(self, name: str) -> None:
        """Records a directory that a library has written."""
        barrier(f"{name} is written")
        if is_coordinator():
            self._require_held()
            sync_tree(self.path / name)
            self._record([f"{name}/{file}" for file in files_below(self.path / name)])

    def has(self, name: str) -> bool:
        """Whether a file or directory was recorded, now or by an interrupted run.

        A damaged one is named in the log and forgotten, so that it is made again.
        """
        return broadcast(lambda: self._holds(name)) and seen(self.path / name)

    def names(self, pattern: str) -> list[str]:
        """The recorded files whose names match, in order; a * stands for directories too."""
        return broadcast(lambda: sorted(fnmatch.filter(self._manifest.files, pattern)))

    def remove(self, name: str) -> None:
        """Deletes a directory of this stage."""
        if is_coordinator():
            self._delete(name)

    def clean(self) -> None:
        """Deletes everything that is not recorded."""
        recorded = self._manifest.files
        for name in files_below(self.path):
            if name not in recorded and name != UNFINISHED:
                (self.path / name).unlink()
        for name in names_in(self.path, "[!.]*"):
            if not self._below(name):
                remove_tree(self.path / name)

    def finish(self) -> None:
        """Records all files, and writes the manifest that makes the stage complete.

        Raises FileNotFoundError when a recorded file has been removed.
        """
        self._require_held()
        found = files_below(self.path)
        for name in self._manifest.files:
            if name not in found:
                problem = "it was removed while the run went on"
                raise FileNotFoundError(errno.ENOENT, problem, str(self.path / name))
        sync_tree(self.path)
        self._record(
            file for file in found if file not in self._manifest.files and file != UNFINISHED
        )
        self._manifest.write(self.path / MANIFEST)
        (self.path / UNFINISHED).unlink()

    def _record(self, names: Iterable[str]) -> None:
        for name in names:
            self._manifest.record(self.path, name)
        self._manifest.seconds = time.monotonic() - self._began
        self._manifest.write(self.path / UNFINISHED)

    def _holds(self, name: str) -> bool:
        files = self._below(name)
        for file in files:
            if problem := self._manifest.problem(self.path, file):
                logger.warning("%s is damaged: %s; it is made again", self.path / file, problem)
                self._delete(name)
                return False
        return bool(files)

    def _delete(self, name: str) -> None:
        self._require_held()
        remove_tree(self.path / name)
        for file in self._below(name):
            del self._manifest.files[file]

    def _below(self, name: str) -> list[str]:
        """The recorded files that a name stands for: one, or those of a directory."""
        return [file for file in self._manifest.files if f"{file}/".startswith(f"{name}/")]


def appears(path: UPath) -> bool:
    """Whether a file is there or comes soon: network file systems show it a little later."""
    deadline = time.monotonic() + _PATIENCE
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def seen(path: UPath) -> bool:
    """True, once this process sees a file that process 0 has written.

    Raises UserError when that takes too long.
    """
    if not appears(path):
        raise UserError(
            f"{path}, which process 0 has written, is not there on {platform.node()}: is the run"
            " directory still mounted?"
        )
    return True
