"""The size of a run, and the compiled programs that it calls.

`Sampler.calls` and `training_calls` list the programs; here they are multiplied by batches, rounds
and roles. All arguments are abstract: nothing is computed and nothing allocated.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax.numpy as jnp
import numpy as np

from malt_jax import tasks
from malt_jax.checkpoints.checkpoint import StoredCheckpoint
from malt_jax.checkpoints.tokenizer import Tokenizer
from malt_jax.config import Config
from malt_jax.errors import UserError
from malt_jax.malt.experiment import create_sampler, models
from malt_jax.malt.objectives import Loss, objectives
from malt_jax.malt.prompts import Pipeline
from malt_jax.malt.roles import load_roles
from malt_jax.malt.round import phases
from malt_jax.model.config import LlamaConfig
from malt_jax.model.llama import Llama, Params, variable_specs
from malt_jax.sampling.sampler import Sampler
from malt_jax.sharding.calls import Call
from malt_jax.sharding.mesh import Meshes, Sizes
from malt_jax.sharding.rules import abstract
from malt_jax.tasks.base import Split, Task
from malt_jax.tasks.rows import RowsTask
from malt_jax.training.batches import Batch, Batches, Example
from malt_jax.training.loop import training_calls
from malt_jax.training.policy import Policy
from malt_jax.training.step import train_step

QUESTION_TOKENS = 256
"""Tokens of the longest question where the questions are not on this machine."""
SAMPLE = 2000
"""Questions whose tokens are counted; a generated task may have a million."""


@dataclasses.dataclass(frozen=True)
class Assumptions:
    """Numbers that are not known before the run."""

    question_tokens: int | None = None
    """Tokens of the longest question; None: counted, or QUESTION_TOKENS."""
    completion_tokens: int | None = None
    """Tokens of every completion; None: sampling.max_tokens, the most there can be."""
    accuracy: float = 0.5
    """Share of the completions that are correct, independently of each other."""


@dataclasses.dataclass(frozen=True)
class RoleWork:
    """The size of one role's work."""

    name: str
    branching: int
    levels: tuple[tuple[str, int], ...]
    """Name and tokens of every level of its prompt: root, question, each earlier role."""
    rows: int
    """Correct completions in a round."""
    incorrect: int
    pairs: int
    """Preference pairs in a round."""

    @property
    def prompt_tokens(self) -> int:
        return sum(length for _, length in self.levels)


@dataclasses.dataclass(frozen=True)
class Workload:
    """A run as its programs depend on it."""

    config: Config
    shape: LlamaConfig
    dtype: Any
    stop_ids: tuple[int, ...]
    completion_tokens: int
    """Of every completion."""
    train_questions: int
    test_questions: int
    roles: tuple[RoleWork, ...]

    @classmethod
    def of(cls, config: Config, assumed: Assumptions, platform: str) -> Workload:
        """Reads the model's shape, the tokenizer, the prompts and the questions, but no weights.

        Of a data set on the hub only the published number of its questions is used.

        Raises UserError for a model, a task or a prompt that cannot be used.
        """
        stored = StoredCheckpoint.of(config.model)
        tokenizer = stored.tokenizer
        task = tasks.create(config.task)
        pipeline = Pipeline.of(load_roles(config.pipeline.roles, task.prompts), tokenizer)
        train, longest_train = _questions(task, "train", config.task.train_questions, tokenizer)
        test, longest_test = _questions(task, "test", config.test_limit, tokenizer)
        question = assumed.question_tokens or max(longest_train, longest_test)
        most = config.sampling.max_tokens
        completion = min(assumed.completion_tokens or most, most)
        return cls(
            config,
            stored.config,
            jnp.dtype(config.model.resolve_dtype(platform)),
            tokenizer.stop_ids,
            completion,
            train,
            test,
            tuple(_roles(config, pipeline, question, completion, train, assumed.accuracy)),
        )


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


def _roles(
    config: Config,
    pipeline: Pipeline,
    question: int,
    completion: int,
    questions: int,
    accuracy: float,
) -> Iterator[RoleWork]:
    """The expected work of every role.

    Of n siblings n·p are correct, and n(n-1)·p(1-p) of the ordered pairs are a correct and a wrong
    one.
    """
    prompts = 1
    for prompt in pipeline.prompts:
        levels = [
            ("root", len(prompt.root)),
            ("question", question + len(prompt.question_segment(""))),
        ]
        for depth, earlier in enumerate(pipeline.names[: prompt.depth], 1):
            # A completion that the prompt does not show has an empty level.
            shown = prompt.completion_segment(depth, [-1])
            fixed = len(prompt.completion_segment(depth, []))
            levels.append((earlier, completion + fixed if shown else 0))
        siblings, limits = prompt.role.branching, config.of_role(prompt.role.name).credit
        most_rows = limits.max_rows_per_question or math.inf
        most_pairs = limits.max_pairs_per_question or math.inf
        rows, incorrect = (prompts * siblings * share for share in (accuracy, 1 - accuracy))
        pairs = prompts * siblings * (siblings - 1) * accuracy * (1 - accuracy)
        yield RoleWork(
            prompt.role.name,
            siblings,
            tuple(levels),
            round(questions * min(rows, most_rows)),
            round(questions * min(incorrect, most_rows)),
            round(questions * min(pairs, most_pairs)),
        )
        prompts *= siblings


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program and its calls in a whole run."""

    stage: str
    """trees, evaluation, or the name of an objective."""
    role: str
    call: Call
    mesh: Sizes

    @property
    def name(self) -> str:
        return f"{self.stage}/{self.role}/{self.call.name}"

    @property
    def updates(self) -> bool:
        """Whether a call is an update of weights."""
        return self.call.function is train_step


def programs(load: Workload, meshes: Meshes) -> list[Program]:
    """Every program of a run in the order of first use.

    Completions have the workload's length, so batch compaction is left out: `count` is an upper
    bound for the programs of whole batches, and those of smaller ones need less.
    """
    trained, sampled = models(load.config, load.shape, load.dtype, meshes)
    sampler = create_sampler(load.config, sampled, load.stop_ids)
    policy = Policy(trained, load.config.training.method)
    base, same_mesh = base_weights(trained), meshes.sampling == meshes.training
    # The base weights of training stay on the devices while sampling has a copy of its own.
    resident = None if same_mesh and trained.lora == sampled.lora else base
    listed = [
        *sampling_programs(load, sampler, "trees", resident),
        *training_programs(load, policy),
        *sampling_programs(load, sampler, "evaluation", resident),
    ]
    return [program for program in listed if program.call.count]


def base_weights(model: Llama) -> Params:
    """Abstract."""
    base: Params = abstract(model.mesh, variable_specs(model)["params"])
    return base


def sampling_programs(
    load: Workload, sampler: Sampler, stage: str, resident: Params | None = None
) -> Iterator[Program]:
    """The programs of all trees or of the evaluation.

    resident: weights that stay on the devices without being the sampler's.
    """
    config, model = load.config, sampler.model
    if stage == "trees":
        questions, asked = config.sampling.questions_per_batch, load.train_questions
        branching = [role.branching for role in load.roles]
    else:
        asked = load.test_questions
        questions = min(config.evaluation.questions_per_batch, asked)
        branching = [config.evaluation.votes] + [1] * (len(load.roles) - 1)
    sampler = dataclasses.replace(sampler, batch=questions)
    variables = abstract(model.mesh, variable_specs(model))
    repetitions, policies = config.rounds * len(phases(config, 0)), 2
    for depth, role in enumerate(load.roles):
        if stage == "evaluation":
            # The untrained and the SFT policy; MALT's from the first role that is trained further.
            policies = 3 if len(objectives(config, role.name)) > 1 else policies
            repetitions = policies * config.evaluation.seeds
        nodes = tuple(branching[: depth + 1])
        times = math.ceil(asked / questions) * repetitions
        for call in sampler.calls(variables, role.levels, nodes, questions, load.completion_tokens):
            stays = (call.resident, resident)
            call = dataclasses.replace(call, count=call.count * times, resident=stays)
            yield Program(stage, role.name, call, Sizes.of(model.mesh))


def training_programs(load: Workload, policy: Policy) -> Iterator[Program]:
    """The programs of all training stages, with batches of the longest rows."""
    for role in load.roles:
        for planned in objectives(load.config, role.name):
            objective = planned.fitted(0.0)
            rows = objective.count_rows(role.rows, role.incorrect, role.pairs)
            if not rows:
                continue
            batch = _batch(role, load.completion_tokens, objective)
            anchors = None
            if objective.anchor is not None and role.rows:
                anchors = _batch(role, load.completion_tokens, objective.anchor)
            for call in training_calls(policy, objective, batch, rows, anchors):
                call = dataclasses.replace(call, count=call.count * load.config.rounds)
                yield Program(objective.name, role.name, call, Sizes.of(policy.model.mesh))


def _batch(role: RoleWork, completion: int, objective: Loss) -> Batch:
    """A batch of a role's longest rows, with the log-probabilities of a reference if needed."""
    branches, batch_size = objective.completions, objective.options.batch_size
    root = role.levels[0][1]
    # The prompts differ from the question on.
    examples = [
        Example(
            (0,) * root + (number,) * (role.prompt_tokens - root), ((0,) * completion,) * branches
        )
        for number in (1, 2)
    ]
    reference = np.zeros((2, branches), np.float32) if objective.needs_reference else None
    return Batches(examples, batch_size, seed=0, reference_logps=reference).batch(0, 0)
