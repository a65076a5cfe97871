"""What a command says at its end, and the status that scripts see."""

import errno
import os

import pytest

from malt_jax.errors import ProcessLost, Stopped, UserError, machine_problem, outcome


@pytest.mark.parametrize(
    ("error", "words", "status"),
    [
        (UserError("no such file x"), "error: no such file x", 2),
        (ProcessLost("process 3 has died", 1), "error: process 3 has died; this process stops", 1),
        (ProcessLost("process 3 stopped: no such file", 2), "no such file", 2),
        (Stopped(), "stopped by SIGTERM", 143),
        (KeyboardInterrupt(), "interrupted", 130),
        (SystemExit(3), "", 3),
        (ValueError("a mistake"), "ValueError: a mistake", 1),
    ],
)
def test_outcomes(error: BaseException, words: str, status: int) -> None:
    text, code = outcome(error)
    assert words in text and code == status


def os_error(code: int, file: str | None = None) -> OSError:
    return OSError(code, os.strerror(code), file)


def raised_from(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (os_error(errno.ENOSPC, "/run/x"), "/run/x: the disk is full"),
        (os_error(errno.ENOSPC), "the disk is full"),
        (os_error(errno.EMFILE, "/run/x"), "too many open files (ulimit -n)"),
        (os_error(errno.EROFS, "/run/x"), "/run/x: the file system is read-only"),
        (os_error(errno.ENOENT, "/run/x"), "/run/x: a file or directory is gone"),
        (FileNotFoundError(errno.ENOENT, "it was removed", "/run/x"), "/run/x: it was removed;"),
        (raised_from(RuntimeError("saving"), os_error(errno.EDQUOT)), "the disk quota is used up"),
        (
            ValueError("OUT_OF_RANGE: Error at \"/run/d\": File too large [os_error_code='27']"),
            "/run/d: a file would be larger than this process may write (ulimit -f)",
        ),
    ],
)
def test_problems_of_the_machine_are_one_line(error: Exception, said: str) -> None:
    text, status = outcome(error)
    assert said in text and text.startswith("error: ") and "\n" not in text and status == 1
    assert text.endswith("start the command again to go on")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a mistake"),
        raised_from(KeyError("a mistake after a missing file"), os_error(errno.ENOENT, "/x")),
        OSError("without a number"),
    ],
)
def test_mistakes_of_the_program_keep_their_traceback(error: Exception) -> None:
    assert machine_problem(error) is None
    assert type(error).__name__ in outcome(error)[0]
