"""Batch compaction: questions whose completions have all finished leave the batch."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Bool, Int

from malt_jax.sharding.rules import ArraySpec, constrain, device_put

Tree = TypeVar("Tree")

HALVINGS = 2
"""Times that a batch may shrink to half of its questions; each size is another program."""


@dataclasses.dataclass(frozen=True)
class Batch:
    """The questions that are still decoded.

    rows:   the number of each question, in the order of the arrays' first axis.
    shards: parts of that axis on different devices. Each keeps half of its own questions, so no
            cache moves between devices.
    asked:  questions from this number on are padding, for which no one waits.
    fewest: questions below which the batch does not shrink.
    """

    rows: Int[np.ndarray, " rows"]
    shards: int
    asked: int
    fewest: int

    @classmethod
    def of(cls, questions: int, shards: int, asked: int) -> Batch:
        """A whole batch of so many questions."""
        return cls(np.arange(questions), shards, asked, max(1, questions >> HALVINGS))

    def waited_for(self, running: Bool[np.ndarray, "*tree"]) -> Bool[np.ndarray, "shards Q"]:
        """The questions of each shard that have a running completion."""
        of_question = running.reshape(self.shards, len(self.rows) // self.shards, -1).any(axis=-1)
        return of_question & (self.rows < self.asked).reshape(of_question.shape)

    def to_keep(self, alive: Bool[np.ndarray, "shards Q"]) -> Int[np.ndarray, "shards half"] | None:
        """The questions of each shard to go on with, or None while more than half are alive.

        Finished questions fill up the half, so that its size does not depend on their number.
        """
        half = -(-alive.shape[1] // 2)
        if not self.fewest <= half * self.shards < len(self.rows):
            return None
        if alive.sum(axis=1).max() > half:
            return None
        return np.sort(np.argsort(~alive, axis=1, kind="stable")[:, :half])

    def take(self, kept: Int[np.ndarray, "shards half"]) -> Batch:
        """The batch with the questions `kept` of each shard."""
        of_shard = self.rows.reshape(self.shards, -1)
        rows = np.take_along_axis(of_shard, kept, axis=1).reshape(-1)
        return dataclasses.replace(self, rows=rows)


def take_questions(
    mesh: Mesh | None, tree: Tree, specs: Any, kept: Int[np.ndarray, "shards half"]
) -> Tree:
    """Arrays with the questions `kept` of each shard alone, counted within the shard.

    specs: the ArraySpec or the logical axes of every array; arrays without the axis "batch" stay
        as they are.
    """
    leaves, structure = jax.tree.flatten(tree)
    axes = tuple(x.axes if isinstance(x, ArraySpec) else x for x in jax.tree.leaves(specs))
    taken = _take(leaves, device_put(mesh, kept, P("batch")), axes, mesh)
    return jax.tree.unflatten(structure, taken)


@functools.partial(jax.jit, static_argnames=("axes", "mesh"))
def _take(
    leaves: Sequence[Array], kept: Int[Array, "shards half"], axes: tuple[P, ...], mesh: Mesh | None
) -> list[Array]:
    def take(x: Array, axes: P) -> Array:
        if "batch" not in axes:
            return x
        axis, (shards, rows) = tuple(axes).index("batch"), kept.shape
        before, after = x.shape[:axis], x.shape[axis + 1 :]
        split = x.reshape(*before, shards, x.shape[axis] // shards, *after)
        part = jax.vmap(lambda x, rows: jnp.take(x, rows, axis=axis), (axis, 0), axis)(split, kept)
        return constrain(mesh, part.reshape(*before, shards * rows, *after), axes)

    return [take(x, each) for x, each in zip(leaves, axes, strict=True)]
