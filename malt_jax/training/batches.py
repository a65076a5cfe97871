"""Training rows as padded batches of a few fixed shapes, in an order that the seed decides."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import flax.struct
import numpy as np
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

MAX_SHAPES = 4
"""Shapes a training set may be padded to; each one is a program to compile."""
LENGTH_MULTIPLE = 16
SHORTEST_PREFIX = 64
"""Tokens of a common beginning that are worth a level of their own. A level reads all weights once
more in every pass, all-gathers them on several devices, and is a third of the program."""
CUT_CANDIDATES = 64
UPDATES_PER_COMPILATION = 25
"""Updates that take as long as compiling one program: a shape has to save more than that."""


@dataclasses.dataclass(frozen=True)
class Example:
    """One training row: a prompt with one completion (SFT) or two.

    The two are (chosen, rejected) for DPO, and for KTO the prompt's own and one of another prompt.

    Token ids; completions include their stop token.
    """

    prompt: Sequence[int]
    completions: tuple[Sequence[int], ...]
    weight: float = 1.0
    """In the loss, for objectives that weigh their rows. For KTO undesirable ones are negative."""
    question: int | None = None
    """Id of the question that it is about, for messages."""

    @property
    def positions(self) -> int:
        """Positions of the model that the longest completion reaches."""
        return len(self.prompt) + max(map(len, self.completions))


class Batch(flax.struct.PyTreeNode):
    """B rows of n completions each, with P prompt tokens and T completion tokens.

    The common beginning of all prompts (instructions, worked examples) is computed once for the
    batch, and the rest of a prompt once for its n completions: they are ancestor levels. A prompt's
    last token is the first input of its completions, so no ancestor level needs logits.
    """

    prefix: Int[Array, " S"]
    """The common beginning; empty when it is too short to be worth a level."""

    rows: Int[Array, " B"]
    """Index of each row's example; -1 for padding rows."""
    weights: Float[Array, " B"]
    """The rows' weights, 0 for padding rows."""
    prompts: Int[Array, "B P"]
    """Prompts without their common beginning and their last token."""
    prompt_lengths: Int[Array, " B"]
    completions: Int[Array, "B n T+1"]
    """The prompt's last token, then the completion."""
    lengths: Int[Array, "B n"]
    """Tokens of each completion."""
    reference_logps: Float[Array, "B n"] | None = None
    """Log-probabilities of the completions under the reference of DPO or KTO."""
    reference_point: Float[Array, " B"] | None = None
    """KTO's reference point, the same in every row (`training.step.with_reference_point`)."""

    @property
    def tokens(self) -> int:
        """Positions that a forward pass computes, padding included."""
        return int(self.prefix.size + self.prompts.size + self.completions.size - self.lengths.size)

    @property
    def inputs(self) -> Int[Any, "B n T"]:
        return self.completions[..., :-1]

    @property
    def targets(self) -> Int[Any, "B n T"]:
        return self.completions[..., 1:]


_AXES: dict[str, Any] = {name: P("batch") for name in Batch.__dataclass_fields__}
BATCH_AXES = Batch(**_AXES | {"prefix": P()})
"""The logical axes of a batch's arrays."""


class Batches:
    """The batches of a training set.

    Rows of similar length share a shape, and there are at most MAX_SHAPES shapes. Batch `step` of
    epoch `epoch` is a pure function of (examples, batch size, seed, epoch, step). An epoch holds
    every row once; the last batch of the longest rows is padded with rows of weight 0.
    """

    def __init__(
        self,
        examples: Sequence[Example],
        batch_size: int,
        seed: int,
        *,
        reference_logps: Float[np.ndarray, "rows n"] | None = None,
    ) -> None:
        if not examples:
            raise ValueError("there are no examples to make batches of")
        if any(not e.prompt or not all(map(len, e.completions)) for e in examples):
            raise ValueError("every example needs a prompt and completions of at least one token")
        self.examples = examples
        self.batch_size = batch_size
        self.seed = seed
        self.reference_logps = reference_logps
        self.anchors: Batches | None = None
        """Batches of other rows, one of which joins every update (`Objective.anchor`)."""
        self._prefix = _common_prefix([example.prompt for example in examples])
        self._groups = _groups_by_length(examples, batch_size, len(self._prefix))
        self._orders: dict[int, list[tuple[tuple[int, int], np.ndarray]]] = {}

    def with_reference(self, logps: Float[np.ndarray, "rows n"]) -> Batches:
        """The same batches with their completions' log-probabilities under a reference."""
        batches = copy.copy(self)
        batches.reference_logps = logps
        return batches

    def with_anchors(self, anchors: Batches) -> Batches:
        """The same batches, whose updates are joined by the batches `anchors` in turn."""
        batches = copy.copy(self)
        batches.anchors = anchors
        return batches

    def at(self, update: int) -> Batch:
        """The batch of update number `update`, counted from 0 through all epochs."""
        return self.batch(*divmod(update, self.steps_per_epoch))

    @property
    def steps_per_epoch(self) -> int:
        return -(-len(self.examples) // self.batch_size)

    @property
    def shapes(self) -> list[tuple[int, int]]:
        """The shapes (P, T) that occur."""
        return sorted(self._groups)

    def batch(self, epoch: int, step: int) -> Batch:
        if epoch not in self._orders:
            self._orders = {epoch: self._order(epoch)}
        shape, rows = self._orders[epoch][step]
        return self._pad(rows, *shape)

    def _order(self, epoch: int) -> list[tuple[tuple[int, int], np.ndarray]]:
        """Shape and rows of every batch of an epoch."""
        generator = np.random.default_rng([self.seed, epoch])
        batches = []
        for shape, members in sorted(self._groups.items()):
            shuffled = generator.permutation(members)
            for start in range(0, len(shuffled), self.batch_size):
                batches.append((shape, shuffled[start : start + self.batch_size]))
        return [batches[i] for i in generator.permutation(len(batches))]

    def _pad(self, rows: np.ndarray, prompt_width: int, completion_width: int) -> Batch:
        size, branches = self.batch_size, len(self.examples[0].completions)
        indices = np.full(size, -1, np.int32)
        indices[: len(rows)] = rows
        weights = np.zeros(size, np.float32)
        weights[: len(rows)] = [self.examples[row].weight for row in rows]
        prompts = np.zeros((size, prompt_width), np.int32)
        prompt_lengths = np.zeros(size, np.int32)
        completions = np.zeros((size, branches, completion_width + 1), np.int32)
        lengths = np.zeros((size, branches), np.int32)
        for slot, row in enumerate(rows):
            example = self.examples[row]
            *head, last = example.prompt[len(self._prefix) :]
            prompts[slot, : len(head)] = head
            prompt_lengths[slot] = len(head)
            for branch, completion in enumerate(example.completions):
                completions[slot, branch, 0] = last
                completions[slot, branch, 1 : len(completion) + 1] = completion
                lengths[slot, branch] = len(completion)
        reference = None
        if self.reference_logps is not None:
            reference = np.zeros((size, branches), np.float32)
            reference[: len(rows)] = self.reference_logps[rows]
        arrays: dict[str, Any] = dict(
            prefix=self._prefix,
            rows=indices,
            weights=weights,
            prompts=prompts,
            prompt_lengths=prompt_lengths,
            completions=completions,
            lengths=lengths,
            reference_logps=reference,
        )
        # They are NumPy arrays: device_put comes later.
        return Batch(**arrays)


def _common_prefix(prompts: Sequence[Sequence[int]]) -> Int[np.ndarray, " S"]:
    """The common beginning of all prompts, without the last token of any.

    Its length is a multiple of LENGTH_MULTIPLE, and 0 below SHORTEST_PREFIX.
    """
    first, last = min(map(tuple, prompts)), max(map(tuple, prompts))
    shortest = min(map(len, prompts)) - 1
    differing = (i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b)
    length = min(next(differing, shortest), shortest) // LENGTH_MULTIPLE * LENGTH_MULTIPLE
    return np.array(first[: length if length >= SHORTEST_PREFIX else 0], np.int32)


def _groups_by_length(
    examples: Sequence[Example], batch_size: int, prefix: int
) -> dict[tuple[int, int], np.ndarray]:
    """Rows by the shape (P, T) they are padded to; P does not count the common beginning.

    Rows are sorted by length and cut between batches so that padding is least. Only the last group
    can have a batch that is not full.
    """
    branches = len(examples[0].completions)
    prompts = np.array([len(example.prompt) - prefix - 1 for example in examples])
    completions = np.array([max(map(len, example.completions)) for example in examples])
    order = np.argsort(prompts + branches * completions, kind="stable")
    starts = np.arange(0, len(order), batch_size)
    widest_prompt = _round_up(np.maximum.reduceat(prompts[order], starts))
    widest_completion = _round_up(np.maximum.reduceat(completions[order], starts))

    def shape(start: int, stop: int) -> tuple[int, int]:
        return int(widest_prompt[start:stop].max()), int(widest_completion[start:stop].max())

    def cost(start: int, stop: int) -> int:
        prompt, completion = shape(start, stop)
        return (stop - start) * (prompt + branches * completion)

    compilation = UPDATES_PER_COMPILATION * cost(0, len(starts)) / len(starts)
    groups: dict[tuple[int, int], list[np.ndarray]] = {}
    for start, stop in _cheapest_cuts(len(starts), lambda *cut: cost(*cut) + compilation):
        rows = order[start * batch_size : stop * batch_size]
        groups.setdefault(shape(start, stop), []).append(rows)
    return {key: np.concatenate(rows) for key, rows in groups.items()}


def _cheapest_cuts(count: int, cost: Callable[[int, int], float]) -> list[tuple[int, int]]:
    """Cuts range(count) into at most MAX_SHAPES intervals of least total cost.

    Dynamic programming over at most CUT_CANDIDATES positions.
    """
    cuts_at = sorted({round(x) for x in np.linspace(0, count, min(count, CUT_CANDIDATES) + 1)})
    best: dict[int, tuple[float, list[tuple[int, int]]]] = {0: (0.0, [])}
    for _ in range(MAX_SHAPES):
        best = {
            stop: min(
                (total + cost(start, stop), [*cuts, (start, stop)])
                for start, (total, cuts) in best.items()
                if start < stop
            )
            for stop in cuts_at[1:]
        } | {0: (0.0, [])}
    return best[count][1]


def _round_up(lengths: np.ndarray) -> np.ndarray:
    return np.maximum(1, -(-lengths // LENGTH_MULTIPLE)) * LENGTH_MULTIPLE
