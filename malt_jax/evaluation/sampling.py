"""Sampling what systems need, each completion once, whatever the number of systems that use it."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence

import jax
import numpy as np
from jaxtyping import Array, Key

from malt_jax.evaluation.debate import DebatePrompt
from malt_jax.evaluation.store import Samples, Store
from malt_jax.evaluation.systems import BASE, DEBATER, MALT, SILENT, STAR, Chain, System
from malt_jax.experiment import Experiment, Trainables
from malt_jax.malt.tree import decode_texts, expand
from malt_jax.model.llama import Params
from malt_jax.progress import Progress
from malt_jax.sampling.decode import Completions
from malt_jax.tasks.base import Question

Policies = Mapping[str, Trainables]
"""What the roles have learned, by policy (STAR, MALT); a role without an entry is untrained."""

_EVALUATION = 2
"""Folded into the run's key, as 0 is for random weights and 1 for training."""
_DEBATE = 1 << 16
"""Folded into the key of a debate's rounds, to be apart from any role's."""


def seed_key(experiment: Experiment, seed: int) -> Key[Array, ""]:
    """The key of one repetition of the evaluation; no tree of the training uses it."""
    key = jax.random.fold_in(jax.random.key(experiment.config.seed), _EVALUATION)
    return jax.random.fold_in(key, seed)


def resolved(chain: Chain, roles: Sequence[str], policies: Policies) -> Chain:
    """The chain with each policy by its plainest name: MALT is STAR for a role that had no DPO,
    STAR is BASE for one that learned nothing. So equal weights are sampled once."""
    star, malt = policies.get(STAR, {}), policies.get(MALT, {})
    plain = []
    # A debate may have more rounds than the pipeline has roles.
    names = itertools.chain(roles, itertools.repeat(""))
    for policy, role in zip(chain, names, strict=False):
        if policy == MALT and malt.get(role) is star.get(role):
            policy = STAR
        if policy == STAR and star.get(role) is None:
            policy = BASE
        plain.append(policy)
    return tuple(plain)


@dataclasses.dataclass(frozen=True)
class _Draw:
    """Completions to be sampled together: some passes of a chain's last role."""

    chain: Chain
    first: int
    passes: int
    questions: Sequence[Question]

    @property
    def nodes(self) -> list[tuple[int, int]]:
        numbers = range(self.first, self.first + self.passes)
        return [(question.id, number) for question in self.questions for number in numbers]


def sample(
    experiment: Experiment,
    policies: Policies,
    systems: Sequence[System],
    questions: Sequence[Question],
    seeds: int,
    store: Store,
) -> None:
    """Samples into the store whatever the systems need and the store does not have.

    All systems use the same random numbers, and a chain's first roles are sampled once for all
    chains that begin with them, so that differences are due to what was learned. Passes are drawn
    `evaluation.votes` at a time: more of them run the same programs.
    """
    config, roles = experiment.config.evaluation, experiment.pipeline.names
    needed: dict[Chain, int] = {}
    for system in systems:
        chain = resolved(system.chain, roles, policies)
        for depth in range(1, len(chain) + 1):
            needed[chain[:depth]] = max(needed.get(chain[:depth], 0), system.passes)
    size = min(config.questions_per_batch, len(questions))
    for seed in range(seeds):
        draws = [
            draw
            for chain in sorted(needed, key=len)
            if chain[-1] != SILENT
            for draw in _missing(
                chain, needed[chain], config.votes, questions, store.samples(seed, chain), size
            )
        ]
        if not draws:
            continue
        sampler = _Sampler(experiment, policies, store, seed, size)
        total = sum(len(draw.nodes) for draw in draws)
        with Progress(f"evaluation, seed {seed}", total, "completions") as progress:
            done = tokens = 0
            for chain, of_chain in itertools.groupby(draws, lambda draw: draw.chain):
                variables = sampler.variables(chain)
                for draw in of_chain:
                    tokens += sampler.draw(draw, variables)
                    store.processes.stop_if_asked()
                    done += len(draw.nodes)
                    progress.update(done=done, tokens=tokens, policies="-".join(chain))


def _missing(
    chain: Chain,
    needed: int,
    at_once: int,
    questions: Sequence[Question],
    samples: Samples,
    size: int,
) -> list[_Draw]:
    """What the store lacks of a chain, in batches of at most `size` questions."""
    if chain[-1] == DEBATER:
        at_once = needed  # every agent reads all others
    by_count: dict[int, list[Question]] = {}
    for question in questions:
        by_count.setdefault(samples.passes(question.id), []).append(question)
    return [
        _Draw(chain, first, min(at_once, needed - first), behind[start : start + size])
        for count, behind in by_count.items()
        for first in range(count, needed, at_once)
        for start in range(0, len(behind), size)
    ]


class _Sampler:
    """Draws of one seed."""

    def __init__(
        self, experiment: Experiment, policies: Policies, store: Store, seed: int, size: int
    ) -> None:
        self._experiment = experiment
        self._policies = policies
        self._store = store
        self._seed = seed
        self._size = size
        self._debate = DebatePrompt(experiment)

    def variables(self, chain: Chain) -> Params:
        """The weights of a chain's last role."""
        policy = chain[-1]
        if policy in (BASE, DEBATER):
            return self._experiment.variables(None)
        role = self._experiment.pipeline.names[len(chain) - 1]
        return self._experiment.variables(self._policies[policy][role])

    def draw(self, draw: _Draw, variables: Params) -> int:
        """Samples and stores; returns the number of tokens that were sampled."""
        known = [self._known(draw, depth) for depth in range(1, len(draw.chain))]
        began = time.monotonic()
        take = self._debated if draw.chain[-1] == DEBATER else self._answered
        completions, prompt_tokens = take(draw, variables, known)
        seconds = time.monotonic() - began
        texts = decode_texts(completions, self._experiment.checkpoint.tokenizer)
        self._store.add(
            self._seed,
            draw.chain,
            draw.nodes,
            completions,
            texts.reshape(-1).tolist(),
            prompt_tokens,
            seconds,
        )
        return int(completions.lengths.sum())

    def _answered(
        self, draw: _Draw, variables: Params, known: Sequence[Completions]
    ) -> tuple[Completions, list[int]]:
        depth = len(known)
        prompts = self._experiment.prompts[: depth + 1]
        completions = expand(
            self._experiment.sampler,
            prompts,
            [variables],
            draw.questions,
            (draw.passes,) + (1,) * depth,
            seed_key(self._experiment, self._seed),
            batch=self._size,
            known=known,
            first_branch=draw.first,
        )[depth]
        prompt_tokens = [
            len(prompts[depth].flat(question.text, [k.ids(*_node(k, row, p)) for k in known]))
            for row, question in enumerate(draw.questions)
            for p in range(draw.passes)
        ]
        return completions, prompt_tokens

    def _debated(
        self, draw: _Draw, variables: Params, known: Sequence[Completions]
    ) -> tuple[Completions, list[int]]:
        asked = draw.questions
        padded = [*asked, *[asked[-1]] * (self._size - len(asked))]
        levels = self._debate.levels(padded, known[-1])
        key = seed_key(self._experiment, self._seed)
        completions = self._experiment.sampler.sample(
            variables,
            levels,
            (draw.passes, 1),
            np.array([question.id for question in padded]),
            jax.random.fold_in(key, _DEBATE + len(known)),
        ).of_questions(len(asked))
        root, questions, agents = levels
        prompt_tokens = [
            len(root[0]) + len(questions[row // draw.passes]) + len(agents[row])
            for row in range(len(draw.nodes))
        ]
        return completions, prompt_tokens

    def _known(self, draw: _Draw, depth: int) -> Completions:
        """What the role `depth` of a draw's chain, counted from 1, wrote in its passes."""
        chain = draw.chain[:depth]
        shape = (len(draw.questions), draw.passes, *(1,) * (depth - 1))
        if chain[-1] == SILENT:
            ids: list[np.ndarray] = [np.zeros(0, np.int32)] * len(draw.nodes)
        else:
            by_node = self._store.samples(self._seed, chain).by_node
            ids = [by_node[node].ids for node in draw.nodes]
        lengths = np.array([len(row) for row in ids], np.int32)
        tokens = np.zeros((len(ids), int(lengths.max(initial=0))), np.int32)
        for row, known in zip(tokens, ids, strict=True):
            row[: len(known)] = known
        tokens = tokens.reshape(*shape, -1) if tokens.size else np.zeros((*shape, 0), np.int32)
        # Prompts need the ids alone.
        unused = np.zeros(tokens.shape, np.float32)
        return Completions(tokens, unused, lengths.reshape(shape), np.zeros(shape, np.int32))


def _node(completions: Completions, question: int, number: int) -> tuple[int, ...]:
    return (question, number, *(0,) * (completions.lengths.ndim - 2))
