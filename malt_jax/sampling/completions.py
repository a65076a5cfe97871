"""Completions on the host: sampled ids, log-probabilities, and why each completion ended."""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int


class Finish(enum.IntEnum):
    """Why a completion ended."""

    RUNNING = 0
    STOP = 1
    """It drew a stop token, which is its last token."""
    LENGTH = 2
    """It reached the limit of tokens."""


@dataclasses.dataclass(frozen=True)
class Completions:
    """Completions of every node at one depth; the leading axes are (Q, n_1, ..., n_d)."""

    tokens: Int[np.ndarray, "*tree T"]
    """Sampled ids, the stop token included; zeros after the completion's length."""
    log_probabilities: Float[np.ndarray, "*tree T"]
    """Of each token under the model's whole distribution at temperature 1."""
    lengths: Int[np.ndarray, "*tree"]
    finish: Int[np.ndarray, "*tree"]
    """Values of `Finish`."""

    def ids(self, *node: int) -> list[int]:
        """The sampled ids of one node, the stop token included."""
        return self.tokens[node][: self.lengths[node]].tolist()

    @classmethod
    def of_rows(
        cls,
        ids: Sequence[Any],
        shape: tuple[int, ...],
        log_probabilities: Sequence[Any] | None = None,
        finish: Sequence[int] | None = None,
    ) -> Completions:
        """Completions from ragged rows in row-major order of the node axes `shape`.

        Without log-probabilities and finish reasons, these are zeros: prompts need the ids alone.
        """
        lengths = np.array([len(row) for row in ids], np.int32)
        tokens = np.zeros((len(ids), int(lengths.max(initial=0))), np.int32)
        logps = np.zeros(tokens.shape, np.float32)
        for row, length in enumerate(lengths):
            tokens[row, :length] = ids[row]
            if log_probabilities is not None:
                logps[row, :length] = log_probabilities[row]
        ends = np.zeros(len(ids), np.int32) if finish is None else np.array(finish, np.int32)
        wide = (*shape, tokens.shape[1])
        return cls(
            tokens.reshape(wide), logps.reshape(wide), lengths.reshape(shape), ends.reshape(shape)
        )

    def nodes(self) -> Iterator[tuple[int, ...]]:
        """The index of every node, in row-major order."""
        return iter(np.ndindex(self.lengths.shape))

    def of_questions(self, count: int) -> Completions:
        """The completions of the first questions."""
        return Completions(
            self.tokens[:count],
            self.log_probabilities[:count],
            self.lengths[:count],
            self.finish[:count],
        )
