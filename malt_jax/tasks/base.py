"""Tasks: numbered questions with reference answers, and the comparison of a reply's answer."""

from __future__ import annotations

import functools
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal, TypeVar, overload

import numpy as np

from malt_jax import grading

Split = Literal["train", "test"]
T = TypeVar("T")

PROMPTS = Path(__file__).parent.parent / "prompts"


@dataclass(frozen=True)
class Question:
    """A question as the roles read it.

    Attributes:
        id:       row number in its split, from 0; it does not depend on the order of asking.
        text:     fills the prompts' {question} slot.
        answer:   the reference answer, in the canonical form that `Task.extract` returns.
        metadata: for reports: level, subject, solution.
    """

    id: int
    text: str
    answer: str
    metadata: Mapping[str, str] = field(default_factory=dict)


class Task(ABC):
    """A data set: its questions by split, its prompts, and its answer format.

    Attributes:
        name: its name in the configuration.
        kind: its answer format, one of grading.KINDS.
    """

    name: ClassVar[str]
    kind: grading.Kind

    @abstractmethod
    def questions(self, split: Split) -> Sequence[Question]:
        """The questions of a split by ascending id.

        Raises UserError when they cannot be loaded, are malformed, or when there are none.
        """

    def extract(self, completion: str) -> str | None:
        """The answer at the end of a completion, in canonical form; None when there is none."""
        return grading.extract(self.kind, completion)

    def equal(self, a: str, b: str) -> bool:
        """Whether two canonical answers are equal."""
        return grading.equal(self.kind, a, b)

    def style(self, role: str, text: str) -> str | None:
        """The way in which a role wrote a completion, for counts; None where nothing is known."""
        return None

    @property
    def prompts(self) -> Path:
        """The directory with one prompt file a role."""
        directory = PROMPTS / self.name
        return directory if directory.is_dir() else PROMPTS / "default"


class GeneratedTask(Task):
    """A task that computes its questions: each is a function of its split and index alone.

    Attributes:
        counts: number of questions in each split.
    """

    counts: Mapping[Split, int]

    @abstractmethod
    def question(self, split: Split, index: int) -> Question:
        """The question at an index of a split; the same on every machine and in every version."""

    def questions(self, split: Split) -> Sequence[Question]:
        return GeneratedQuestions(functools.partial(self.question, split), self.counts[split])


class GeneratedQuestions(Sequence[Question]):
    """A sequence that computes question i, `question(i)`, on access."""

    def __init__(self, question: Callable[[int], Question], count: int) -> None:
        self._question = question
        self._indices = range(count)

    def __len__(self) -> int:
        return len(self._indices)

    @overload
    def __getitem__(self, index: int) -> Question: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Question]: ...
    def __getitem__(self, index: int | slice) -> Question | Sequence[Question]:
        if isinstance(index, slice):
            return [self._question(i) for i in self._indices[index]]
        return self._question(self._indices[index])


def question_generator(split: Split, index: int) -> np.random.Generator:
    """The random number generator of one question."""
    seed = [0 if split == "train" else 1, index]
    return np.random.Generator(np.random.Philox(np.random.SeedSequence(seed)))


def pick(rng: np.random.Generator, choices: Sequence[T]) -> T:
    """One of the choices, all with the same probability."""
    return choices[int(rng.integers(len(choices)))]


def split_of(problem: str, test_share: int) -> Split:
    """The only split that may ask a problem; one problem in `test_share` belongs to the test.

    A hash of the problem decides, so the splits share no problem.
    """
    digest = hashlib.sha256(problem.encode()).digest()
    return "test" if digest[0] % test_share == 0 else "train"
