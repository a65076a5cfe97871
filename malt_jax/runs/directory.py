"""A run on the disk: what was done is kept, and only what is whole is seen.

A stage (the trees of a round, one role's training) writes into a hidden directory,
`.NAME.unfinished`. When it is complete, a manifest with the size and SHA-256 of every file is added
and the directory is renamed to NAME: whatever has its name is whole. A stage that was interrupted
finds the parts it had written and goes on after them.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import hashlib
import importlib.metadata
import json
import os
import platform
import re
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import malt_jax
from malt_jax.config import Config, diff, load_config, to_yaml
from malt_jax.errors import UserError

CONFIG_FILE = "config.yaml"
MANIFEST = "manifest.json"
_LOCK = ".lock"
_SECONDS = ".seconds"


def write_atomically(path: Path | str, content: bytes | str) -> None:
    """Writes a file that is seen either whole or not at all, even if the machine stops.

    The content (text: UTF-8) is written beside `path`, synced, and renamed over it. Missing parent
    directories are made.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    data = content.encode() if isinstance(content, str) else content
    aside = path.with_name(f".{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    try:
        with open(aside, "xb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
    except BaseException:
        aside.unlink(missing_ok=True)
        raise
    _sync(path.parent)


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of the libraries that its results depend on."""
    libraries = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")
    installed = {name: importlib.metadata.version(name) for name in libraries}
    return {"python": platform.python_version(), "malt_jax": malt_jax.__version__, **installed}


@dataclasses.dataclass
class Stage:
    """A stage in the making. Files go into `path`, by `write` or by libraries of their own."""

    path: Path
    _earlier_seconds: float
    _started: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Time spent on this stage so far, interrupted attempts included."""
        return self._earlier_seconds + time.monotonic() - self._started

    def write(self, name: str, content: bytes | str) -> Path:
        """Writes one file of the stage, whole: it counts as done even if the run stops now."""
        write_atomically(self.path / name, content)
        write_atomically(self.path / _SECONDS, str(self.seconds))
        return self.path / name

    def has(self, name: str) -> bool:
        """Whether this attempt or an interrupted one has written the file."""
        return (self.path / name).is_file()


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """The directory of one run. `open_run` gives one to write to, `RunDirectory.read` any other."""

    path: Path
    config: Config
    _verified: set[str] = dataclasses.field(default_factory=set, compare=False, repr=False)

    @staticmethod
    def read(path: Path | str) -> RunDirectory:
        """An existing run, to read its finished stages.

        Raises UserError when there is no run at `path`.
        """
        path = Path(path)
        if not (path / CONFIG_FILE).is_file():
            raise UserError(f"{path} is no run directory: it has no {CONFIG_FILE}")
        return RunDirectory(path, load_config(path / CONFIG_FILE))

    def is_done(self, name: str) -> bool:
        """Whether a stage is complete: its files are there as they were written.

        Raises UserError when a file of a finished stage is missing or damaged.
        """
        directory = self.path / name
        if name in self._verified:
            return True
        if not directory.exists():
            return False
        for file, entry in _manifest(directory)["files"].items():
            _verify(directory, file, entry)
        self._verified.add(name)
        return True

    def finished(self, name: str) -> Path:
        """Where the files of a complete stage are.

        Raises UserError when the stage is not complete, or damaged.
        """
        if not self.is_done(name):
            raise UserError(f"{self.path} has no finished {name}: start its training again")
        return self.path / name

    def seconds(self, name: str) -> float:
        """Time that a complete stage took, in seconds, interrupted attempts included."""
        return float(_manifest(self.finished(name))["seconds"])

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Makes a stage: complete when the block ends, to be continued when it raises.

        `name` is a path below the run ("round-0/trees"). Only for runs from `open_run`.
        """
        final = self.path / name
        if final.exists():
            raise ValueError(f"{final} is finished already")
        aside = final.with_name(f".{final.name}.unfinished")
        aside.mkdir(parents=True, exist_ok=True)
        _remove_torn(aside)
        noted = aside / _SECONDS
        stage = Stage(aside, float(noted.read_text()) if noted.exists() else 0.0)
        try:
            yield stage
        except BaseException:
            write_atomically(noted, str(stage.seconds))
            raise
        noted.unlink(missing_ok=True)
        files = sorted(path for path in aside.rglob("*") if path.is_file())
        entries = {str(path.relative_to(aside)): _entry(path) for path in files}
        manifest = {"seconds": stage.seconds, "files": entries}
        write_atomically(aside / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        for path in [*files, *(path for path in aside.rglob("*") if path.is_dir())]:
            _sync(path)
        os.rename(aside, final)
        _sync(final.parent)
        self._verified.add(name)


@contextlib.contextmanager
def open_run(path: Path | str, config: Config) -> Iterator[RunDirectory]:
    """Creates a run, or goes on with the one at `path`; no other process can meanwhile.

    Raises UserError when another process has it open, when it was made with another
    configuration, and when `path` is something else.
    """
    path = Path(path)
    try:
        if path.is_dir() and not (path / CONFIG_FILE).exists() and _visible(path):
            raise UserError(
                f"{path} has files but no {CONFIG_FILE}, so it is no run: choose another --run-dir"
            )
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / _LOCK, "a+")  # noqa: SIM115 (held as long as the run is open)
    except OSError as error:
        raise UserError(f"cannot use {path} as a run directory: {error.strerror}") from None
    with lock:
        _take(lock, path)
        if (path / CONFIG_FILE).exists():
            _require_same(path, config)
        else:
            made_with = ", ".join(f"{name} {version}" for name, version in versions().items())
            write_atomically(path / CONFIG_FILE, f"# Made with {made_with}.\n{to_yaml(config)}")
        yield RunDirectory(path, config)


def _take(lock: Any, path: Path) -> None:
    # The system drops the lock with the process, so one that died leaves none behind.
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        lock.seek(0)
        holder = lock.read().strip() or "another process"
        raise UserError(
            f"{path} is in use by {holder}: wait for it to end, or choose another --run-dir"
        ) from None
    lock.truncate(0)
    lock.write(f"process {os.getpid()} on {platform.node()}\n")
    lock.flush()


def _require_same(path: Path, config: Config) -> None:
    changes = diff(load_config(path / CONFIG_FILE), config)
    if changes:
        raise UserError(
            f"{path} was made with another configuration (there -> now):\n  "
            + "\n  ".join(changes)
            + "\nstart again with the configuration it has, or choose another --run-dir"
        )


def _visible(path: Path) -> list[str]:
    return [name for name in os.listdir(path) if not name.startswith(".")]


def _remove_torn(directory: Path) -> None:
    """Removes what `write_atomically` left aside when the process was killed."""
    for path in directory.rglob(".*"):
        if re.fullmatch(r"\..+\.\d+\.[0-9a-f]{8}", path.name) and path.is_file():
            path.unlink()


def _manifest(directory: Path) -> dict[str, Any]:
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        for entry in manifest["files"].values():
            int(entry["bytes"]), str(entry["sha256"])
        float(manifest["seconds"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise _damaged(directory, MANIFEST, "it is missing or cannot be read") from None
    return manifest


def _entry(path: Path) -> dict[str, Any]:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"bytes": path.stat().st_size, "sha256": digest}


def _verify(directory: Path, name: str, entry: dict[str, Any]) -> None:
    path = directory / name
    if not path.is_file():
        raise _damaged(directory, name, "it is missing")
    if path.stat().st_size != entry["bytes"]:
        size = path.stat().st_size
        raise _damaged(directory, name, f"it has {size} bytes, not {entry['bytes']}")
    if _entry(path) != entry:
        raise _damaged(directory, name, "its checksum is another")


def _damaged(directory: Path, name: str, problem: str) -> UserError:
    return UserError(
        f"{directory / name} is damaged: {problem}; delete {directory} and start the run again,"
        " which makes it anew"
    )


def _sync(path: Path) -> None:
    """Makes a file, or the names in a directory, last through a crash of the machine."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
