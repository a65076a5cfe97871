"""One round of MALT (arXiv 2412.01928): sample trees, grade, back up values, train every role.

    expand -> grade -> back up -> rows and pairs -> SFT -> DPO

It differs from the paper as follows; `docs/results.md` says what each choice does.

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

import io
import json
import logging
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from jaxtyping import Array, Float, Key
from upath import UPath

from malt_jax.config import Config
from malt_jax.distributed.processes import stop_requested
from malt_jax.errors import Stopped, UserError
from malt_jax.malt import credit
from malt_jax.malt.credit import Node, RoleRows
from malt_jax.malt.experiment import Experiment
from malt_jax.malt.objectives import Objective, objectives
from malt_jax.malt.prompts import Pipeline
from malt_jax.malt.tree import Tree, expand, from_parquet, grade, to_parquet
from malt_jax.model.llama import Params
from malt_jax.progress import Progress
from malt_jax.runs.checkpoints import restore_tree, save_tree
from malt_jax.runs.directory import RunDirectory, Stage
from malt_jax.runs.metrics import Metrics
from malt_jax.runs.states import StateStore
from malt_jax.tasks.base import Question
from malt_jax.training.batches import Batches, Example
from malt_jax.training.loop import (
    reference_logps,
    rows_that_fit,
    start_state,
    total_updates,
    train,
)
from malt_jax.training.policy import Policy
from malt_jax.training.step import Metrics as StepMetrics

logger = logging.getLogger(__name__)

_REFERENCE = "reference_logps.npy"
_TRAINING = 1
"""Folded into the run's key for everything that training draws."""

Rows = Sequence[tuple[Tree, tuple[RoleRows, ...]]]
"""The training rows of every role in every tree."""


class Trained(NamedTuple):
    """The trained weights of the roles; a role without an entry is the base model."""

    sft: dict[str, Params]
    """After SFT: STaR's policies."""
    final: dict[str, Params]
    """After the last training stage: MALT's policies."""


class Records(NamedTuple):
    """Where a run keeps its results."""

    directory: RunDirectory
    metrics: Metrics
    save_every: int
    """Updates between two saved training states."""


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
    _write_rows(records.directory, f"round-{number}/rows", pipeline.names, rows)
    sft, final = dict(before.sft), dict(before.final)
    for depth, role in enumerate(pipeline.names):
        for order, objective in enumerate(objectives(config, role)):
            name = f"round-{number}/{role}/{objective.name}"
            nodes = [(tree, row) for tree, roles in rows for row in objective.select(roles[depth])]
            if not nodes:
                message = objective.missing.format(role=role)
                logger.warning("%s: %s; it keeps its weights", name, message)
                continue
            start = final.get(role)
            if start is None:
                start = policy.init(base, jax.random.fold_in(key, depth))
            if records.directory.is_done(name):
                weights = restore_tree(records.directory.finished(name) / "weights", start)
            else:
                examples = [_example(pipeline, tree, row) for tree, row in nodes]
                seed = _seed(config, number, depth, order)
                batches = _batches(name, objective, policy, examples, seed)
                weights = train_stage(name, objective, policy, base, start, batches, records)
            final[role] = weights
            if objective.name == "sft":
                sft[role] = weights
    return Trained(sft, final), np.concatenate([tree.rewards for tree in trees])


def restore_trained(
    directory: RunDirectory, rounds: int, roles: Sequence[str], like: Params
) -> Trained:
    """The weights that the finished training stages of a run left.

    like: the shapes, dtypes and shardings of a role's weights.

    Raises UserError when a checkpoint is damaged or does not fit the configuration.
    """
    found = Trained({}, {})
    for number in range(rounds):
        for role in roles:
            for stage, kept in (("sft", (found.sft, found.final)), ("dpo", (found.final,))):
                name = f"round-{number}/{role}/{stage}"
                if directory.is_done(name):
                    weights = restore_tree(directory.finished(name) / "weights", like)
                    for weights_of in kept:
                        weights_of[role] = weights
    return found


def row_counts(directory: RunDirectory, number: int) -> dict[str, Any]:
    """Rows and pairs per role of a finished round."""
    return json.loads((directory.finished(f"round-{number}/rows") / "counts.json").read_text())


def _credit(tree: Tree, config: Config, number: int) -> tuple[RoleRows, ...]:
    ids = [question.id for question in tree.questions]
    return credit.assign(tree.rewards, tree.texts, ids, config.credit, _seed(config, number))


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
    with Progress(title, total, "questions", start=done) as progress:
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


def _write_rows(directory: RunDirectory, name: str, roles: Sequence[str], rows: Rows) -> None:
    """Writes the training rows as references to nodes, unless an earlier attempt has done it."""
    if directory.is_done(name):
        return
    sizes = {}
    with directory.stage(name) as stage:
        for depth, role in enumerate(roles):
            sft = [_named(tree, node) for tree, of_role in rows for node in of_role[depth].sft]
            pairs = [
                {"chosen": _named(tree, chosen), "rejected": _named(tree, rejected)}
                for tree, of_role in rows
                for chosen, rejected in of_role[depth].pairs
            ]
            for file, lines in (("sft", sft), ("pairs", pairs)):
                text = "".join(json.dumps(line) + "\n" for line in lines)
                stage.write(f"{role}/{file}.jsonl", text)
            sizes[role] = {"rows": len(sft), "pairs": len(pairs)}
        stage.write("counts.json", json.dumps(sizes, indent=1) + "\n")


def _named(tree: Tree, node: Node) -> dict[str, Any]:
    """A node by its question's id and its path."""
    return {"question": tree.questions[node.question].id, "path": list(node.path)}


def _example(pipeline: Pipeline, tree: Tree, nodes: Sequence[Node]) -> Example:
    """A training row from sibling nodes: their common prompt and their sampled ids."""
    question, path = nodes[0]
    prompt = pipeline.prompts[len(path) - 1]
    ids = prompt.ids(tree.questions[question].text, tree.ancestors(question, path))
    return Example(ids, tuple(tree.ids(*node) for node in nodes))


def _batches(
    name: str, objective: Objective, policy: Policy, examples: Sequence[Example], seed: int
) -> Batches:
    """The batches of a stage, without the rows that the model's positions cannot hold."""
    kept, dropped = rows_that_fit(examples, policy.model.config.max_positions, objective.rows)
    if dropped:
        logger.warning(
            "%s: %d of %d rows are longer than the model's positions and were left out",
            name,
            dropped,
            len(examples),
        )
    return Batches(kept, objective.options.batch_size, seed)


def train_stage(
    name: str,
    objective: Objective,
    policy: Policy,
    base: Params,
    start: Params,
    batches: Batches,
    records: Records,
) -> Params:
    """Trains a role from the weights `start` as one stage of the run.

    The state is saved every `save_every` updates and on SIGTERM; a later attempt goes on from it
    and ends in the same bits. Metrics are read one update late, so that the device is never idle.

    Raises Stopped, once the state is saved, after SIGTERM in any process.
    """
    directory, metrics, save_every = records
    with directory.stage(name) as stage:
        if objective.needs_reference:
            batches = _with_reference(stage, policy, base, start, batches)
        states = StateStore(stage)
        state = states.restore(start_state(policy, objective, start))
        metrics.restart(name, after=states.latest_step)
        total = total_updates(objective.options, batches)
        with Progress(name, total, "steps", start=states.latest_step) as progress:

            def log(step: int, on_device: StepMetrics) -> None:
                values = {key: float(value) for key, value in jax.device_get(on_device).items()}
                progress.update(done=step, loss=values["loss"])
                epoch = step / batches.steps_per_epoch
                metrics.log(name, step, values | {"steps": total, "epoch": epoch})

            pending = None
            updates = train(policy, objective, base, state, batches)
            for step, state, values in updates:
                if pending is not None:
                    log(*pending)
                pending = step, values
                stop = stop_requested()
                if stop or step % save_every == 0:
                    log(*pending)
                    pending = None
                    metrics.flush()
                    states.save(step, state)
                if stop:
                    raise Stopped
            if pending is not None:
                log(*pending)
        save_tree(stage.path / "weights", state.trainable)
        states.clear()
    return state.trainable


def _with_reference(
    stage: Stage, policy: Policy, base: Params, start: Params, batches: Batches
) -> Batches:
    """The batches with the log-probabilities of their completions under the policy `start`."""
    shape = (len(batches.examples), len(batches.examples[0].completions))
    if stage.has(_REFERENCE):
        logps = _from_npy(stage.path / _REFERENCE, shape)
    else:
        logps = reference_logps(policy, base, start, batches.examples, batches.batch_size)
        content = io.BytesIO()
        np.save(content, logps)
        stage.write(_REFERENCE, content.getvalue())
    return batches.with_reference(logps)


def _from_npy(file: UPath, shape: tuple[int, int]) -> Float[np.ndarray, "rows 2"]:
    try:
        array = np.load(io.BytesIO(file.read_bytes()), allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(file, str(error)) from None
    if array.shape != shape or array.dtype != np.float32:
        raise _damaged(file, f"it holds {array.dtype}{list(array.shape)}, not float32{list(shape)}")
    return array


def _damaged(file: UPath, problem: str) -> UserError:
    return UserError(f"{file} is damaged: {problem}; delete it, and it is computed again")
