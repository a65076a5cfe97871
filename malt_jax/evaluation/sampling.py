"""Sampling the completions that systems need, each one once for all systems that use it."""

from __future__ import annotations

import dataclasses
import itertools
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Array, Key

from malt_jax.checkpoints.tokenizer import Tokenizer
from malt_jax.config import Config
from malt_jax.distributed.processes import is_coordinator, stop_requested
from malt_jax.errors import Stopped, UserError
from malt_jax.evaluation.store import Samples, Store
from malt_jax.evaluation.systems import (
    AGENTS,
    BASE,
    DEBATER,
    MALT,
    SILENT,
    STAR,
    Chain,
    System,
)
from malt_jax.malt.experiment import Experiment
from malt_jax.malt.prompts import Pipeline, RolePrompt
from malt_jax.malt.roles import load_role
from malt_jax.malt.tree import decode_texts, node_request
from malt_jax.model.llama import Params
from malt_jax.progress import Progress
from malt_jax.sampling.completions import Completions
from malt_jax.sampling.sampler import Request, Sampler, Segments
from malt_jax.tasks.base import PROMPTS, Question
from malt_jax.training.policy import SamplingWeights

Policies = Mapping[str, Mapping[str, Params]]
"""Trained weights by policy (STAR, MALT) and role; a role without an entry is untrained."""

_EVALUATION = 2
"""Folded into the run's key, as 0 is for random weights and 1 for training."""
_DEBATE = 1 << 16
"""Folded into the key of a debate's rounds, to be apart from any role's."""


def evaluation_key(seed: int) -> Key[Array, ""]:
    """The key of a run's evaluation; no tree of the training uses it."""
    return jax.random.fold_in(jax.random.key(seed), _EVALUATION)


@dataclasses.dataclass(frozen=True)
class Team:
    """The roles that answer, and their weights under every policy.

    sampler: its `batch` is the number of questions answered at once.
    key:     of `evaluation_key`; repetition s of the evaluation folds s into it.
    votes:   passes that are drawn at once.
    """

    pipeline: Pipeline
    sampler: Sampler
    weights: SamplingWeights
    policies: Policies
    debate: DebatePrompt
    key: Key[Array, ""]
    votes: int

    @classmethod
    def of(
        cls, experiment: Experiment, config: Config, weights: SamplingWeights, policies: Policies
    ) -> Team:
        """The roles of a run. Raises UserError when the debate's prompt file is malformed."""
        pipeline = experiment.pipeline
        return cls(
            pipeline,
            dataclasses.replace(experiment.sampler, batch=config.evaluation.questions_per_batch),
            weights,
            policies,
            DebatePrompt(experiment.task.prompts, pipeline.tokenizer),
            evaluation_key(config.seed),
            config.evaluation.votes,
        )


def resolved(chain: Chain, roles: Sequence[str], policies: Policies) -> Chain:
    """The chain with one name for equal weights, so that these are sampled once.

    MALT becomes STAR for a role without DPO, STAR becomes BASE for an untrained role.
    """
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


def needed_passes(
    systems: Sequence[System], roles: Sequence[str], policies: Policies
) -> dict[Chain, int]:
    """The passes of every chain that the systems need, and of the beginnings of these chains."""
    needed: dict[Chain, int] = {}
    for system in systems:
        chain = resolved(system.chain, roles, policies)
        for depth in range(1, len(chain) + 1):
            needed[chain[:depth]] = max(needed.get(chain[:depth], 0), system.passes)
    return {chain: passes for chain, passes in needed.items() if chain[-1] != SILENT}


def sample(
    team: Team, systems: Sequence[System], questions: Sequence[Question], seeds: int, store: Store
) -> None:
    """Samples into the store the completions that the systems need and the store lacks.

    All systems use the same random numbers, and a chain's first roles are sampled once for all
    chains that begin with them, so differences come from training alone. Passes are drawn
    `team.votes` at a time: more of them run the same programs.
    """
    needed = needed_passes(systems, team.pipeline.names, team.policies)
    size = min(team.sampler.batch, len(questions))
    team = dataclasses.replace(team, sampler=dataclasses.replace(team.sampler, batch=size))
    for seed in range(seeds):
        draws = [
            draw
            for chain in sorted(needed, key=len)
            for draw in _missing(
                chain, needed[chain], team.votes, questions, store.samples(seed, chain), size
            )
        ]
        if not draws:
            continue
        answers = _Answers(team, store, seed)
        total = sum(len(draw.nodes) for draw in draws)
        title, quiet = f"evaluation, seed {seed}", not is_coordinator()
        with Progress(title, total, "completions", quiet=quiet) as progress:
            done = tokens = 0
            for chain, of_chain in itertools.groupby(draws, lambda draw: draw.chain):
                variables = answers.variables(chain)
                for draw in of_chain:
                    tokens += answers.draw(draw, variables)
                    if stop_requested():
                        raise Stopped
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
    """The completions of a chain that the store lacks, in batches of at most `size` questions."""
    if chain[-1] == DEBATER:
        at_once = needed  # every agent reads all others
    by_count: dict[int, list[Question]] = {}
    for question in questions:
        by_count.setdefault(samples.passes(question.id), []).append(question)
    return [
        _Draw(chain, first, min(at_once, needed - first), asked[start : start + size])
        for count, asked in by_count.items()
        for first in range(count, needed, at_once)
        for start in range(0, len(asked), size)
    ]


class DebatePrompt:
    """An agent's prompt in the debate baseline, in every round but the first.

    After arXiv 2305.14325, a baseline of the MALT paper: agents answer, read each other's answers,
    and answer again. The first round is the single model's; in later ones every agent reads its own
    last answer and those of all others.
    """

    def __init__(self, prompts: Path, tokenizer: Tokenizer) -> None:
        """Takes debater.yaml from the task's prompts, or else the default one.

        Raises UserError when the prompt file is malformed.
        """
        own, slots = prompts / "debater.yaml", ("answer", "others")
        path = own if own.is_file() else PROMPTS / "default" / own.name
        role = load_role(path, DEBATER, branching=1, ancestors=slots)
        self._prompt = RolePrompt(role, slots, tokenizer)
        self._between = tuple(tokenizer.encode("\n\n"))

    def levels(self, questions: Sequence[str], last: Completions) -> list[Segments]:
        """The prompts as the sampler takes them: the root, the questions, and a segment for each
        agent with its own answer and those of the others, in the order of their numbers.

        last: the agents' last answers, [Q, agents, ...].
        """
        agents: list[Sequence[int]] = []
        for question in range(len(questions)):
            inner = (0,) * (last.lengths.ndim - 2)
            answers = [last.ids(question, n, *inner) for n in range(last.lengths.shape[1])]
            agents += [self._segment(answers, agent) for agent in range(len(answers))]
        asked = [self._prompt.question_segment(question) for question in questions]
        return [[self._prompt.root], asked, agents]

    def _segment(self, answers: Sequence[Sequence[int]], agent: int) -> tuple[int, ...]:
        others: tuple[int, ...] = ()
        for other, answer in enumerate(answers):
            if other != agent:
                others += (self._between if others else ()) + self._prompt.without_stop(answer)
        own = self._prompt.completion_segment(1, answers[agent])
        return own + self._prompt.completion_segment(2, others)

    def check_lengths(self, questions: Sequence[str], max_tokens: int, max_positions: int) -> None:
        """Raises UserError when a prompt with its longest answers could exceed the model."""
        empty = Completions.of_rows([[]] * AGENTS, (1, AGENTS))
        for question in questions:
            levels = self.levels([question], empty)
            fixed = sum(max(map(len, segments)) for segments in levels)
            needed = fixed + (AGENTS + 1) * max_tokens
            if needed > max_positions:
                raise UserError(
                    f"the question {question[:60]!r}: the debate's prompt with {AGENTS + 1} answers"
                    f" of up to sampling.max_tokens={max_tokens} needs {needed} positions, and the"
                    f" model has {max_positions}. Leave the debate out with --systems, or lower"
                    " sampling.max_tokens."
                )


class _Answers:
    """Draws of one seed."""

    def __init__(self, team: Team, store: Store, seed: int) -> None:
        self._team = team
        self._store = store
        self._seed = seed
        self._key = jax.random.fold_in(team.key, seed)

    def variables(self, chain: Chain) -> Params:
        """The weights of a chain's last role."""
        policy = chain[-1]
        if policy in (BASE, DEBATER):
            return self._team.weights.of(None)
        role = self._team.pipeline.names[len(chain) - 1]
        return self._team.weights.of(self._team.policies[policy][role])

    def draw(self, draw: _Draw, variables: Params) -> int:
        """Samples and stores; returns the number of tokens that were sampled."""
        ancestors = [self._stored(draw, depth) for depth in range(1, len(draw.chain))]
        began = time.monotonic()
        make = self._debate if draw.chain[-1] == DEBATER else self._answer
        request = make(draw, ancestors)
        completions = self._team.sampler.sample(variables, request)
        seconds = time.monotonic() - began
        self._store.add(
            self._seed,
            draw.chain,
            draw.nodes,
            completions,
            decode_texts(completions, self._team.pipeline.tokenizer),
            _prompt_tokens(request.levels, len(draw.nodes)),
            seconds,
        )
        return int(completions.lengths.sum())

    def _answer(self, draw: _Draw, ancestors: Sequence[Completions]) -> Request:
        prompt = self._team.pipeline.prompts[len(ancestors)]
        branching = (draw.passes, *(1 for _ in ancestors))
        return node_request(prompt, draw.questions, ancestors, branching, self._key, draw.first)

    def _debate(self, draw: _Draw, ancestors: Sequence[Completions]) -> Request:
        texts = [question.text for question in draw.questions]
        return Request(
            self._team.debate.levels(texts, ancestors[-1]),
            (draw.passes, 1),
            np.array([question.id for question in draw.questions]),
            jax.random.fold_in(self._key, _DEBATE + len(ancestors)),
        )

    def _stored(self, draw: _Draw, depth: int) -> Completions:
        """The stored completions of role `depth`, from 1, of a draw's chain."""
        chain = draw.chain[:depth]
        shape = (len(draw.questions), draw.passes, *(1,) * (depth - 1))
        if chain[-1] == SILENT:
            ids: list[np.ndarray] = [np.zeros(0, np.int32)] * len(draw.nodes)
        else:
            by_node = self._store.samples(self._seed, chain).by_node
            ids = [by_node[node].ids for node in draw.nodes]
        return Completions.of_rows(ids, shape)


def _prompt_tokens(levels: Sequence[Segments], completions: int) -> list[int]:
    """Tokens of the prompt of every completion, in row-major order."""
    totals = np.zeros(completions, np.int64)
    for segments in levels:
        totals += np.repeat([len(ids) for ids in segments], completions // len(segments))
    return totals.tolist()
