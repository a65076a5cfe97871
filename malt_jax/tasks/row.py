"""One row of a data set, and what is said when something is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from malt_jax import grading
from malt_jax.errors import UserError


@dataclass(frozen=True)
class Row:
    """One row's fields and the place to name when something is wrong with them."""

    place: str
    fields: Mapping[str, Any]

    def text(self, field: str) -> str:
        """The text in a field. Raises UserError when there is none."""
        value = self.value(field)
        if not isinstance(value, str) or not value.strip():
            raise self.error(field, f"must be text, got {shorten(value)}")
        return value

    def number_or_text(self, field: str) -> str:
        """The text or the number in a field, as text. Raises UserError for anything else."""
        value = self.value(field)
        if isinstance(value, bool) or not isinstance(value, (str, int, float)):
            raise self.error(field, f"must be text or a number, got {shorten(value)}")
        return str(value)

    def value(self, field: str) -> Any:
        if field not in self.fields:
            raise self.error(field, f"is missing; the row has {', '.join(self.fields) or 'none'}")
        return self.fields[field]

    def answer(self, field: str, kind: grading.Kind, answer: str) -> str:
        """The canonical form of a right answer. Raises UserError when it has none."""
        canonical = grading.normalize(kind, answer)
        if canonical is None:
            raise self.error(field, f"must hold an answer of kind {kind!r}, got {shorten(answer)}")
        return canonical

    def error(self, field: str, problem: str) -> UserError:
        return UserError(f"{self.place}: field {field!r} {problem}")


def shorten(value: object) -> str:
    """A value for a message, in at most 80 characters."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
