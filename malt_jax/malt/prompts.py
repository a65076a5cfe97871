"""Prompts as token segments, one for each level of the reasoning tree.

A role's prompt is cut at the slots that the question and earlier roles fill. Sampled ids go into
the next role's prompt unchanged, and a node contributes one segment to all prompts below it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from malt_jax.checkpoints.tokenizer import Tokenizer
from malt_jax.errors import UserError
from malt_jax.malt.roles import QUESTION, SLOT, Role
from malt_jax.sampling.completions import Completions
from malt_jax.sampling.sampler import Segments


class RolePrompt:
    """A role's prompt in token ids, cut into the levels of the reasoning tree.

    The root is the text before the question, which all questions share. It is followed by a segment
    for the question and one for every completion that the role reads, each with the fixed text
    after it. The segments of a path, concatenated, are the prompt; the last one ends with the
    header of the assistant's turn. The segment of a completion that the prompt does not show is
    empty.

    Fixed text is tokenised once, with the control tokens of the chat template. Questions are
    tokenised as plain text, so nothing in them can end a turn; completions keep their sampled ids.
    No token spans two segments. Where slots stand on lines of their own this changes nothing; after
    a space it does ("Question: " and "How" are not "Question:" and " How").
    """

    def __init__(self, role: Role, ancestors: Sequence[str], tokenizer: Tokenizer) -> None:
        """Raises UserError when the chat template does not reproduce the user turn."""
        self.role = role
        self.ancestors = tuple(ancestors)
        self._tokenizer = tokenizer
        self._stop_ids = frozenset(tokenizer.stop_ids)
        literals = self._literals()
        self.root = tuple(tokenizer.encode(literals[None], special=True))
        self._after = {
            slot: tuple(tokenizer.encode(text, special=True))
            for slot, text in literals.items()
            if slot is not None
        }

    @property
    def ids_after(self) -> dict[str, tuple[int, ...]]:
        """The ids of the fixed text after each slot; `root` has those before the first."""
        return dict(self._after)

    @property
    def depth(self) -> int:
        """Number of completions that the prompt depends on."""
        return len(self.ancestors)

    def question_segment(self, question: str) -> tuple[int, ...]:
        """The segment of a question's text."""
        return tuple(self._tokenizer.encode(question)) + self._after[QUESTION]

    def completion_segment(self, depth: int, completion: Sequence[int]) -> tuple[int, ...]:
        """The segment of a completion of role depth-1 (`depth` from 1), without its stop token."""
        name = self.ancestors[depth - 1]
        if name not in self._after:
            return ()
        return self.without_stop(completion) + self._after[name]

    def without_stop(self, completion: Sequence[int]) -> tuple[int, ...]:
        """A completion's ids without the stop token that ended it, if one did."""
        ids = tuple(completion)
        return ids[:-1] if ids and ids[-1] in self._stop_ids else ids

    def segments(
        self, question: str, completions: Sequence[Sequence[int]]
    ) -> tuple[tuple[int, ...], ...]:
        """All segments for a question and the completions of one path, the first role's first."""
        if len(completions) != self.depth:
            raise ValueError(f"{self.role.name} reads {self.depth} completions, not {completions}")
        read = (self.completion_segment(d, ids) for d, ids in enumerate(completions, start=1))
        return (self.root, self.question_segment(question), *read)

    def ids(self, question: str, completions: Sequence[Sequence[int]]) -> tuple[int, ...]:
        """The whole prompt of a question and a path."""
        return tuple(id for segment in self.segments(question, completions) for id in segment)

    def levels(self, questions: Sequence[str], ancestors: Sequence[Completions]) -> list[Segments]:
        """The prompts of whole trees, level by level, as the sampler takes them.

        ancestors: the completions of all earlier roles, the first role's first.
        """
        levels: list[Segments] = [[self.root], [self.question_segment(text) for text in questions]]
        for depth, completions in enumerate(ancestors, start=1):
            levels.append(
                [
                    self.completion_segment(depth, completions.ids(*node))
                    for node in completions.nodes()
                ]
            )
        return levels

    def text(self, question: str, completions: Sequence[str]) -> str:
        """The prompt as people read it, by the chat template alone."""
        values = dict(zip((QUESTION, *self.ancestors), (question, *completions), strict=True))
        return self._render(SLOT.sub(lambda match: values[match[1]], self.role.user))

    def _render(self, user: str) -> str:
        messages = [{"role": "system", "content": self.role.system}] if self.role.system else []
        for turn in self.role.examples:
            messages.append({"role": "user", "content": turn.user})
            messages.append({"role": "assistant", "content": turn.assistant})
        messages.append({"role": "user", "content": user})
        return self._tokenizer.render(messages)

    def _literals(self) -> dict[str | None, str]:
        """The fixed text before the question (under None) and after each slot."""
        slots = [match[1] for match in SLOT.finditer(self.role.user)]
        # Private-use characters: no template trims them, no prompt contains them by accident.
        marks = {slot: f"\ue000{slot}\ue001" for slot in slots}
        rest = self._render(SLOT.sub(lambda match: marks[match[1]], self.role.user))
        literals: dict[str | None, str] = {}
        before: str | None = None
        for slot in slots:
            if rest.count(marks[slot]) != 1:
                raise UserError(
                    f"role {self.role.name!r}: the chat template does not reproduce the user turn"
                    f" once, in order, with its slot {{{slot}}}"
                )
            literals[before], rest = rest.split(marks[slot])
            before = slot
        literals[before] = rest
        return literals


@dataclass(frozen=True)
class Pipeline:
    """Roles in the order in which they act; role d reads the completions of roles 0 .. d-1."""

    prompts: tuple[RolePrompt, ...]
    tokenizer: Tokenizer

    @classmethod
    def of(cls, roles: Sequence[Role], tokenizer: Tokenizer) -> Pipeline:
        """The roles' prompts in a tokenizer's ids.

        Raises UserError when the tokenizer's chat template does not reproduce a user turn.
        """
        names = [role.name for role in roles]
        prompts = [RolePrompt(role, names[:d], tokenizer) for d, role in enumerate(roles)]
        return cls(tuple(prompts), tokenizer)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(prompt.role.name for prompt in self.prompts)

    @property
    def branching(self) -> tuple[int, ...]:
        return tuple(prompt.role.branching for prompt in self.prompts)

    def check_lengths(self, questions: Sequence[str], max_tokens: int, max_positions: int) -> None:
        """Raises UserError when a prompt with its longest completions could exceed the model."""
        for prompt in self.prompts:
            fixed = sum(len(prompt.completion_segment(d + 1, [])) for d in range(prompt.depth))
            for question in questions:
                own = len(prompt.root) + len(prompt.question_segment(question)) + fixed
                needed = own + (prompt.depth + 1) * max_tokens
                if needed > max_positions:
                    raise UserError(
                        f"the question {question[:60]!r}: the {prompt.role.name}'s prompt has {own}"
                        f" tokens of its own; with {prompt.depth + 1} completions of up to"
                        f" sampling.max_tokens={max_tokens} it needs {needed} positions, and the"
                        f" model has {max_positions}. Lower sampling.max_tokens, shorten the"
                        " question, or take a model with a longer context."
                    )
