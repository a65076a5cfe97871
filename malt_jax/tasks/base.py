"""What a task is: numbered questions with their answers, and how a reply is judged."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from malt_jax import grading

Split = Literal["train", "test"]

PROMPTS = Path(__file__).parent.parent / "prompts"


@dataclass(frozen=True)
class Question:
    """A question as the roles read it.

    Attributes:
        id:       the index of its row in its split, whatever the order in which it is asked.
        text:     what stands in the prompts' {question} slot.
        answer:   the right answer, in the canonical form that `Task.extract` gives.
        metadata: what reports group by or people like to read (level, subject, solution).
    """

    id: int
    text: str
    answer: str
    metadata: Mapping[str, str] = field(default_factory=dict)


class Task(ABC):
    """A data set: its questions by split, its prompts, and its answer format.

    Attributes:
        name: how the configuration calls it.
        kind: its answer format, one of grading.KINDS.
    """

    name: ClassVar[str]
    kind: grading.Kind

    @abstractmethod
    def questions(self, split: Split) -> Sequence[Question]:
        """The questions of a split by ascending id.

        Raises UserError when they cannot be had, are malformed, or are none at all.
        """

    def extract(self, completion: str) -> str | None:
        """The answer that a completion ends with, in canonical form; None when it gives none."""
        return grading.extract(self.kind, completion)

    def equal(self, a: str, b: str) -> bool:
        """Whether two canonical answers say the same."""
        return grading.equal(self.kind, a, b)

    @property
    def prompts(self) -> Path:
        """The directory with one prompt file a role."""
        directory = PROMPTS / self.name
        return directory if directory.is_dir() else PROMPTS / "default"
