"""A run on the disk: what was done is kept, and only what is whole is seen.

A stage (the trees of a round, one role's training) writes into a hidden directory,
`.NAME.unfinished`. When it is complete, a manifest with the size and SHA-256 of every file is added
and the directory is renamed to NAME: whatever has its name is whole. A stage that was interrupted
finds the parts it had written and goes on after them.

Of several processes (`malt_jax.pods.processes`) the first one writes and decides what is there; the
others wait until they see it.
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
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import malt_jax
from malt_jax.config import Config, ProcessesConfig, diff, load_config, to_yaml
from malt_jax.errors import UserError
from malt_jax.pods.processes import ALONE, Processes

CONFIG_FILE = "config.yaml"
MANIFEST = "manifest.json"
_LOCK = ".lock"
_SECONDS = ".seconds"
_PATIENCE = 30.0
"""Seconds after which a process that does not see a file of the first one takes it for missing."""


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
    _processes: Processes = ALONE
    _started: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Time spent on this stage so far, interrupted attempts included."""
        return self._earlier_seconds + time.monotonic() - self._started

    def write(self, name: str, content: bytes | str) -> Path:
        """Writes one file of the stage, whole: it counts as done even if the run stops now."""
        if self._processes.is_first:
            write_atomically(self.path / name, content)
            write_atomically(self.path / _SECONDS, str(self.seconds))
        return self.path / name

    def has(self, name: str) -> bool:
        """Whether this attempt or an interrupted one has written the file or directory."""
        path = self.path / name
        there = self._processes.first(f"is {name} there?", path.exists)
        return there and _seen(path)

    def names(self, pattern: str) -> list[str]:
        """Names of the files and directories of this stage that match, such as "state-*"."""
        return self._processes.first(
            f"{pattern} of a stage", lambda: sorted(p.name for p in self.path.glob(pattern))
        )

    def remove(self, name: str) -> None:
        """Deletes a directory of this stage."""
        if self._processes.is_first:
            shutil.rmtree(self.path / name, ignore_errors=True)


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """The directory of one run. `open_run` gives one to write to, `RunDirectory.read` any other."""

    path: Path
    config: Config
    processes: Processes = ALONE
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
        if name in self._verified:
            return True
        done = self.processes.first(f"is {name} done?", lambda: _is_whole(self.path / name))
        if done and _seen(self.path / name / MANIFEST):
            self._verified.add(name)
        return done

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
        if self.processes.first(f"is {name} there?", final.exists):
            raise ValueError(f"{final} is finished already")
        aside = final.with_name(f".{final.name}.unfinished")
        seconds = self.processes.first(f"begin {name}", lambda: _begin(aside))
        stage = Stage(aside, seconds, self.processes)
        try:
            yield stage
        except BaseException:
            if self.processes.is_first:
                write_atomically(aside / _SECONDS, str(stage.seconds))
            raise
        self.processes.barrier(f"{name} is written")
        self.processes.first(f"finish {name}", lambda: _finish(aside, final, stage.seconds))
        _seen(final / MANIFEST)
        self._verified.add(name)

    def seen(self, name: str) -> Path:
        """Where a file is that the first process has found, once this one sees it too.

        Raises UserError when that takes too long.
        """
        _seen(self.path / name)
        return self.path / name

    def write(self, name: str, content: bytes | str) -> None:
        """Writes a file that belongs to no stage, whole."""
        if self.processes.is_first:
            write_atomically(self.path / name, content)


@contextlib.contextmanager
def open_run(
    path: Path | str, config: Config, processes: Processes = ALONE
) -> Iterator[RunDirectory]:
    """Creates a run, or goes on with the one at `path`; nobody else can meanwhile.

    Raises UserError, in all processes, when somebody else has it open, when it was made with
    another configuration, when `path` is something else, and when not all processes see it.
    """
    path = Path(path)
    with contextlib.ExitStack() as stack:
        processes.first("open the run directory", lambda: _open(path, config, stack))
        _require_shared(path, processes)
        yield RunDirectory(path, config, processes)


def _open(path: Path, config: Config, stack: contextlib.ExitStack) -> None:
    if re.match(r"[a-z][a-z0-9]+:/", str(path)):
        raise UserError(
            f"{str(path).replace(':/', '://', 1)}: a run directory must be a path; mount the"
            " bucket, for instance with gcsfuse (docs/pods.md)"
        )
    try:
        if path.is_dir() and not (path / CONFIG_FILE).exists() and _visible(path):
            raise UserError(
                f"{path} has files but no {CONFIG_FILE}, so it is no run: choose another --run-dir"
            )
        path.mkdir(parents=True, exist_ok=True)
        lock = open(path / _LOCK, "a+")  # noqa: SIM115 (held as long as the run is open)
    except OSError as error:
        raise UserError(f"cannot use {path} as a run directory: {error.strerror}") from None
    stack.enter_context(lock)
    _take(lock, path)
    if (path / CONFIG_FILE).exists():
        _require_same(path, config)
        return
    made_with = ", ".join(f"{name} {version}" for name, version in versions().items())
    # Where it runs may be another place each time.
    kept = dataclasses.replace(config, processes=ProcessesConfig())
    write_atomically(path / CONFIG_FILE, f"# Made with {made_with}.\n{to_yaml(kept)}")


def _require_shared(path: Path, processes: Processes) -> None:
    """Raises UserError, in all processes, when one does not see what the first one writes."""
    if processes.count == 1:
        return
    token = f".seen-by-all-{processes.first('token', lambda: secrets.token_hex(8))}"
    if processes.is_first:
        write_atomically(path / token, "")
    processes.barrier("a file for all to see")
    seen = processes.gather("who sees it?", [_appears(path / token), platform.node()])
    if processes.is_first:
        (path / token).unlink()
    blind = [f"process {i} on {host}" for i, (sees, host) in enumerate(seen) if not sees]
    if blind:
        raise UserError(
            f"{', '.join(blind[:20])} cannot see what process 0 on {seen[0][1]} writes into {path}:"
            " --run-dir must be a directory that all hosts share"
        )


def _appears(path: Path) -> bool:
    """Whether a file is there or comes soon: file systems of a network show it a little later."""
    deadline = time.monotonic() + _PATIENCE
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _seen(path: Path) -> bool:
    if not _appears(path):
        raise UserError(
            f"{path}, which process 0 has written, is not there on {platform.node()}: is the run"
            " directory still mounted?"
        )
    return True


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


def _is_whole(directory: Path) -> bool:
    if not directory.exists():
        return False
    for file, entry in _manifest(directory)["files"].items():
        _verify(directory, file, entry)
    return True


def _begin(directory: Path) -> float:
    """Makes or takes up an unfinished stage; seconds that earlier attempts took."""
    directory.mkdir(parents=True, exist_ok=True)
    _remove_torn(directory)
    noted = directory / _SECONDS
    return float(noted.read_text()) if noted.exists() else 0.0


def _finish(aside: Path, final: Path, seconds: float) -> None:
    (aside / _SECONDS).unlink(missing_ok=True)
    files = sorted(path for path in aside.rglob("*") if path.is_file())
    entries = {str(path.relative_to(aside)): _entry(path) for path in files}
    manifest = {"seconds": seconds, "files": entries}
    write_atomically(aside / MANIFEST, json.dumps(manifest, indent=1) + "\n")
    for path in [*files, *(path for path in aside.rglob("*") if path.is_dir())]:
        _sync(path)
    os.rename(aside, final)
    _sync(final.parent)


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
