"""Errors that are meant for the person who runs a command."""

from __future__ import annotations

import contextlib
import errno
import importlib
import os
import re
import traceback
from collections.abc import Iterator
from typing import Any


class UserError(Exception):
    """Something that the user can put right: an option, a file, a checkpoint, a question.

    The message says what was wrong, where (file, field, value) and what to do. Commands print it
    without a traceback and exit with code 2.
    """


@contextlib.contextmanager
def parsing(problem: str) -> Iterator[None]:
    """Raises each error of a parser of untrusted input as a UserError that starts with `problem`.

    Parsers have no common class of errors; a panic of Rust code is not even an Exception.
    """
    try:
        yield
    except UserError:
        raise
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        line = str(error).partition("\n")[0][:300]
        raise UserError(f"{problem} ({type(error).__name__}: {line})") from error


class Stopped(Exception):
    """The system wants the machine back (SIGTERM): what is finished has been kept."""


class ProcessLost(Exception):
    """Another process of the run has died or stopped, so this one cannot go on.

    `status` is the exit status for this process: that of the other one, if it has told.
    """

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def import_extra(module: str, extra: str) -> Any:
    """A module of an optional dependency.

    Raises UserError, which names the extra to install, when it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise UserError(
            f"the package {module} is not installed ({error}); install it: make install"
            f" EXTRAS={extra}"
        ) from error


_MACHINE = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "a file would be larger than this process may write (ulimit -f)",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "this user may not do that",
    errno.EPERM: "this user may not do that",
    errno.EMFILE: "this process has too many open files (ulimit -n)",
    errno.ENFILE: "this machine has too many open files",
    errno.EIO: "the disk has reported an error",
    errno.ESTALE: "the file system was mounted again",
    errno.ENOENT: "a file or directory is gone",
}
"""Problems of a machine, which the user can put right, by error number."""
_TENSORSTORE = re.compile(r"\[os_error_code='(\d+)'")
"""TensorStore, which writes arrays for Orbax, raises ValueError with the number in its text."""


def machine_problem(error: BaseException) -> str | None:
    """The problem of a disk or of a limit that an error comes from, with the file; else None."""
    seen: set[int] = set()
    link: BaseException | None = error
    while link is not None and id(link) not in seen:
        seen.add(id(link))
        code, file = _error_number(link)
        # An error raised while a missing file was handled may be a mistake in our code.
        if code in _MACHINE and (link is error or code != errno.ENOENT):
            stated = link.strerror if isinstance(link, OSError) else None
            own = stated if stated and stated != os.strerror(code) else None
            return f"{file}: {own or _MACHINE[code]}" if file else own or _MACHINE[code]
        link = link.__cause__ or (None if link.__suppress_context__ else link.__context__)
    return None


def require_no_machine_problem(error: BaseException) -> None:
    """Raises an error that a disk or a limit of the machine has caused.

    For code that takes errors of reading a file for damage, after which the file may be deleted.
    """
    if not isinstance(error, FileNotFoundError) and machine_problem(error):
        raise error


def _error_number(error: BaseException) -> tuple[int, str | None]:
    """The system's number of an error, 0 where it has none, and the file."""
    if isinstance(error, OSError):
        return error.errno or 0, None if error.filename is None else str(error.filename)
    if isinstance(error, ValueError) and (found := _TENSORSTORE.search(str(error))):
        file = re.search(r'"(/[^"]+)"', str(error))
        return int(found[1]), file and file[1]
    return 0, None


def outcome(error: BaseException) -> tuple[str, int]:
    """The message and the exit status of a command that ends with this error."""
    again = "start the command again to go on"
    match error:
        case UserError():
            return f"error: {error}", 2
        case ProcessLost():
            return f"error: {error}; this process stops too; {again}", error.status
        case Stopped():
            return f"stopped by SIGTERM, what is finished is kept; {again}", 128 + 15
        case KeyboardInterrupt():
            return f"interrupted; {again}", 128 + 2
        case SystemExit():
            return "", error.code if isinstance(error.code, int) else 1
    if problem := machine_problem(error):
        return f"error: {problem}; what is finished is kept. When that is mended, {again}", 1
    return "".join(traceback.format_exception(error)).rstrip(), 1
