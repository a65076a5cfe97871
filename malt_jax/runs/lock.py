"""One run, one writer: a lock on a run's directory, wherever that is."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import logging
import os
import platform
import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import IO, NamedTuple

from upath import UPath

from malt_jax.errors import UserError
from malt_jax.files import in_bucket, modified, reached, write_atomically

logger = logging.getLogger(__name__)

LOCK_FILE = ".lock"

_BEAT = 10.0
"""Seconds between two rewrites of a bucket's lock."""
_SILENCE = 45.0
"""Seconds without a rewrite after which the holder counts as dead."""
_ATTEMPTS = 5
"""Attempts to take a disk's lock."""
_SETTLED = 5.0
"""Seconds in which all processes that saw the same dead holder have acted."""


class Holder(NamedTuple):
    """The process that has a directory open, or had it last."""

    name: str
    """Such as "process 7 on HOST"; "" where there never was one."""
    holds: bool | None
    """None: it may, on another machine whose file locks are not seen here."""


def holder(directory: UPath) -> Holder:
    """The process that has a run's directory open. Another process may ask at any time.

    Raises OSError when the lock cannot be read.
    """
    file = directory / LOCK_FILE
    if in_bucket(directory):
        try:
            name = _holder(file.read_bytes().decode(errors="replace"))
            return Holder(name, time.time() - modified(file) <= _SILENCE)
        except FileNotFoundError:
            return Holder("", False)
    try:
        descriptor = os.open(str(file), os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return Holder("", False)
    with os.fdopen(descriptor, errors="replace") as lock:
        name = _holder(lock.read(200))
        try:
            fcntl.flock(lock.fileno(), fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return Holder(name, True)
    return Holder(name, False if name.endswith(f" on {platform.node()}") else None)


def always_held() -> None:
    """A lock that cannot be lost, since the system keeps it."""


@contextlib.contextmanager
def locked(directory: UPath) -> Iterator[Callable[[], None]]:
    """Holds a directory's lock; gives a function that raises an error if it was lost meanwhile:
    UserError in a bucket, FileNotFoundError if a directory on a disk has been removed.

    Raises UserError, which says who holds it, when somebody else does.
    """
    if in_bucket(directory):
        lease = _Lease(directory)
        lease.take()
        try:
            yield lease.require_held
        finally:
            lease.give_back()
        return
    with _opened(directory / LOCK_FILE) as lock:
        # The system drops the lock with the process, so one that died leaves none.
        if not _taken(lock):
            raise _in_use(directory, lock.read().strip())
        lock.truncate()
        lock.write(f"{_this_process()}\n")
        lock.flush()

        def require_there() -> None:
            with contextlib.suppress(OSError):
                if os.path.samestat(os.stat(str(directory / LOCK_FILE)), os.fstat(lock.fileno())):
                    return
            problem = "it was removed or replaced while the run went on"
            raise FileNotFoundError(errno.ENOENT, problem, str(directory))

        yield require_there


def _opened(file: UPath) -> IO[str]:
    """The file to read and write, created if need be; a link could lead to another file."""
    try:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        return os.fdopen(os.open(str(file), flags, 0o666), "r+")
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        raise UserError(f"{file} is a symbolic link: remove it") from None


def _taken(lock: IO[str]) -> bool:
    """Locks a file for this process alone, unless another one has it."""
    for _ in range(_ATTEMPTS):
        try:
            fcntl.flock(lock.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            time.sleep(0.05)  # `holder` takes it for a moment
    return False


class _Lease:
    """The lock of a bucket: an object that its holder rewrites every few seconds.

    Only one process can create an object (Google's condition ifGenerationMatch=0). The object
    outlives its holder, so another process watches it for a while: if it does not change, the
    holder is dead. Clocks of different machines are not compared.
    """

    def __init__(self, directory: UPath) -> None:
        self._directory = directory
        self._file = directory / LOCK_FILE
        self._token = secrets.token_hex(8)
        self._beats = 0
        self._heard = 0.0
        self._taken_by: str | None = None
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="run lock", daemon=True)

    def take(self) -> None:
        with reached(self._directory):
            taken_over = False
            while not self._created():
                self._require_silence()
                with contextlib.suppress(FileNotFoundError):
                    self._file.unlink()
                taken_over = True
            if taken_over:
                # Another process that saw the same silence may have removed this one's object.
                time.sleep(_SETTLED)
                if self._token not in (found := self._content()):
                    raise _in_use(self._directory, found)
        self._heard = time.monotonic()
        self._thread.start()

    def give_back(self) -> None:
        self._end.set()
        self._thread.join()
        # The run is over, even if the bucket cannot be reached.
        with contextlib.suppress(Exception):
            if self._token in self._content():
                self._file.unlink()

    def require_held(self) -> None:
        if self._taken_by is not None:
            raise _in_use(self._directory, self._taken_by)
        silence = time.monotonic() - self._heard
        if silence > _SILENCE:
            raise UserError(
                f"{self._directory} could not be reached for {silence:.0f} s, so another process"
                " may have taken it over; start the command again to go on"
            )

    def _created(self) -> bool:
        try:
            self._file.fs.pipe_file(self._file.path, self._mark(), mode="create")
        except FileExistsError:
            # A request whose answer was lost has been sent twice.
            return self._token in self._content()
        return True

    def _require_silence(self) -> None:
        found = self._content()
        logger.info(
            "%s is marked as in use by %s: waiting %.0f s for a sign of life",
            self._directory,
            _holder(found),
            _SILENCE,
        )
        deadline = time.monotonic() + _SILENCE
        while time.monotonic() < deadline:
            time.sleep(min(1.0, _BEAT / 4))
            now = self._content()
            if now and now != found:
                raise _in_use(self._directory, now)
            if not now:
                return
        logger.warning("%s: %s is silent; taking over", self._directory, _holder(found))

    def _keep(self) -> None:
        while not self._end.wait(_BEAT):
            try:
                found = self._content()
                if self._token not in found:
                    self._taken_by = found
                    return
                write_atomically(self._file, self._mark())
                self._heard = time.monotonic()
            except Exception as error:
                logger.warning("%s: no sign of life could be given: %s", self._directory, error)

    def _mark(self) -> bytes:
        self._beats += 1
        return f"{_this_process()}\n{self._token} {self._beats}\n".encode()

    def _content(self) -> str:
        try:
            return self._file.read_bytes().decode(errors="replace")
        except FileNotFoundError:
            return ""


def _holder(content: str) -> str:
    return content.partition("\n")[0][:100] or "another process"


def _this_process() -> str:
    return f"process {os.getpid()} on {platform.node()}"


def _in_use(directory: UPath, content: str) -> UserError:
    return UserError(
        f"{directory} is in use by {_holder(content)}: wait for it to end, or choose another"
        " --run-dir"
    )
