"""The reasoning tree: every role's completions for a batch of questions, and their rewards.

`expand` samples it, `grade` gives the rewards of its leaves; Parquet files keep it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
from jaxtyping import Array, Float, Key
from upath import UPath

from malt_jax.checkpoints.tokenizer import Tokenizer
from malt_jax.errors import UserError
from malt_jax.malt import credit, parquet
from malt_jax.malt.prompts import RolePrompt
from malt_jax.model.llama import Params
from malt_jax.sampling.completions import Completions, Finish
from malt_jax.sampling.sampler import Request, Sampler
from malt_jax.tasks.base import Question, Task

Texts = np.ndarray
"""Object array of strings, one a node."""

_SCHEMA = pa.schema(
    [
        ("question", pa.int64()),
        ("role", pa.string()),
        ("path", pa.list_(pa.int32())),
        *parquet.COLUMNS,
        ("value", pa.float64()),
    ]
)


@dataclasses.dataclass(frozen=True)
class Tree:
    """Completions of all roles for Q questions; depth d has the leading axes (Q, n_1, ..., n_d)."""

    questions: tuple[Question, ...]
    roles: tuple[str, ...]
    completions: tuple[Completions, ...]
    texts: tuple[Texts, ...]
    rewards: Float[np.ndarray, "Q *n"]
    """1 where the last role's answer is correct, else 0."""

    @property
    def branching(self) -> tuple[int, ...]:
        return self.rewards.shape[1:]

    @property
    def tokens(self) -> int:
        """Tokens that were sampled."""
        return int(sum(level.lengths.sum() for level in self.completions))

    def ids(self, question: int, path: Sequence[int]) -> list[int]:
        """Sampled ids of one node; `question` counts within this tree."""
        return self.completions[len(path) - 1].ids(question, *path)

    def ancestors(self, question: int, path: Sequence[int]) -> list[list[int]]:
        """Sampled ids of the nodes above one node, the first role's first."""
        return [self.ids(question, path[:depth]) for depth in range(1, len(path))]


def expand(
    sampler: Sampler,
    prompts: Sequence[RolePrompt],
    variables: Sequence[Params],
    questions: Sequence[Question],
    branching: Sequence[int],
    key: Key[Array, ""],
) -> tuple[Completions, ...]:
    """Samples a tree for each question, role after role.

    variables: the weights of every role.
    branching: completions of each role for every one of its prompts.

    A completion depends on (key, depth, question id, path) and on its prompt, not on the batch.
    """
    completions: list[Completions] = []
    for depth, prompt in enumerate(prompts):
        request = node_request(prompt, questions, completions, branching[: depth + 1], key)
        completions.append(sampler.sample(variables[depth], request))
    return tuple(completions)


def node_request(
    prompt: RolePrompt,
    questions: Sequence[Question],
    ancestors: Sequence[Completions],
    branching: Sequence[int],
    key: Key[Array, ""],
    first_branch: int = 0,
) -> Request:
    """The sampler's request for the nodes of one depth.

    ancestors: the completions of all earlier roles.
    branching: branches down to and including these nodes.
    """
    return Request(
        prompt.levels([question.text for question in questions], ancestors),
        tuple(branching),
        np.array([question.id for question in questions]),
        jax.random.fold_in(key, prompt.depth),
        first_branch,
    )


def decode_texts(completions: Completions, tokenizer: Tokenizer) -> Texts:
    """The text of every node."""
    texts = np.empty(completions.lengths.shape, object)
    for node in np.ndindex(texts.shape):
        texts[node] = tokenizer.decode(completions.ids(*node))
    return texts


def grade(
    task: Task,
    questions: Sequence[Question],
    roles: Sequence[str],
    completions: Sequence[Completions],
    tokenizer: Tokenizer,
) -> Tree:
    """The tree with its texts and the rewards of the last role's answers."""
    texts = tuple(decode_texts(level, tokenizer) for level in completions)
    rewards = np.zeros(texts[-1].shape, np.float64)
    for node in np.ndindex(rewards.shape):
        answer = task.extract(str(texts[-1][node]))
        rewards[node] = answer is not None and task.equal(answer, questions[node[0]].answer)
    return Tree(tuple(questions), tuple(roles), tuple(completions), texts, rewards)


def to_parquet(tree: Tree) -> bytes:
    """One row a node: question id, role, path, text, ids, log-probabilities, finish and value."""
    rows: list[dict[str, Any]] = []
    for depth, values in enumerate(credit.values(tree.rewards)):
        level, texts = tree.completions[depth], tree.texts[depth]
        for node, row in zip(level.nodes(), parquet.completion_rows(level, texts), strict=True):
            question, *path = node
            id, role = tree.questions[question].id, tree.roles[depth]
            rows.append(
                {"question": id, "role": role, "path": path, **row, "value": float(values[node])}
            )
    return parquet.encode(rows, _SCHEMA)


def read_nodes(file: Path | UPath) -> pa.Table:
    """The rows of a tree's file. Raises UserError when it cannot be read."""
    return parquet.decode(file, _SCHEMA, "a tree")


def from_parquet(
    file: Path | UPath,
    questions: Sequence[Question],
    roles: Sequence[str],
    branching: Sequence[int],
) -> Tree:
    """Reads a tree.

    Raises UserError when the file cannot be read or does not hold the nodes of these questions.
    """
    rows = read_nodes(file).to_pylist()
    completions, texts = [], []
    for depth, role in enumerate(roles):
        found = {(row["question"], *row["path"]): row for row in rows if row["role"] == role}
        shape = (len(questions), *branching[: depth + 1])
        nodes = [(questions[node[0]].id, *node[1:]) for node in np.ndindex(shape)]
        if found.keys() != set(nodes) or len(nodes) != sum(row["role"] == role for row in rows):
            raise UserError(f"{file} does not hold the {role}'s completions of these questions")
        level = [found[node] for node in nodes]
        completions.append(
            Completions.of_rows(
                [row["ids"] for row in level],
                shape,
                [row["log_probabilities"] for row in level],
                [Finish[row["finish"].upper()] for row in level],
            )
        )
        text = np.empty(len(level), object)
        text[:] = [row["text"] for row in level]
        texts.append(text.reshape(shape))
        rewards = np.array([row["value"] for row in level]).reshape(shape)
    return Tree(tuple(questions), tuple(roles), tuple(completions), tuple(texts), rewards)
