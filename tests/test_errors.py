"""What a command says at its end, and the status that scripts see."""

import pytest

from malt_jax.errors import ProcessLost, Stopped, UserError, outcome


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
