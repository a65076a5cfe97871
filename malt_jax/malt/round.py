"""One round of MALT (arXiv 2412.01928): sample trees, grade, back up values, train every role.

    expand -> grade -> back up -> rows and pairs -> SFT -> DPO

It differs from the paper as follows:

- The paper samples trees once, from the base model. With `rounds` above 1 the trees of a later
  round are sampled with the adapters of the one before, and training goes on from these.
- SFT rows are all correct nodes, as in algorithm 1; section 4.3 takes only those that occur in a
  pair (`credit.sft_rows=paired`).
- Equal completions of one prompt give one training row. They all count for the values.
- DPO is for the verifier and the refiner by default, as in the paper's Llama runs
  (`training.dpo_roles`).
- Learning rates, LoRA's rank, scale and targets, sampling limits and prompt texts are not in the
  paper; `malt_jax/config.py` has our defaults. Its "adapter weight" of 0.2 is not implemented.
- A completion that reaches `sampling.max_tokens` stays in the tree and may become a row.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Key
from upath import UPath

from malt_jax.config import Config
from malt_jax.distributed.processes import is_coordinator, stop_requested
from malt_jax.errors import Stopped
from malt_jax.malt import credit
from malt_jax.malt.credit import RoleRows
from malt_jax.malt.experiment import Experiment
from malt_jax.malt.objectives import Objective, Sft, objectives
from malt_jax.malt.prompts import Pipeline
from malt_jax.malt.reuse import INPUTS, tree_inputs
from malt_jax.malt.rows import selected, stage_batches, write_rows
from malt_jax.malt.stage import Records, train_stage
from malt_jax.malt.tree import Tree, expand, from_parquet, grade, to_parquet
from malt_jax.model.llama import Params
from malt_jax.progress import Progress
from malt_jax.runs.checkpoints import restore_tree
from malt_jax.runs.directory import RunDirectory
from malt_jax.runs.stage import Stage
from malt_jax.tasks.base import Question

logger = logging.getLogger(__name__)

_TRAINING = 1
"""Folded into the run's key for everything that training draws."""


class Trained(NamedTuple):
    """The trained weights of the roles; a role without an entry is the base model."""

    sft: dict[str, Params]
    """After SFT: STaR's policies."""
    final: dict[str, Params]
    """After the last training stage: MALT's policies."""

    def keep(self, role: str, objective: Objective, weights: Params) -> None:
        """Takes in the weights that a training stage left."""
        self.final[role] = weights
        if objective.name == Sft.name:
            self.sft[role] = weights


def run_round(
    experiment: Experiment,
    config: Config,
    records: Records,
    number: int,
    questions: Sequence[Question],
    before: Trained,
) -> tuple[Trained, Float[np.ndarray, "Q *n"]]:
    """Samples trees with the weights `before`, and trains every role on them.

    Stages that have finished are read. Returns the new weights and the rewards of all leaves.
    """
    pipeline, policy, base = experiment.pipeline, experiment.policy, experiment.base
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), _TRAINING), number)
    trees = _trees(experiment, config, records.directory, number, questions, before, key)
    rows = [(tree, _credit(tree, config, number)) for tree in trees]
    write_rows(records.directory, f"round-{number}/rows", pipeline.names, rows)
    after = Trained(dict(before.sft), dict(before.final))
    for depth, role in enumerate(pipeline.names):
        for order, objective in enumerate(objectives(config, role)):
            name = training_stage(number, role, objective)
            if not selected(objective, rows, depth):
                message = objective.missing.format(role=role)
                logger.warning("%s: %s; it keeps its weights", name, message)
                continue
            start = after.final.get(role)
            if start is None:
                start = policy.init(base, jax.random.fold_in(key, depth))
            if records.directory.is_done(name):
                weights = restore_tree(records.directory.finished(name) / "weights", start)
            else:
                seed = _seed(config, number, depth, order)
                batches = stage_batches(name, objective, experiment, rows, depth, seed)
                weights = train_stage(name, objective, policy, base, start, batches, records)
            after.keep(role, objective, weights)
    return after, np.concatenate([tree.rewards for tree in trees])


def stage_names(config: Config) -> list[str]:
    """Names of the stages of all rounds, in the order in which they run."""
    names = []
    for number in range(config.rounds):
        names += [f"round-{number}/trees", f"round-{number}/rows"]
        for role in config.pipeline.names:
            names += [training_stage(number, role, stage) for stage in objectives(config, role)]
    return names


def training_stage(number: int, role: str, objective: Objective) -> str:
    """Name of the stage that trains a role in a round."""
    return f"round-{number}/{role}/{objective.name}"


def restore_trained(directory: RunDirectory, config: Config, like: Params) -> Trained:
    """The weights that the finished training stages of a run left.

    config: says which rounds, roles and objectives the run has.
    like:   the shapes, dtypes and shardings of a role's weights.

    Raises UserError when a checkpoint is damaged or does not fit the configuration.
    """
    found = Trained({}, {})
    for number in range(config.rounds):
        for role in config.pipeline.names:
            for objective in objectives(config, role):
                name = training_stage(number, role, objective)
                if directory.is_done(name):
                    weights = restore_tree(directory.finished(name) / "weights", like)
                    found.keep(role, objective, weights)
    return found


def _credit(tree: Tree, config: Config, number: int) -> tuple[RoleRows, ...]:
    ids = [question.id for question in tree.questions]
    configs = [config.of_role(role).credit for role in tree.roles]
    return credit.assign(tree.rewards, tree.texts, ids, configs, _seed(config, number))


def _seed(config: Config, *path: int) -> int:
    """A seed for draws with NumPy, or for a key of their own."""
    entropy = [config.seed, _TRAINING, *path]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def _trees(
    experiment: Experiment,
    config: Config,
    directory: RunDirectory,
    number: int,
    questions: Sequence[Question],
    before: Trained,
    key: Key[Array, ""],
) -> list[Tree]:
    """The graded trees of all questions, batch by batch."""
    pipeline, task = experiment.pipeline, experiment.task
    size = config.sampling.questions_per_batch
    batches = {
        f"batch-{start // size:05}.parquet": questions[start : start + size]
        for start in range(0, len(questions), size)
    }
    name = f"round-{number}/trees"
    if directory.is_done(name):
        folder = directory.finished(name)
        return [_read(folder / file, asked, pipeline) for file, asked in batches.items()]
    with experiment.sampling_weights() as weights:
        variables = [weights.of(before.final.get(role)) for role in pipeline.names]

        def sample(asked: Sequence[Question]) -> Tree:
            completions = expand(
                experiment.sampler, pipeline.prompts, variables, asked, pipeline.branching, key
            )
            return grade(task, asked, pipeline.names, completions, pipeline.tokenizer)

        with directory.stage(name) as stage:
            stage.write(INPUTS, json.dumps(tree_inputs(experiment, questions), indent=1) + "\n")
            return _sample_batches(stage, f"round {number}: trees", batches, sample, pipeline)


def _sample_batches(
    stage: Stage,
    title: str,
    batches: dict[str, Sequence[Question]],
    sample: Callable[[Sequence[Question]], Tree],
    pipeline: Pipeline,
) -> list[Tree]:
    """Reads the batches that an earlier attempt has written, and samples the others."""
    trees: dict[str, Tree] = {
        file: _read(stage.path / file, asked, pipeline)
        for file, asked in batches.items()
        if stage.has(file)
    }
    total = sum(map(len, batches.values()))
    done, tokens = sum(len(tree.questions) for tree in trees.values()), 0
    quiet = not is_coordinator()
    with Progress(title, total, "questions", start=done, quiet=quiet) as progress:
        for file, asked in batches.items():
            if file in trees:
                continue
            trees[file] = sample(asked)
            stage.write(file, to_parquet(trees[file]))
            if stop_requested():
                raise Stopped
            done += len(asked)
            tokens += trees[file].tokens
            accuracy = float(np.mean([tree.rewards.mean() for tree in trees.values()]))
            progress.update(done=done, tokens=tokens, accuracy=accuracy)
    return [trees[file] for file in batches]


def _read(file: UPath, questions: Sequence[Question], pipeline: Pipeline) -> Tree:
    return from_parquet(file, questions, pipeline.names, pipeline.branching)
