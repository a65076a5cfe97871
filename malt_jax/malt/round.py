"""The run: rounds of sampling, credit and training, then the evaluation.

Every stage is a function of the configuration and of the stages before it. A finished stage is read
back instead of being run again, so a run that was interrupted goes on where it was and ends in the
same numbers.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import logging
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Array, Float, Key
from upath import UPath

from malt_jax import evaluation
from malt_jax.config import Config, plain
from malt_jax.errors import UserError
from malt_jax.evaluation.results import RESULTS_FILE, write_results
from malt_jax.evaluation.sampling import Policies
from malt_jax.evaluation.store import FOLDER, Store
from malt_jax.evaluation.systems import MALT, STANDARD, STAR
from malt_jax.experiment import Experiment, prepare
from malt_jax.malt import credit
from malt_jax.malt.credit import Node, RoleRows
from malt_jax.malt.tree import Tree, expand, from_parquet, graded, to_parquet
from malt_jax.malt.uncertainty import value_uncertainty
from malt_jax.model.llama import Params
from malt_jax.progress import Progress
from malt_jax.runs.agreement import require_fit
from malt_jax.runs.checkpoints import restore_tree, save_tree
from malt_jax.runs.directory import RunDirectory, Stage, versions
from malt_jax.runs.metrics import Metrics
from malt_jax.runs.training_state import TrainingState
from malt_jax.tasks.base import Question
from malt_jax.training.batches import Example
from malt_jax.training.dpo import reference_logps, train_dpo
from malt_jax.training.loop import OnStep, StepMetrics
from malt_jax.training.sft import train_sft

logger = logging.getLogger(__name__)

_REFERENCE = "reference_logps.npy"
_TRAINING = 1
"""Folded into the run's key for everything that training draws."""


@dataclasses.dataclass(frozen=True)
class Learned:
    """What the roles have learned so far; a role without an entry is the base model."""

    sft: dict[str, Params]
    """After SFT: STaR's policies, and the references of DPO."""
    final: dict[str, Params]
    """After DPO where there was any: MALT's policies."""

    @property
    def policies(self) -> Policies:
        """What the evaluation compares with the base model."""
        return {STAR: self.sft, MALT: self.final}


def run(config: Config, directory: RunDirectory) -> dict[str, Any]:
    """Runs all stages that are not finished yet and returns the results (docs/results-schema.md).

    Raises UserError for input that cannot be used, and Stopped after SIGTERM; what is finished
    stays.
    """
    experiment = prepare(config)
    train = experiment.questions("train", config.task.train_questions)
    test = experiment.questions("test", config.test_limit)
    experiment.check_lengths([*train, *test])
    processes = directory.processes
    require_fit(processes, config, train, test)

    with Metrics(directory.path, writes=processes.is_first) as metrics:
        learned = Learned({}, {})
        counts = []
        for number in range(config.rounds):
            round_ = Round(experiment, directory, metrics, number, train, learned)
            learned = round_.learn()
            counts.append(round_.counts())
            uncertain = value_uncertainty(round_.rewards(), config.credit.threshold)
    store = Store(directory)
    seeds = config.evaluation.seeds
    judged = evaluation.evaluate(experiment, learned.policies, STANDARD, test, seeds, store)
    seconds = {name: round(directory.seconds(name), 3) for name in _stages(config, directory)}
    for seed in range(seeds):
        seconds[f"{FOLDER}/seed-{seed}"] = round(store.seconds(seed), 3)
    results = {
        "model": experiment.checkpoint.name,
        "task": experiment.task.name,
        **judged,
        "rounds": counts,
        "values": {
            role: values._asdict()
            for role, values in zip(experiment.pipeline.names, uncertain, strict=False)
        },
        "seconds": seconds,
        "config": plain(config),
        "versions": versions(),
    }
    write_results(directory, RESULTS_FILE, results)
    return results


def learned(experiment: Experiment, directory: RunDirectory) -> Learned:
    """What the finished training stages of a run have left.

    Raises UserError when a checkpoint is damaged or does not fit the configuration.
    """
    like = experiment.policy.like()
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
            if name not in self.experiment.config.training.dpo_roles:
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

    def rewards(self) -> Float[np.ndarray, "Q *n"]:
        """The grades of all leaves."""
        return np.concatenate([tree.rewards for tree in self._trees()])

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
                    self.directory.processes.stop_if_asked()
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

    def _read(self, file: UPath, questions: Sequence[Question]) -> Tree:
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
        with self.directory.stage(name) as stage, self._training(name, stage) as (saver, on_step):
            trained = train_sft(
                policy,
                base,
                start,
                examples,
                experiment.config.sft,
                seed=self._seed(index, 0),
                on_step=on_step,
                saver=saver,
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
        with self.directory.stage(name) as stage, self._training(name, stage) as (saver, on_step):
            trained = train_dpo(
                experiment.policy,
                experiment.checkpoint.params,
                start,
                examples,
                experiment.config.dpo,
                seed=self._seed(index, 1),
                reference=self._reference(stage, start, examples),
                on_step=on_step,
                saver=saver,
            )
            _warn_of_dropped(name, trained.dropped, len(examples))
            save_tree(stage.path / "weights", trained.trainable)
        return trained.trainable

    def _reference(
        self, stage: Stage, start: Params, pairs: Sequence[Example]
    ) -> Float[np.ndarray, "rows 2"]:
        """The reference's log-probabilities of all pairs, as an interrupted attempt left them."""
        if stage.has(_REFERENCE):
            return _from_npy(stage.path / _REFERENCE, (len(pairs), 2))
        experiment = self.experiment
        batch_size = experiment.config.dpo.batch_size
        base = experiment.checkpoint.params
        logps = reference_logps(experiment.policy, base, start, pairs, batch_size)
        content = io.BytesIO()
        np.save(content, logps)
        stage.write(_REFERENCE, content.getvalue())
        return logps

    @contextlib.contextmanager
    def _training(self, name: str, stage: Stage) -> Iterator[tuple[TrainingState, OnStep]]:
        """Saves, shows and records the updates of a training stage."""
        every = self.experiment.config.training.save_every
        state = TrainingState(stage, self.directory.processes, every, self.metrics.flush)
        self.metrics.restart(name, after=state.step)
        with contextlib.ExitStack() as stack:
            progress: Progress | None = None

            def on_step(values: StepMetrics) -> None:
                nonlocal progress
                if progress is None:
                    total = int(values["steps"])
                    bar = Progress(name, total, "steps", start=state.step)
                    progress = stack.enter_context(bar)
                step = int(values["step"])
                progress.update(done=step, loss=values["loss"])
                self.metrics.log(name, step, values)

            yield state, on_step
        state.clear()


def _stages(config: Config, directory: RunDirectory) -> list[str]:
    """Names of all finished stages in the order in which they run."""
    names = []
    for number in range(config.rounds):
        names += [f"round-{number}/trees", f"round-{number}/rows"]
        for role in config.pipeline.roles:
            names += [f"round-{number}/{role.name}/sft", f"round-{number}/{role.name}/dpo"]
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


def _warn_of_dropped(stage: str, dropped: int, rows: int) -> None:
    if dropped:
        logger.warning(
            "%s: %d of %d rows are longer than the model's positions and were left out",
            stage,
            dropped,
            rows,
        )
