"""Sampling one role's completions for a batch of questions, from ragged prompt segments."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Int, Key

from malt_jax.model.levels import Level, level_spec
from malt_jax.model.llama import Llama, Params
from malt_jax.sampling.cache import bucket, pad_segments, prefill, segment_specs
from malt_jax.sampling.completions import Completions
from malt_jax.sampling.decode import (
    PartialCompletions,
    cache_sizes,
    decode,
    decode_calls,
    initial_state,
    node_keys,
)
from malt_jax.sampling.token import SamplingParameters
from malt_jax.sharding.calls import Call
from malt_jax.sharding.rules import abstract, batch_shards, device_put

Segments = Sequence[Sequence[int]]
"""Token ids of every node of one level, in row-major order of its leading axes."""


class Request(NamedTuple):
    """Completions to be sampled together.

    levels:    the prompts as segments, one list a level: levels[0] holds the one segment that all
               prompts begin with, levels[1 + d] those of the nodes with leading axes
               (Q, *branching[:d]). The segments of the last level are not empty.
    branching: branches down to and including the completions, len(levels) - 1 numbers.
    questions: ids of the questions, on which the random keys depend.
    key:       a completion's own key depends on it, its question's id and its path.
    first_branch: number of the first branch below every question. Branches that are drawn in
               several requests are the same as in one request that draws them all.
    """

    levels: Sequence[Segments]
    branching: tuple[int, ...]
    questions: Int[np.ndarray, " Q"]
    key: Key[Array, ""]
    first_branch: int = 0


@dataclasses.dataclass(frozen=True)
class Sampler:
    """A model and the parameters that its completions are drawn with.

    chunk: tokens that are decoded between two looks of the host.
    batch: questions that a smaller request is padded to, so that all run the same programs.
    """

    model: Llama
    parameters: SamplingParameters
    chunk: int
    batch: int = 1

    def sample(self, variables: Params, request: Request) -> Completions:
        """Draws branching[-1] completions for every node of the deepest level.

        Each segment is prefilled once, whatever the number of its descendants. The last token of a
        prompt is not prefilled: each of its completions takes it as the first input, so no logits
        are carried from the prefill to the decode.
        """
        *_, partial = self._decode(variables, request)
        return partial.read().of_questions(len(request.questions))

    def stream(self, variables: Params, request: Request) -> Iterator[Completions]:
        """As `sample`, and yields the completions so far after every chunk."""
        for partial in self._decode(variables, request):
            yield partial.read().of_questions(len(request.questions))

    def _decode(self, variables: Params, request: Request) -> Iterator[PartialCompletions]:
        model, mesh = self.model, self.model.mesh
        asked = len(request.questions)
        levels, questions = self._padded(request)
        nodes = (len(questions), *request.branching)
        first = [segment[-1] for segment in levels[-1]]
        levels = [*levels[:-1], [segment[:-1] for segment in levels[-1]]]
        ancestors: tuple[Level, ...] = ()
        for depth, segments in enumerate(levels):
            leading = nodes[:depth]
            tokens, lengths = pad_segments(segments, leading)
            specs = segment_specs(leading, tokens.shape[-1])
            tokens, lengths = device_put(mesh, (tokens, lengths), specs)
            level = prefill(model, variables, tokens, lengths, ancestors)
            ancestors = (*ancestors, level)
        forked = np.repeat(np.array(first, np.int32), nodes[-1]).reshape(nodes)
        keys = node_keys(request.key, questions, request.branching, request.first_branch)
        forked, keys = device_put(mesh, (forked, keys), P("batch"))
        size = next(cache_sizes(int(self.parameters.max_tokens), self.chunk))
        state = initial_state(model, forked, keys, size)
        yield from decode(model, variables, ancestors, state, self.parameters, self.chunk, asked)

    def calls(
        self,
        variables: Params,
        levels: Sequence[tuple[str, int]],
        branching: tuple[int, ...],
        questions: int,
        completion_tokens: int,
    ) -> Iterator[Call]:
        """The compiled programs of `sample`, in order, for a request of `questions` questions.

        variables:         abstract.
        levels:            the name and the longest segment's tokens of every level of the prompts.
        completion_tokens: of every completion. All end together, so the batch is not compacted.
        """
        model, mesh = self.model, self.model.mesh
        nodes = (self._padded_size(questions), *branching)
        ancestors: tuple[Level, ...] = ()
        for depth, (name, length) in enumerate(levels):
            leading = nodes[:depth]
            width = bucket(length - 1 if depth == len(levels) - 1 else length)
            segments = abstract(mesh, segment_specs(leading, width))
            yield Call(f"prefill-{name}", prefill, (model, variables, *segments, ancestors))
            ancestors = (*ancestors, abstract(mesh, level_spec(model, leading, width)))
        yield from decode_calls(
            model, variables, ancestors, nodes, self.parameters, self.chunk, completion_tokens
        )

    def _padded_size(self, asked: int) -> int:
        """Questions of a padded batch: at least `batch`, and a multiple of the mesh's shards."""
        size = max(asked, self.batch)
        return size + -size % batch_shards(self.model.mesh)

    def _padded(self, request: Request) -> tuple[list[Segments], Int[np.ndarray, " Q"]]:
        """The levels and question ids with the last question repeated."""
        asked = len(request.questions)
        missing = self._padded_size(asked) - asked
        root, *below = request.levels
        padded = [
            [*segments, *[*segments[-(len(segments) // asked) :]] * missing] for segments in below
        ]
        return [root, *padded], np.pad(request.questions, (0, missing), mode="edge")
