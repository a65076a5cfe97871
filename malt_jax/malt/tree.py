"""The reasoning tree: every role's completions for a batch of questions, and their rewards.

`expand` samples it, `grade` gives the rewards of its leaves; Parquet files keep it.
"""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from jaxtyping import Array, Float, Key
from upath import UPath

from malt_jax.checkpoints.tokenizer import Tokenizer
from malt_jax.errors import UserError
from malt_jax.malt import credit
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
        ("text", pa.string()),
        ("ids", pa.list_(pa.int32())),
        ("log_probabilities", pa.list_(pa.float32())),
        ("finish", pa.string()),
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
    """What the sampler is asked for the nodes of one depth.

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
        level = tree.completions[depth]
        for question, *path in np.ndindex(values.shape):
            node = (question, *path)
            length = level.lengths[node]
            rows.append(
                {
                    "question": tree.questions[question].id,
                    "role": tree.roles[depth],
                    "path": path,
                    "text": tree.texts[depth][node],
                    "ids": level.tokens[node][:length],
                    "log_probabilities": level.log_probabilities[node][:length],
                    "finish": Finish(level.finish[node]).name.lower(),
                    "value": float(values[node]),
                }
            )
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, _SCHEMA), buffer, compression="zstd")
    return buffer.getvalue()


def from_parquet(
    file: Path | UPath,
    questions: Sequence[Question],
    roles: Sequence[str],
    branching: Sequence[int],
) -> Tree:
    """Reads a tree back.

    Raises UserError when the file cannot be read or does not hold the nodes of these questions.
    """
    try:
        table = pq.read_table(pa.BufferReader(file.read_bytes()), schema=_SCHEMA)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{file} cannot be read as a tree: {error}") from None
    row_of = {question.id: row for row, question in enumerate(questions)}
    nodes = table.to_pylist()
    completions, texts = [], []
    rewards = np.zeros((len(questions), *branching), np.float64)
    for depth, role in enumerate(roles):
        level = [node for node in nodes if node["role"] == role]
        shape = (len(questions), *branching[: depth + 1])
        wanted = {(question.id, *path) for question in questions for path in np.ndindex(shape[1:])}
        if {(node["question"], *node["path"]) for node in level} != wanted:
            raise UserError(f"{file} does not hold the {role}'s completions of these questions")
        longest = max(len(node["ids"]) for node in level)
        tokens = np.zeros((*shape, longest), np.int32)
        log_probabilities = np.zeros((*shape, longest), np.float32)
        lengths, finish = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
        text = np.empty(shape, object)
        for node in level:
            index = (row_of[node["question"]], *node["path"])
            length = len(node["ids"])
            tokens[index][:length] = node["ids"]
            log_probabilities[index][:length] = node["log_probabilities"]
            lengths[index] = length
            finish[index] = Finish[node["finish"].upper()]
            text[index] = node["text"]
            if depth == len(roles) - 1:
                rewards[index] = node["value"]
        completions.append(Completions(tokens, log_probabilities, lengths, finish))
        texts.append(text)
    return Tree(tuple(questions), tuple(roles), tuple(completions), tuple(texts), rewards)
