"""A run's directory: finished work is kept, and only whole files count.

A stage (the trees of a round, one role's training) is a directory. Its files are written one after
the other, each with its SHA-256, and last of all the manifest: a stage that has one is complete.
An interrupted stage goes on after the files that are recorded and undamaged. This only requires
atomic writes, so a run can be on a disk or in a bucket (`malt_jax.files`).

With several processes (`malt_jax.distributed.processes`) process 0 writes and decides; the others
wait until they see the same files.
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.metadata
import os
import platform
import secrets
from collections.abc import Callable, Iterator

from upath import UPath

import malt_jax
from malt_jax.config import Config, ProcessesConfig, diff, load_config, to_yaml
from malt_jax.distributed.processes import (
    barrier,
    broadcast,
    gather,
    is_coordinator,
    process_count,
)
from malt_jax.errors import UserError
from malt_jax.files import (
    in_bucket,
    location,
    names_in,
    reached,
    write_atomically,
)
from malt_jax.runs.lock import always_held, locked
from malt_jax.runs.stage import MANIFEST, Manifest, Stage, appears, seen

CONFIG_FILE = "config.yaml"
RESULTS_FILE = "results.json"
"""Written when the run has ended."""


def versions() -> dict[str, str]:
    """Versions of Python, of this package and of the libraries that its results depend on."""
    libraries = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "transformers", "numpy")
    installed = {name: importlib.metadata.version(name) for name in libraries}
    return {"python": platform.python_version(), "malt_jax": malt_jax.__version__, **installed}


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
        if done and seen(self.path / name / MANIFEST):
            self._verified.add(name)
        return done

    def finished(self, name: str) -> UPath:
        """The directory of a complete stage.

        Raises UserError when the stage is not complete, or damaged.
        """
        if not self.is_done(name):
            raise UserError(f"{self.path} has no finished {name}: start its training again")
        return self.path / name

    def seconds(self, name: str) -> float:
        """Time that a complete stage took, in seconds, interrupted attempts included."""
        return _manifest(self.finished(name)).seconds

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[Stage]:
        """Makes a stage: complete when the block ends, to be continued when it raises.

        `name` is a path below the run ("round-0/trees"). Only for runs from `open_run`.
        """
        path = self.path / name
        if broadcast((path / MANIFEST).exists):
            raise ValueError(f"{path} is finished already")
        stage = self.growing(name)
        broadcast(stage.clean)
        yield stage
        barrier(f"{name} is written")
        broadcast(stage.finish)
        seen(path / MANIFEST)
        self._verified.add(name)

    def growing(self, name: str) -> Stage:
        """A stage that is never complete: files are only added to it."""
        return Stage(self.path / name, self._require_held)

    def write(self, name: str, content: bytes | str) -> None:
        """Writes a file that belongs to no stage, whole."""
        if is_coordinator():
            self._require_held()
            write_atomically(self.path / name, content)


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
    if found := set("[*?") & set(str(path.absolute())):
        # Orbax takes them for patterns and finds no file of a checkpoint.
        raise UserError(f"{path}: a run directory's path cannot have the character {min(found)}")
    with reached(path):
        begun = (path / CONFIG_FILE).exists()
        if not begun and names_in(path, "[!.]*"):
            raise UserError(
                f"{path} has files but no {CONFIG_FILE}, so it is no run: choose another --run-dir"
            )
        if not in_bucket(path):
            path.mkdir(parents=True, exist_ok=True)
        require_held = stack.enter_context(locked(path))
        if begun:
            _require_same(path, config)
            return require_held
    made_with = ", ".join(f"{name} {version}" for name, version in versions().items())
    # It may go on with other processes and devices.
    kept = dataclasses.replace(config, processes=ProcessesConfig())
    write_atomically(path / CONFIG_FILE, f"# Made with {made_with}.\n{to_yaml(kept)}")
    return require_held


def _require_shared(path: UPath) -> None:
    """Raises UserError, in all processes, when one does not see what process 0 writes."""
    if process_count() == 1:
        return
    token = broadcast(lambda: f".seen-by-all-{secrets.token_hex(8)}")
    if is_coordinator():
        write_atomically(path / token, "")
    seeing = gather([appears(path / token), platform.node()], "who sees the file")
    if is_coordinator():
        (path / token).unlink()
    blind = [f"process {i} on {host}" for i, (sees, host) in enumerate(seeing) if not sees]
    if blind:
        raise UserError(
            f"{', '.join(blind[:20])} cannot see what process 0 on {seeing[0][1]} writes into"
            f" {path}: --run-dir must be a directory that all hosts share"
        )


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
    manifest = _manifest(directory)
    for name in manifest.files:
        if problem := manifest.problem(directory, name):
            raise _damaged(directory, name, problem)
    return True


def _manifest(directory: UPath) -> Manifest:
    try:
        return Manifest.read(directory / MANIFEST)
    except (FileNotFoundError, UserError, ValueError):
        raise _damaged(directory, MANIFEST, "it is missing or cannot be read") from None


def _damaged(directory: UPath, name: str, problem: str) -> UserError:
    return UserError(
        f"{directory / name} is damaged: {problem}; delete {directory} and start the run again,"
        " which makes it again"
    )
