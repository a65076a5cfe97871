"""The debate baseline: agents answer, read each other's answers, and answer again.

After arXiv 2305.14325, with which the MALT paper compares itself. The first round is the single
model's; in later ones every agent reads its own last answer and those of all others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from malt_jax.errors import UserError
from malt_jax.evaluation.systems import AGENTS
from malt_jax.experiment import Experiment
from malt_jax.malt.roles import RolePrompt, load_role
from malt_jax.sampling.decode import Completions
from malt_jax.sampling.sampler import Segments
from malt_jax.tasks.base import PROMPTS, Question

_FILE = "debater.yaml"
_SLOTS = ("answer", "others")


class DebatePrompt:
    """What an agent reads in every round but the first."""

    def __init__(self, experiment: Experiment) -> None:
        """Raises UserError when the prompt file is malformed."""
        own = experiment.task.prompts / _FILE
        path = own if own.is_file() else PROMPTS / "default" / _FILE
        tokenizer = experiment.checkpoint.tokenizer
        role = load_role(path, "debater", branching=1, ancestors=_SLOTS)
        self._prompt = RolePrompt(role, _SLOTS, tokenizer)
        self._between = tuple(tokenizer.encode("\n\n"))

    def levels(self, questions: Sequence[Question], last: Completions) -> list[Segments]:
        """The prompts as the sampler takes them: the root, the questions, and a segment for each
        agent with its own answer and those of the others, in the order of their numbers.

        last: the agents' last answers, [Q, agents, ...]; rows that are missing at the end are those
            of padding, for which the last row will do.
        """
        agents = []
        for row in range(len(questions)):
            source = min(row, len(last.lengths) - 1)
            inner = (0,) * (last.lengths.ndim - 2)
            answers = [last.ids(source, agent, *inner) for agent in range(last.lengths.shape[1])]
            agents += [self._segment(answers, agent) for agent in range(len(answers))]
        asked = [self._prompt.question_level(question.text) for question in questions]
        return [[self._prompt.root], asked, agents]

    def _segment(self, answers: Sequence[Sequence[int]], agent: int) -> tuple[int, ...]:
        others: tuple[int, ...] = ()
        for other, answer in enumerate(answers):
            if other != agent:
                others += (self._between if others else ()) + self._prompt.without_stop(answer)
        return self._prompt.completion_level(1, answers[agent]) + self._prompt.completion_level(
            2, others
        )

    def check_lengths(self, questions: Sequence[Question], limit: int, max_tokens: int) -> None:
        """Raises UserError if a prompt with its longest answers could exceed `limit` positions."""
        longest = np.zeros((1, AGENTS), np.int32)
        empty = Completions(np.zeros((1, AGENTS, 0)), np.zeros((1, AGENTS, 0)), longest, longest)
        for question in questions:
            levels = self.levels([question], empty)
            fixed = sum(max(map(len, segments)) for segments in levels)
            needed = fixed + (AGENTS + 1) * max_tokens
            if needed > limit:
                raise UserError(
                    f"question {question.id}: the debate's prompt with {AGENTS + 1} answers of up"
                    f" to sampling.max_tokens={max_tokens} needs {needed} positions, and the model"
                    f" has {limit}. Leave the debate out with --systems, or lower"
                    " sampling.max_tokens."
                )
