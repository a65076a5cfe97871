"""The run: rounds of sampling, credit and learning, then the evaluation.

Every stage is a function of the configuration and of the stages before it. A finished stage is read
back instead of being run again, so a run that was interrupted goes on where it was and ends in the
same numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Key

from malt_jax import credit, evaluation, report
from malt_jax.config import Config
from malt_jax.credit import Node, RoleRows
from malt_jax.experiment import Experiment, prepare
from malt_jax.learning.batches import Example
from malt_jax.learning.dpo import train_dpo
from malt_jax.learning.fit import OnStep, StepMetrics
from malt_jax.learning.sft import train_sft
from malt_jax.llama.model import Params
from malt_jax.runs.checkpoints import restore_tree, save_tree
from malt_jax.runs.directory import RunDirectory, Stage
from malt_jax.runs.metrics import Metrics
from malt_jax.runs.progress import Progress
from malt_jax.tasks.base import Question
from malt_jax.tree import Tree, expand, from_parquet, graded, to_parquet

logger = logging.getLogger(__name__)

_TRAINING = 1
"""Folded into the run's key for everything that training draws."""


@dataclasses.dataclass(frozen=True)
class Learned:
    """What the roles have learned so far; a role without an entry is the base model."""

    sft: dict[str, Params]
    """After SFT: STaR's policies, and the references of DPO."""
    final: dict[str, Params]
    """After DPO where there was any: MALT's policies."""


def run(config: Config, directory: RunDirectory) -> dict[str, Any]:
    """Runs all stages that are not finished yet and returns the results (docs/results-schema.md).

    Raises UserError for input that cannot be used; what is finished stays.
    """
    experiment = prepare(config)
    train = experiment.questions("train", config.task.train_questions)
    limits = [n for n in (config.task.test_questions, config.evaluation.questions) if n is not None]
    test = experiment.questions("test", min(limits, default=None))
    experiment.check_lengths([*train, *test])

    with Metrics(directory.path) as metrics:
        learned = Learned({}, {})
        counts = []
        for number in range(config.rounds):
            round_ = Round(experiment, directory, metrics, number, train, learned)
            learned = round_.learn()
            counts.append(round_.counts())
        seeds = _evaluate(experiment, directory, learned, test)
    outcomes = evaluation.outcomes(experiment.task, seeds)
    results = report.results(experiment, directory, outcomes, counts, _stages(config, directory))
    report.write(directory, results)
    return results


def learned(experiment: Experiment, directory: RunDirectory) -> Learned:
    """What the finished training stages of a run have left.

    Raises UserError when a checkpoint is damaged or does not fit the configuration.
    """
    policy, base = experiment.policy, experiment.checkpoint.params
    like = jax.eval_shape(lambda: policy.init(base, jax.random.key(0)))
    found = Learned({}, {})
    for number in range(experiment.config.rounds):
        for role in experiment.pipeline.names:
            for stage, kept in (("sft", (found.sft, found.final)), ("dpo", (found.final,))):
                name = f"round-{number}/{role}/{stage}"
                if directory.is_done(name):
                    weights = restore_tree(directory.finished(name) / "weights", like)
                    for trainables in kept:
                        trainables[role] = weights
    return found


@dataclasses.dataclass(frozen=True)
class Round:
    """One round: sample trees with what was learned before, assign credit, train every role."""

    experiment: Experiment
    directory: RunDirectory
    metrics: Metrics
    number: int
    questions: Sequence[Question]
    before: Learned

    def learn(self) -> Learned:
        """What the roles know after this round."""
        trees = self._trees()
        rows = self._rows(trees)
        sft, final = dict(self.before.sft), dict(self.before.final)
        for depth, name in enumerate(self.experiment.pipeline.names):
            start = final.get(name)
            singles = [(tree, node) for tree, roles in rows for node in roles[depth].sft]
            if singles:
                start = self._sft(name, start, [self._example(t, [n]) for t, n in singles])
                sft[name] = final[name] = start
            else:
                logger.warning(
                    "round %d: no correct completion of the %s, so it stays as it was",
                    self.number,
                    name,
                )
            if name not in self.experiment.config.learning.dpo_roles:
                continue
            pairs = [(tree, pair) for tree, roles in rows for pair in roles[depth].pairs]
            if pairs and start is not None:
                examples = [self._example(tree, [*pair]) for tree, pair in pairs]
                final[name] = self._dpo(name, start, examples)
            else:
                logger.warning(
                    "round %d: the trees hold no preference pair for the %s (the completions of"
                    " every prompt are all right or all wrong), so it keeps its SFT weights",
                    self.number,
                    name,
                )
        return Learned(sft, final)

    def counts(self) -> dict[str, Any]:
        """Rows and pairs per role."""
        folder = self.directory.finished(f"round-{self.number}/rows")
        return json.loads((folder / "counts.json").read_text())

    def _key(self) -> Key[Array, ""]:
        key = jax.random.key(self.experiment.config.seed)
        return jax.random.fold_in(jax.random.fold_in(key, _TRAINING), self.number)

    def _seed(self, *path: int) -> int:
        """A seed for what draws with NumPy or with a key of its own."""
        entropy = [self.experiment.config.seed, _TRAINING, self.number, *path]
        return int(np.random.SeedSequence(entropy).generate_state(1)[0])

    def _trees(self) -> list[Tree]:
        name = f"round-{self.number}/trees"
        size = self.experiment.config.sampling.questions_per_batch
        batches = _batches(self.questions, size)
        if self.directory.is_done(name):
            folder = self.directory.finished(name)
            return [self._read(folder / file, questions) for file, questions in batches]
        names = self.experiment.pipeline.names
        variables = [self.experiment.variables(self.before.final.get(role)) for role in names]
        with self.directory.stage(name) as stage:
            trees = [self._read(stage.path / f, asked) for f, asked in batches if stage.has(f)]
            tokens, start = 0, sum(len(tree.questions) for tree in trees)
            title = f"round {self.number}: trees"
            with Progress(title, len(self.questions), "questions", start=start) as progress:
                for file, questions in batches[len(trees) :]:
                    tree = self._sample(variables, questions)
                    stage.write(file, to_parquet(tree))
                    trees.append(tree)
                    tokens += tree.tokens
                    progress.update(
                        done=sum(len(tree.questions) for tree in trees),
                        tokens=tokens,
                        right=float(np.mean([tree.rewards.mean() for tree in trees])),
                    )
        return trees

    def _sample(self, variables: Sequence[Params], questions: Sequence[Question]) -> Tree:
        experiment = self.experiment
        completions = expand(
            experiment.sampler,
            experiment.prompts,
            variables,
            questions,
            experiment.pipeline.branching,
            self._key(),
            batch=experiment.config.sampling.questions_per_batch,
        )
        tokenizer = experiment.checkpoint.tokenizer
        names = experiment.pipeline.names
        return graded(experiment.task, questions, names, completions, tokenizer)

    def _read(self, file: Path, questions: Sequence[Question]) -> Tree:
        pipeline = self.experiment.pipeline
        return from_parquet(file, questions, pipeline.names, pipeline.branching)

    def _rows(self, trees: Sequence[Tree]) -> list[tuple[Tree, tuple[RoleRows, ...]]]:
        config = self.experiment.config.credit
        rows = [
            (
                tree,
                credit.assign(
                    tree.rewards,
                    tree.texts,
                    [question.id for question in tree.questions],
                    config,
                    self._seed(),
                ),
            )
            for tree in trees
        ]
        name = f"round-{self.number}/rows"
        if not self.directory.is_done(name):
            with self.directory.stage(name) as stage:
                self._write_rows(stage, rows)
        return rows

    def _write_rows(self, stage: Stage, rows: Sequence[tuple[Tree, tuple[RoleRows, ...]]]) -> None:
        counts = {}
        for depth, role in enumerate(self.experiment.pipeline.names):
            sft = [_reference(tree, node) for tree, roles in rows for node in roles[depth].sft]
            pairs = [
                {"chosen": _reference(tree, chosen), "rejected": _reference(tree, rejected)}
                for tree, roles in rows
                for chosen, rejected in roles[depth].pairs
            ]
            stage.write(f"{role}/sft.jsonl", _json_lines(sft))
            stage.write(f"{role}/pairs.jsonl", _json_lines(pairs))
            counts[role] = {"rows": len(sft), "pairs": len(pairs)}
        stage.write("counts.json", json.dumps(counts, indent=1) + "\n")

    def _example(self, tree: Tree, nodes: Sequence[Node]) -> Example:
        """A training row from sibling nodes: their common prompt and their sampled ids."""
        question, path = nodes[0]
        prompt = self.experiment.prompts[len(path) - 1]
        text = tree.questions[question].text
        return Example(
            prompt.flat(text, tree.ancestors(question, path)),
            tuple(tree.ids(*node) for node in nodes),
        )

    def _sft(self, role: str, start: Params | None, examples: Sequence[Example]) -> Params:
        experiment = self.experiment
        policy, base = experiment.policy, experiment.checkpoint.params
        index = experiment.pipeline.names.index(role)
        if start is None:
            start = policy.init(base, jax.random.fold_in(self._key(), index))
        name = f"round-{self.number}/{role}/sft"
        if self.directory.is_done(name):
            return restore_tree(self.directory.finished(name) / "weights", start)
        with self.directory.stage(name) as stage, self._steps(name) as on_step:
            trained = train_sft(
                policy,
                base,
                start,
                examples,
                experiment.config.sft,
                seed=self._seed(index, 0),
                on_step=on_step,
            )
            _warn_of_dropped(name, trained.dropped, len(examples))
            save_tree(stage.path / "weights", trained.trainable)
        return trained.trainable

    def _dpo(self, role: str, start: Params, examples: Sequence[Example]) -> Params:
        experiment = self.experiment
        index = experiment.pipeline.names.index(role)
        name = f"round-{self.number}/{role}/dpo"
        if self.directory.is_done(name):
            return restore_tree(self.directory.finished(name) / "weights", start)
        with self.directory.stage(name) as stage, self._steps(name) as on_step:
            trained = train_dpo(
                experiment.policy,
                experiment.checkpoint.params,
                start,
                examples,
                experiment.config.dpo,
                seed=self._seed(index, 1),
                on_step=on_step,
            )
            _warn_of_dropped(name, trained.dropped, len(examples))
            save_tree(stage.path / "weights", trained.trainable)
            save_tree(stage.path / "reference_logps", {"logps": trained.reference_logps})
        return trained.trainable

    @contextlib.contextmanager
    def _steps(self, stage: str) -> Iterator[OnStep]:
        """Shows and records the updates of a training stage."""
        self.metrics.restart(stage)
        with contextlib.ExitStack() as stack:
            progress: Progress | None = None

            def on_step(values: StepMetrics) -> None:
                nonlocal progress
                if progress is None:
                    progress = stack.enter_context(Progress(stage, int(values["steps"]), "steps"))
                step = int(values["step"])
                progress.update(done=step, loss=values["loss"])
                self.metrics.log(stage, step, values)

            yield on_step


def _evaluate(
    experiment: Experiment,
    directory: RunDirectory,
    learned: Learned,
    questions: Sequence[Question],
) -> list[list[dict[str, Tree]]]:
    """The passes of every policy on every question, for each seed."""
    config = experiment.config.evaluation
    trainables = {
        evaluation.BASE: {},
        evaluation.STAR: learned.sft,
        evaluation.MALT: learned.final,
    }
    branching = (config.votes,) + (1,) * (len(experiment.prompts) - 1)
    roles = experiment.pipeline.names
    seeds = []
    for seed in range(config.seeds):
        name = f"evaluation/seed-{seed}"
        batches = _batches(questions, config.questions_per_batch)
        key = evaluation.seed_key(experiment, seed)

        def read(folder: Path, file: str, asked: Sequence[Question]) -> dict[str, Tree]:
            return {
                policy: from_parquet(folder / policy / file, asked, roles, branching)
                for policy in trainables
            }

        if directory.is_done(name):
            folder = directory.finished(name)
            seeds.append([read(folder, file, asked) for file, asked in batches])
            continue
        with directory.stage(name) as stage:
            done = [
                read(stage.path, file, asked)
                for file, asked in batches
                if all(stage.has(f"{policy}/{file}") for policy in trainables)
            ]
            start = sum(len(asked) for _, asked in batches[: len(done)])
            title = f"evaluation, seed {seed}"
            with Progress(title, len(questions), "questions", start=start) as progress:
                tokens = 0
                for file, asked in batches[len(done) :]:
                    trees = evaluation.answer(experiment, trainables, asked, key)
                    for policy, tree in trees.items():
                        stage.write(f"{policy}/{file}", to_parquet(tree))
                    done.append(trees)
                    tokens += sum(tree.tokens for tree in trees.values())
                    progress.update(
                        done=sum(len(asked) for _, asked in batches[: len(done)]),
                        tokens=tokens,
                        **{
                            policy: float(np.mean([trees[policy].rewards.mean() for trees in done]))
                            for policy in trainables
                        },
                    )
        seeds.append(done)
    return seeds


def _stages(config: Config, directory: RunDirectory) -> list[str]:
    """Names of all finished stages in the order in which they run."""
    names = []
    for number in range(config.rounds):
        names += [f"round-{number}/trees", f"round-{number}/rows"]
        for role in config.pipeline.roles:
            names += [f"round-{number}/{role.name}/sft", f"round-{number}/{role.name}/dpo"]
    names += [f"evaluation/seed-{seed}" for seed in range(config.evaluation.seeds)]
    return [name for name in names if directory.is_done(name)]


def _batches(questions: Sequence[Question], size: int) -> list[tuple[str, Sequence[Question]]]:
    """Questions by the file that their trees are written to."""
    return [
        (f"batch-{start // size:05}.parquet", questions[start : start + size])
        for start in range(0, len(questions), size)
    ]


def _reference(tree: Tree, node: Node) -> dict[str, Any]:
    """A node as the files of a run name it, by its question's id."""
    return {"question": tree.questions[node.question].id, "path": list(node.path)}


def _json_lines(rows: Sequence[Any]) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _warn_of_dropped(stage: str, dropped: int, rows: int) -> None:
    if dropped:
        logger.warning(
            "%s: %d of %d rows are longer than the model's positions and were left out",
            stage,
            dropped,
            rows,
        )
