"""Questions that are made when they are looked at."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import overload

from malt_jax.tasks.base import Question


class GeneratedQuestions(Sequence[Question]):
    """A split whose question number i is `question(i)`."""

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
