"""A run's directory: what was done is kept, and only what is whole counts.

A stage (the trees of a round, one role's training) is a directory. Its files are written one after
the other, and last of all its manifest with the size and SHA-256 of every file: a stage that has a
manifest is complete. One that was interrupted finds the files it had written and goes on after
them. Of the place this asks no more than that a file is seen whole or not at all: it can be on a
disk or in a bucket (`malt_jax.files`).

Of several processes (`malt_jax.distributed.processes`) the first one writes and decides what is
there; the others wait until they see it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
import platform
import secrets
import time
from collections.abc import Callable, Iterator
from typing import Any

from upath import UPath

import malt_jax
from malt_jax.config import Config, ProcessesConfig, diff, load_config, to_yaml
from malt_jax.distributed.processes import barrier, broadcast, gather, is_coordinator, process_count
from malt_jax.errors import UserError
from malt_jax.files import (
    files_below,
    location,
    make_directory,
    names_in,
    reached,
    remove_torn,
    remove_tree,
    sync_tree,
    write_atomically,
)
from malt_jax.runs.lock import always_held, locked

CONFIG_FILE = "config.yaml"
MANIFEST = "manifest.json"
_SECONDS = ".seconds"
_PART = 16 * 2**20
_PATIENCE = 30.0
"""Seconds after which a process that does not see a file of the first one takes it for missing."""


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of the libraries that its results depend on."""
    libraries = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")
    installed = {name: importlib.metadata.version(name) for name in libraries}
    return {"python": platform.python_version(), "malt_jax": malt_jax.__version__, **installed}


@dataclasses.dataclass
class Stage:
    """A stage in the making. Files go into `path`, by `write` or by libraries of their own."""

    path: UPath
    _earlier_seconds: float
    _require_held: Callable[[], None] = always_held
    _started: float = dataclasses.field(default_factory=time.monotonic)

    @property
    def seconds(self) -> float:
        """Time spent on this stage so far, interrupted attempts included."""
        return self._earlier_seconds + time.monotonic() - self._started

    def write(self, name: str, content: bytes | str) -> UPath:
        """Writes one file of the stage, whole: it counts as done even if the run stops now."""
        if is_coordinator():
            self._require_held()
            write_atomically(self.path / name, content)
            write_atomically(self.path / _SECONDS, str(self.seconds))
        return self.path / name

    def has(self, name: str) -> bool:
        """Whether this attempt or an interrupted one has written the file or directory."""
        path = self.path / name
        there = broadcast(path.exists)
        return there and _seen(path)

    def names(self, pattern: str, which: Callable[[UPath], bool] = lambda path: True) -> list[str]:
        """Names of the files and directories of this stage that match, such as "state-*".

        which: a test that they must pass too.
        """
        return broadcast(
            lambda: [name for name in names_in(self.path, pattern) if which(self.path / name)]
        )

    def remove(self, name: str) -> None:
        """Deletes a directory of this stage."""
        if is_coordinator():
            remove_tree(self.path / name)


@dataclasses.dataclass(frozen=True)
class RunDirectory:
    """The directory of one run. `open_run` gives one to write to, `RunDirectory.read` any other."""

    path: UPath
    config: Config
    _require_held: Callable[[], None] = always_held
    _verified: set[str] = dataclasses.field(default_factory=set, compare=False, repr=False)

    @staticmethod
    def read(path: str | os.PathLike[str] | UPath) -> RunDirectory:
        """An existing run, to read its finished stages.

        Raises UserError when there is no run at `path`, or no way to it.
        """
        path = location(path)
        with reached(path):
            if not (path / CONFIG_FILE).exists():
                raise UserError(f"{path} is no run directory: it has no {CONFIG_FILE}")
        return RunDirectory(path, load_config(path / CONFIG_FILE))

    def is_done(self, name: str) -> bool:
        """Whether a stage is complete: its files are there as they were written.

        Raises UserError when a file of a finished stage is missing or damaged.
        """
        if name in self._verified:
            return True
        done = broadcast(lambda: _is_whole(self.path / name))
        if done and _seen(self.path / name / MANIFEST):
            self._verified.add(name)
        return done

    def finished(self, name: str) -> UPath:
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
        path = self.path / name
        if broadcast((path / MANIFEST).exists):
            raise ValueError(f"{path} is finished already")
        seconds = broadcast(lambda: _begin(path))
        stage = Stage(path, seconds, self._require_held)
        try:
            yield stage
        except BaseException:
            if is_coordinator():
                write_atomically(path / _SECONDS, str(stage.seconds))
            raise
        barrier(f"{name} is written")
        broadcast(lambda: self._finish(path, stage.seconds))
        _seen(path / MANIFEST)
        self._verified.add(name)

    def seen(self, name: str) -> UPath:
        """Where a file is that the first process has found, once this one sees it too.

        Raises UserError when that takes too long.
        """
        _seen(self.path / name)
        return self.path / name

    def write(self, name: str, content: bytes | str) -> None:
        """Writes a file that belongs to no stage, whole."""
        if is_coordinator():
            self._require_held()
            write_atomically(self.path / name, content)

    def _finish(self, path: UPath, seconds: float) -> None:
        self._require_held()
        sync_tree(path)
        files = [name for name in files_below(path) if name not in (MANIFEST, _SECONDS)]
        entries = {name: _entry(path / name) for name in files}
        manifest = {"seconds": seconds, "files": entries}
        write_atomically(path / MANIFEST, json.dumps(manifest, indent=1) + "\n")
        (path / _SECONDS).unlink(missing_ok=True)


@contextlib.contextmanager
def open_run(path: str | os.PathLike[str] | UPath, config: Config) -> Iterator[RunDirectory]:
    """Creates a run, or goes on with the one at `path`; nobody else can meanwhile.

    path: a directory, or gs://BUCKET/PATH.

    Raises UserError, in all processes, when somebody else has it open, when it was made with
    another configuration, when `path` is something else or out of reach, and when not all processes
    see it.
    """
    path = location(path)
    require_held = always_held
    with contextlib.ExitStack() as stack:

        def take() -> None:
            nonlocal require_held
            require_held = _open(path, config, stack)

        broadcast(take)
        _require_shared(path)
        yield RunDirectory(path, config, require_held)


def _open(path: UPath, config: Config, stack: contextlib.ExitStack) -> Callable[[], None]:
    with reached(path):
        begun = (path / CONFIG_FILE).exists()
        if not begun and names_in(path, "[!.]*"):
            raise UserError(
                f"{path} has files but no {CONFIG_FILE}, so it is no run: choose another --run-dir"
            )
        make_directory(path)
        require_held = stack.enter_context(locked(path))
        if begun:
            _require_same(path, config)
            return require_held
    made_with = ", ".join(f"{name} {version}" for name, version in versions().items())
    # Where it runs may be another place each time.
    kept = dataclasses.replace(config, processes=ProcessesConfig())
    write_atomically(path / CONFIG_FILE, f"# Made with {made_with}.\n{to_yaml(kept)}")
    return require_held


def _require_shared(path: UPath) -> None:
    """Raises UserError, in all processes, when one does not see what the first one writes."""
    if process_count() == 1:
        return
    token = f".seen-by-all-{broadcast(lambda: secrets.token_hex(8))}"
    if is_coordinator():
        write_atomically(path / token, "")
    barrier("a file for all to see")
    seen = gather([_appears(path / token), platform.node()], "who sees the file")
    if is_coordinator():
        (path / token).unlink()
    blind = [f"process {i} on {host}" for i, (sees, host) in enumerate(seen) if not sees]
    if blind:
        raise UserError(
            f"{', '.join(blind[:20])} cannot see what process 0 on {seen[0][1]} writes into {path}:"
            " --run-dir must be a directory that all hosts share"
        )


def _appears(path: UPath) -> bool:
    """Whether a file is there or comes soon: file systems of a network show it a little later."""
    deadline = time.monotonic() + _PATIENCE
    while not path.exists():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def _seen(path: UPath) -> bool:
    if not _appears(path):
        raise UserError(
            f"{path}, which process 0 has written, is not there on {platform.node()}: is the run"
            " directory still mounted?"
        )
    return True


def _require_same(path: UPath, config: Config) -> None:
    changes = diff(load_config(path / CONFIG_FILE), config)
    if changes:
        raise UserError(
            f"{path} was made with another configuration (there -> now):\n  "
            + "\n  ".join(changes)
            + "\nstart again with the configuration it has, or choose another --run-dir"
        )


def _is_whole(directory: UPath) -> bool:
    if not (directory / MANIFEST).exists():
        return False
    for file, entry in _manifest(directory)["files"].items():
        _verify(directory, file, entry)
    return True


def _begin(directory: UPath) -> float:
    """Makes or takes up an unfinished stage; seconds that earlier attempts took."""
    make_directory(directory)
    remove_torn(directory)
    noted = directory / _SECONDS
    return float(noted.read_text()) if noted.exists() else 0.0


def _manifest(directory: UPath) -> dict[str, Any]:
    try:
        manifest = json.loads((directory / MANIFEST).read_text())
        for entry in manifest["files"].values():
            int(entry["bytes"]), str(entry["sha256"])
        float(manifest["seconds"])
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        raise _damaged(directory, MANIFEST, "it is missing or cannot be read") from None
    return manifest


def _entry(path: UPath) -> dict[str, Any]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while part := file.read(_PART):
            digest.update(part)
    return {"bytes": path.stat().st_size, "sha256": digest.hexdigest()}


def _verify(directory: UPath, name: str, entry: dict[str, Any]) -> None:
    path = directory / name
    if not path.exists():
        raise _damaged(directory, name, "it is missing")
    if path.stat().st_size != entry["bytes"]:
        size = path.stat().st_size
        raise _damaged(directory, name, f"it has {size} bytes, not {entry['bytes']}")
    if _entry(path) != entry:
        raise _damaged(directory, name, "its checksum is another")


def _damaged(directory: UPath, name: str, problem: str) -> UserError:
    return UserError(
        f"{directory / name} is damaged: {problem}; delete {directory} and start the run again,"
        " which makes it anew"
    )
