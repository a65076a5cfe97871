"""The systems to compare: single roles and pipelines, untrained, after SFT and after MALT."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Array, Float, Key

from malt_jax.experiment import Experiment, Trainables
from malt_jax.llama.model import Params
from malt_jax.sampling.decode import Completions, DecodeState
from malt_jax.statistics import majority_vote
from malt_jax.tasks.base import Question, Task
from malt_jax.tree import Tree, expand, graded

BASE, STAR, MALT = "base", "star", "malt"
POLICIES = (BASE, STAR, MALT)
"""Untrained; every role after SFT; the roles that learn from pairs after DPO as well."""

PAIRED_WITH = "malt+mv"
"""The system that all others are compared with question by question."""


@dataclasses.dataclass(frozen=True)
class System:
    """A way to answer a question: which policies, how many of the roles, with a vote or without."""

    policies: str
    whole_pipeline: bool
    voted: bool


SYSTEMS: Mapping[str, System] = {
    "sa": System(BASE, False, False),
    "sa+mv": System(BASE, False, True),
    "ma": System(BASE, True, False),
    "ma+mv": System(BASE, True, True),
    "star-sa": System(STAR, False, False),
    "star-sa+mv": System(STAR, False, True),
    "star-ma": System(STAR, True, False),
    "star-ma+mv": System(STAR, True, True),
    "malt": System(MALT, True, False),
    "malt+mv": System(MALT, True, True),
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """How one system did on every question."""

    correct: Float[np.ndarray, "seeds Q"]
    """1 or 0; without a vote the share of the passes that were right."""
    calls: float
    """Completions sampled per question."""
    tokens: float
    """Tokens sampled per question."""


def answer(
    experiment: Experiment,
    trainables: Mapping[str, Trainables],
    questions: Sequence[Question],
    key: Key[Array, ""],
    *,
    on_chunk: Callable[[DecodeState], None] | None = None,
) -> dict[str, Tree]:
    """The independent passes of every policy in `trainables`: a tree that only forks at its root.

    Policies whose first roles have the same weights share those roles' samples, and all use the
    same random numbers, so that their differences are due to what they learned.
    """
    config = experiment.config
    branching = (config.evaluation.votes,) + (1,) * (len(experiment.prompts) - 1)
    names = experiment.pipeline.names
    sampled: dict[str, tuple[Completions, ...]] = {}
    trees = {}
    for policy, learned in trainables.items():
        weights = [learned.get(name) for name in names]
        known: tuple[Completions, ...] = ()
        for earlier, completions in sampled.items():
            shared = _common_prefix(weights, [trainables[earlier].get(name) for name in names])
            known = max(known, completions[:shared], key=len)
        sampled[policy] = expand(
            experiment.sampler,
            experiment.prompts,
            [experiment.variables(w) for w in weights[len(known) :]],
            questions,
            branching,
            key,
            batch=config.evaluation.questions_per_batch,
            known=known,
            on_chunk=on_chunk,
        )
        tokenizer = experiment.checkpoint.tokenizer
        trees[policy] = graded(experiment.task, questions, names, sampled[policy], tokenizer)
    return trees


def _common_prefix(ours: Sequence[Params | None], theirs: Sequence[Params | None]) -> int:
    """Number of first roles whose weights are the same objects."""
    different = [mine is not other for mine, other in zip(ours, theirs, strict=True)]
    return different.index(True) if any(different) else len(different)


def outcomes(task: Task, seeds: Sequence[Sequence[Mapping[str, Tree]]]) -> dict[str, Outcome]:
    """Judges every system on the trees of `answer`: for each seed, for each batch of questions."""
    per_seed = [
        {
            name: _concatenate([_judge(task, system, batch[system.policies]) for batch in batches])
            for name, system in SYSTEMS.items()
        }
        for batches in seeds
    ]
    return {
        name: Outcome(
            correct=np.concatenate([seed[name].correct for seed in per_seed]),
            calls=float(np.mean([seed[name].calls for seed in per_seed])),
            tokens=float(np.mean([seed[name].tokens for seed in per_seed])),
        )
        for name in SYSTEMS
    }


def _judge(task: Task, system: System, tree: Tree) -> Outcome:
    depth = len(tree.roles) if system.whole_pipeline else 1
    texts = tree.texts[depth - 1]
    questions, passes = texts.shape[:2]
    answers = [[task.extract(text) for text in row] for row in texts.reshape(questions, passes)]
    right = np.zeros(questions)
    for row, (question, given) in enumerate(zip(tree.questions, answers, strict=True)):
        chosen = [majority_vote(given, task.equal)] if system.voted else given
        right[row] = np.mean([a is not None and task.equal(a, question.answer) for a in chosen])
    used = passes if system.voted else 1
    lengths = sum(level.lengths.sum() for level in tree.completions[:depth])
    return Outcome(right[None], calls=used * depth, tokens=lengths / (questions * passes) * used)


def _concatenate(batches: Sequence[Outcome]) -> Outcome:
    sizes = [batch.correct.shape[1] for batch in batches]
    return Outcome(
        correct=np.concatenate([batch.correct for batch in batches], axis=1),
        calls=batches[0].calls,
        tokens=float(np.average([batch.tokens for batch in batches], weights=sizes)),
    )


def seed_key(experiment: Experiment, seed: int) -> Key[Array, ""]:
    """The key of one repetition of the evaluation; no tree of the training uses it."""
    key = jax.random.fold_in(jax.random.key(experiment.config.seed), _EVALUATION)
    return jax.random.fold_in(key, seed)


_EVALUATION = 2
"""Folded into the run's key, as 0 is for random weights and 1 for training."""
