"""One round of MALT (arXiv 2412.01928): sample trees, grade, back up values, train every role.

    expand -> grade -> back up -> rows and pairs -> SFT -> DPO or other objectives

With `training.on_policy_pairs` the SFT policies sample trees again before DPO and KTO:

    expand -> grade -> back up -> rows -> SFT -> expand -> grade -> back up -> pairs -> DPO

It differs from the paper as follows:

- The paper samples trees once, from the base model. With `rounds` above 1 the trees of a later
  round are sampled with the final policies of the one before. SFT of a round starts from SFT of the
  one before, so STaR's policies are SFT alone, and the objectives after it start from SFT of their
  own round, as in the paper's one round.
- SFT rows are all correct nodes, as in algorithm 1; section 4.3 takes only those that occur in a
  pair (`credit.sft_rows=paired`).
- Equal completions of one prompt give one training row. They all count for the values.
- DPO is for the verifier and the refiner by default, as in the paper's Llama runs
  (`training.dpo_roles`).
- Learning rates, LoRA's rank, scale and targets, sampling limits and prompt texts are not in the
  paper; `malt_jax/config.py` has our defaults. It does not explain its "adapter weight" of 0.2; we
  take it for a factor of the adapters in sampling (`lora.adapter_weight`), by default 1.
- A completion that reaches `sampling.max_tokens` stays in the tree and may become a row.
"""

from __future__ import annotations

import functools
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
from malt_jax.malt.pairs import pair_doubt
from malt_jax.malt.prompts import Pipeline
from malt_jax.malt.reuse import INPUTS, tree_inputs
from malt_jax.malt.rows import selected, stage_batches, write_rows
from malt_jax.malt.stage import Records, train_stage
from malt_jax.malt.tree import Tree, expand, from_parquet, grade, to_parquet
from malt_jax.malt.tree_table import tree_table
from malt_jax.model.llama import Params
from malt_jax.progress import Progress
from malt_jax.runs.checkpoints import restore_tree
from malt_jax.runs.directory import RunDirectory
from malt_jax.runs.stage import Stage
from malt_jax.tasks.base import Question

logger = logging.getLogger(__name__)

_TRAINING = 1
"""Folded into the run's key for everything that training draws."""
_ON_POLICY = 1 << 16
"""Folded into a round's key and seeds for its on-policy trees, to be apart from any role's."""


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


class TrainingStage(NamedTuple):
    """One training stage of one role."""

    name: str
    depth: int
    order: int
    """Among the stages of its role."""
    objective: Objective


class Phase(NamedTuple):
    """Graded trees, and the stages that train on their rows."""

    trees: str
    rows: str
    stages: list[TrainingStage]
    draw: tuple[int, ...]
    """Folded into the round's key and seeds for these trees and their rows."""


def phases(config: Config, number: int) -> list[Phase]:
    """The phases of a round: one, or with on-policy pairs a second one for what follows SFT."""
    stages = [
        TrainingStage(training_stage(number, role, objective), depth, order, objective)
        for depth, role in enumerate(config.pipeline.names)
        for order, objective in enumerate(objectives(config, role))
    ]
    folder = f"round-{number}"
    first = Phase(f"{folder}/trees", f"{folder}/rows", stages, ())
    sft = [stage for stage in stages if stage.objective.name == Sft.name]
    if not config.training.on_policy_pairs or len(sft) == len(stages):
        return [first]
    later = [stage for stage in stages if stage.objective.name != Sft.name]
    trees, rows = f"{folder}/on-policy-trees", f"{folder}/on-policy-rows"
    return [first._replace(stages=sft), Phase(trees, rows, later, (_ON_POLICY,))]


def run_round(
    experiment: Experiment,
    config: Config,
    records: Records,
    number: int,
    questions: Sequence[Question],
    before: Trained,
) -> tuple[Trained, Float[np.ndarray, "Q *n"]]:
    """Samples trees with the final weights `before`, and trains every role from its weights after
    SFT: first SFT on the trees, then each further objective from what the stage before it left.

    Stages that have finished are read. Returns the new weights and the rewards of all leaves of the
    first trees.
    """
    pipeline, policy, base = experiment.pipeline, experiment.policy, experiment.base
    directory = records.directory
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(config.seed), _TRAINING), number)
    after = Trained(dict(before.sft), dict(before.final))
    current = dict(before.sft)
    rewards = []
    for trees_name, rows_name, stages, draw in phases(config, number):
        tree_key = functools.reduce(jax.random.fold_in, draw, key)
        sampled = current if draw else before.final
        trees = _trees(experiment, config, directory, trees_name, questions, sampled, tree_key)
        if not directory.is_done(rows_name):
            records.metrics.table(trees_name, number, tree_table(trees, config.tracking.trees))
        rows = [(tree, _credit(tree, config, _seed(config, number, *draw))) for tree in trees]
        write_rows(directory, rows_name, experiment, config, rows)
        rewards.append(np.concatenate([tree.rewards for tree in trees]))
        for name, depth, order, chosen in stages:
            role, doubt = pipeline.names[depth], pair_doubt(rows, depth) or 0.0
            objective = chosen.fitted(doubt)
            if not selected(objective, rows, depth):
                message = objective.missing.format(role=role)
                logger.warning("%s: %s; it keeps its weights", name, message)
                continue
            start = current.get(role)
            if start is None:
                start = policy.init(base, jax.random.fold_in(key, depth))
            if directory.is_done(name):
                weights = restore_tree(directory.finished(name) / "weights", start)
            else:
                if objective != chosen:
                    logger.info("%s: label_smoothing %.4f, as measured on the pairs", name, doubt)
                seed = _seed(config, number, depth, order)
                batches = stage_batches(name, objective, experiment, rows, depth, seed)
                weights = train_stage(name, objective, policy, base, start, batches, records)
            current[role] = weights
            after.keep(role, objective, weights)
    return after, rewards[0]


def stage_names(config: Config) -> list[str]:
    """Names of the stages of all rounds, in the order in which they run."""
    return [
        name
        for number in range(config.rounds)
        for phase in phases(config, number)
        for name in (phase.trees, phase.rows, *(stage.name for stage in phase.stages))
    ]


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


class Lineage(NamedTuple):
    """The training stages that a role's weights have passed through, in order, by role."""

    sft: dict[str, list[str]]
    """Of the weights after SFT."""
    final: dict[str, list[str]]
    """Of the final weights."""


def lineage(directory: RunDirectory, config: Config) -> Lineage:
    """The finished training stages of a run as the policies of its roles have passed through them.

    Untrained roles have no entry.
    """
    found = Lineage({}, {})
    for number in range(config.rounds):
        for role in config.pipeline.names:
            current = found.sft.get(role, [])
            for objective in objectives(config, role):
                name = training_stage(number, role, objective)
                if directory.is_done(name):
                    found.final[role] = current = [*current, name]
                    if objective.name == Sft.name:
                        found.sft[role] = current
    return found


def _credit(tree: Tree, config: Config, seed: int) -> tuple[RoleRows, ...]:
    ids = [question.id for question in tree.questions]
    configs = [config.of_role(role).credit for role in tree.roles]
    return credit.assign(tree.rewards, tree.texts, ids, configs, seed)


def _seed(config: Config, *path: int) -> int:
    """A seed for draws with NumPy, or for a key of their own."""
    entropy = [config.seed, _TRAINING, *path]
    return int(np.random.SeedSequence(entropy).generate_state(1)[0])


def _trees(
    experiment: Experiment,
    config: Config,
    directory: RunDirectory,
    name: str,
    questions: Sequence[Question],
    trained: dict[str, Params],
    key: Key[Array, ""],
) -> list[Tree]:
    """The graded trees of all questions, batch by batch, which the stage `name` holds.

    trained: the weights that they are sampled with; roles without an entry are the base model.
    """
    pipeline, task = experiment.pipeline, experiment.task
    size = config.sampling.questions_per_batch
    batches = {
        f"batch-{start // size:05}.parquet": questions[start : start + size]
        for start in range(0, len(questions), size)
    }
    if directory.is_done(name):
        folder = directory.finished(name)
        return [_read(folder / file, asked, pipeline) for file, asked in batches.items()]
    with experiment.sampling_weights() as weights:
        variables = [weights.of(trained.get(role)) for role in pipeline.names]

        def sample(asked: Sequence[Question]) -> Tree:
            completions = expand(
                experiment.sampler, pipeline.prompts, variables, asked, pipeline.branching, key
            )
            return grade(task, asked, pipeline.names, completions, pipeline.tokenizer)

        with directory.stage(name) as stage:
            stage.write(INPUTS, json.dumps(tree_inputs(experiment, questions), indent=1) + "\n")
            title = name.replace("round-", "round ").replace("/", ": ")
            return _sample_batches(stage, title, batches, sample, pipeline)


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
