"""How much a run samples and trains: what its programs' shapes and calls follow from."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence

from malt_jax import tasks
from malt_jax.checkpoints.tokenizer import Tokenizer
from malt_jax.config import Config
from malt_jax.errors import UserError
from malt_jax.malt.prompts import Pipeline
from malt_jax.malt.roles import load_roles
from malt_jax.tasks.base import Split, Task
from malt_jax.tasks.rows import RowsTask

logger = logging.getLogger(__name__)

QUESTION_TOKENS = 256
"""Tokens of the longest question where the questions are not at hand."""
SAMPLE = 2000
"""Questions whose tokens are counted; a generated task may have a million."""


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """What is not known before the run."""

    question_tokens: int | None = None
    """Tokens of the longest question; None: counted, or QUESTION_TOKENS where there are none."""
    completion_tokens: int | None = None
    """Tokens of every completion; None: sampling.max_tokens, the most there can be."""
    right: float = 0.5
    """Share of the completions that are right, independently of each other."""


@dataclasses.dataclass(frozen=True)
class RoleLengths:
    """Tokens of a role's prompt, level by level."""

    name: str
    branching: int
    root: int
    question: int
    completions: tuple[int, ...]
    """Of each earlier role's completion with the fixed text behind it."""

    @property
    def levels(self) -> tuple[int, ...]:
        return (self.root, self.question, *self.completions)


@dataclasses.dataclass(frozen=True)
class Workload:
    """The size of a run."""

    roles: tuple[RoleLengths, ...]
    completion_tokens: int
    train_questions: int
    test_questions: int
    rows: tuple[int, ...]
    """SFT rows of each role in a round."""
    pairs: tuple[int, ...]
    """Preference pairs of each role in a round."""


def workload(config: Config, tokenizer: Tokenizer, assumed: Assumptions) -> Workload:
    """What a run of this configuration amounts to; every completion is taken to be of one length.

    Prompts are counted in the tokenizer's ids, and so are questions that are generated or in files;
    of a data set on the hub only the published number of its questions is used.

    Raises UserError for a task or a prompt that cannot be used.
    """
    task = tasks.create(config.task)
    pipeline = Pipeline.of(load_roles(config.pipeline.roles, task.prompts), tokenizer)
    limits = {"train": config.task.train_questions, "test": config.test_limit}
    counts: dict[str, int] = {}
    longest = 0
    for split in ("train", "test"):
        counts[split], tokens = _questions(task, split, limits[split], tokenizer)
        longest = max(longest, tokens)
    completion = min(
        assumed.completion_tokens or config.sampling.max_tokens, config.sampling.max_tokens
    )
    roles = _role_lengths(pipeline, assumed.question_tokens or longest, completion)
    rows, pairs = _training_rows(config, roles, counts["train"], assumed.right)
    return Workload(roles, completion, counts["train"], counts["test"], rows, pairs)


def _questions(
    task: Task, split: Split, limit: int | None, tokenizer: Tokenizer
) -> tuple[int, int]:
    """Number of questions that a run asks of a split, and tokens of the longest of a sample."""
    if isinstance(task, RowsTask) and getattr(task.config, split) is None:
        published = getattr(task, split)
        if published is None:
            raise UserError(
                f"the task {task.name!r} has no {split} questions of its own; name a file with"
                f" task.{split}=FILE"
            )
        count = published.questions
        return count if limit is None else min(limit, count), QUESTION_TOKENS
    questions = task.questions(split)
    count = len(questions) if limit is None else min(limit, len(questions))
    looked_at = range(0, len(questions), max(1, len(questions) // SAMPLE))
    return count, max(len(tokenizer.encode(questions[index].text)) for index in looked_at)


def _role_lengths(pipeline: Pipeline, question: int, completion: int) -> tuple[RoleLengths, ...]:
    found = []
    for prompt in pipeline.prompts:
        behind = [prompt.completion_segment(depth + 1, []) for depth in range(prompt.depth)]
        # A completion that the prompt does not show has an empty level.
        shown = [prompt.completion_segment(depth + 1, [-1]) for depth in range(prompt.depth)]
        found.append(
            RoleLengths(
                name=prompt.role.name,
                branching=prompt.role.branching,
                root=len(prompt.root),
                question=question + len(prompt.question_segment("")),
                completions=tuple(
                    completion + len(fixed) if level else 0
                    for fixed, level in zip(behind, shown, strict=True)
                ),
            )
        )
    return tuple(found)


def _training_rows(
    config: Config, roles: Sequence[RoleLengths], questions: int, right: float
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Expected rows and pairs of every role: of n siblings n·p are right, and n(n-1)·p(1-p) of the
    ordered pairs are a right and a wrong one."""
    rows, pairs = [], []
    prompts = 1
    for role in roles:
        siblings = role.branching
        of_question = prompts * siblings * right
        pairs_of_question = prompts * siblings * (siblings - 1) * right * (1 - right)
        caps = config.credit.max_rows_per_question, config.credit.max_pairs_per_question
        rows.append(round(questions * min(of_question, caps[0] or of_question)))
        pairs.append(round(questions * min(pairs_of_question, caps[1] or pairs_of_question)))
        prompts *= siblings
    return tuple(rows), tuple(pairs)
