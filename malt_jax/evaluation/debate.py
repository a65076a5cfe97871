"""The debate baseline: agents answer, read each other's answers, and answer again.

After arXiv 2305.14325, a baseline of the MALT paper. The first round is the single
model's; in later ones every agent reads its own last answer and those of all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from malt_jax.checkpoints.tokenizer import Tokenizer
from malt_jax.errors import UserError
from malt_jax.evaluation.systems import AGENTS
from malt_jax.malt.prompts import RolePrompt
from malt_jax.malt.roles import load_role
from malt_jax.sampling.completions import Completions
from malt_jax.sampling.sampler import Segments
from malt_jax.tasks.base import PROMPTS

_FILE = "debater.yaml"
_SLOTS = ("answer", "others")


class DebatePrompt:
    """An agent's prompt in every round but the first."""

    def __init__(self, prompts: Path, tokenizer: Tokenizer) -> None:
        """Takes debater.yaml from the task's prompts, or else the default one.

        Raises UserError when the prompt file is malformed.
        """
        own = prompts / _FILE
        path = own if own.is_file() else PROMPTS / "default" / _FILE
        role = load_role(path, "debater", branching=1, ancestors=_SLOTS)
        self._prompt = RolePrompt(role, _SLOTS, tokenizer)
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
        return self._prompt.completion_segment(1, answers[agent]) + self._prompt.completion_segment(
            2, others
        )

    def check_lengths(self, questions: Sequence[str], max_tokens: int, max_positions: int) -> None:
        """Raises UserError when a prompt with its longest answers could exceed the model."""
        longest = np.zeros((1, AGENTS), np.int32)
        empty = Completions(np.zeros((1, AGENTS, 0)), np.zeros((1, AGENTS, 0)), longest, longest)
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
