"""Sampling one role's completions for a batch of questions, from ragged token segments."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int, Key

from malt_jax.model.levels import Level
from malt_jax.model.llama import Llama, Params
from malt_jax.sampling.cache import pad_segments, prefill
from malt_jax.sampling.decode import Completions, DecodeState, decode, node_keys
from malt_jax.sampling.token import SamplingParameters
from malt_jax.sharding.rules import batch_shards, device_put

Segments = Sequence[Sequence[int]]
"""Token ids of every node of one level, in row-major order of its leading axes."""


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A model and the settings that its completions are drawn with."""

    model: Llama
    parameters: SamplingParameters
    stop_ids: tuple[int, ...]
    max_tokens: int
    chunk: int

    def sample(
        self,
        variables: Params,
        levels: Sequence[Segments],
        branching: Sequence[int],
        questions: Int[np.ndarray, "Q"],
        key: Key[Array, ""],
        on_chunk: Callable[[DecodeState], None] | None = None,
        *,
        first_branch: int = 0,
    ) -> Completions:
        """Draws branching[-1] completions for every node of the deepest level given.

        levels:    the prompt as segments, one list a level: levels[0] holds the one segment that
                   all questions' prompts begin with, levels[1 + d] those of the nodes with leading
                   axes (Q, *branching[:d]). Those of the last level may not be empty.
        branching: branches down to and including the completions, len(levels) - 1 numbers.
        questions: ids of the questions, which the random keys depend on.
        first_branch: number of the first branch below every question; branches drawn in several
                   calls are those of one call that draws them all.

        Each segment is prefilled once, whatever the number of its descendants. The last token of a
        prompt is not prefilled but fed as the first input of the decode, separately by each of its
        completions, so that no logits have to be carried over from the prefill.
        """
        mesh = self.model.mesh
        asked = len(questions)
        missing = -asked % batch_shards(mesh)
        # The last question again and again, so that the batch divides by its shards.
        questions = np.pad(questions, (0, missing), mode="edge")
        rows = len(questions)
        ancestors: tuple[Level, ...] = ()
        for depth, segments in enumerate(levels):
            leading = (rows, *branching)[:depth]
            if depth:
                last = len(segments) // asked
                segments = [*segments, *[*segments[-last:]] * missing]
            if depth == len(levels) - 1:
                first = np.array([segment[-1] for segment in segments], np.int32)
                segments = [segment[:-1] for segment in segments]
            tokens, lengths = pad_segments(segments, leading)
            tokens, lengths = device_put(mesh, (tokens, lengths), P("batch") if leading else P())
            level = prefill(self.model, variables, tokens, lengths, ancestors)
            ancestors = (*ancestors, level)
        forked = np.repeat(first, branching[-1]).reshape(rows, *branching)
        completions = decode(
            self.model,
            variables,
            ancestors,
            forked,
            node_keys(key, questions, branching, first_branch),
            self.parameters,
            stop_ids=self.stop_ids,
            max_tokens=self.max_tokens,
            chunk=self.chunk,
            fill=missing,
            on_chunk=on_chunk,
        )
        return completions.of_questions(asked)


def prompt_rows(levels: Sequence[Segments]) -> list[list[int]]:
    """The whole prompt of every node of the deepest level, one row each, in row-major order."""
    nodes = len(levels[-1])
    below = [nodes // len(segments) for segments in levels]
    return [
        [
            token
            for segments, descendants in zip(levels, below, strict=True)
            for token in segments[node // descendants]
        ]
        for node in range(nodes)
    ]
