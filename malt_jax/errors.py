"""Errors that are meant for the person who runs a command."""

from __future__ import annotations

import contextlib
import importlib
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
    return "".join(traceback.format_exception(error)).rstrip(), 1
