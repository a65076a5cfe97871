"""A check that says what it found; no error of what it checks leaves it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from malt_jax.errors import UserError, parsing


class Finding(NamedTuple):
    """The outcome of a check."""

    name: str
    ok: bool
    text: str

    def __str__(self) -> str:
        first, *others = self.text.splitlines() or [""]
        lines = [f"{'ok' if self.ok else 'WRONG':6} {self.name}: {first}"]
        return "\n".join([*lines, *(f"       {line}" for line in others)])


def check(name: str, look: Callable[[], str]) -> Finding:
    """Runs `look`, which returns what is there and raises what is wrong.

    UserErrors are the finding as they are, any other error with its type.
    """
    try:
        with parsing("it failed"):
            return Finding(name, True, look())
    except UserError as error:
        return Finding(name, False, str(error))


def amount(size: float) -> str:
    """Bytes for people: "3.5 MB", "16.1 GB"."""
    return f"{size / 1e6:,.1f} MB" if size < 1e9 else f"{size / 1e9:,.1f} GB"
