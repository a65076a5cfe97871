"""Roles, pipelines of roles, and prompts as token segments.

A role is a prompt; its adapter is kept elsewhere. Prompts are cut at the slots that other roles
fill, so that sampled ids go into the next role's prompt as they are and every node of the
reasoning tree contributes one segment to the prompts below it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from malt_jax.checkpoints.tokenizer import Tokenizer
from malt_jax.config import RoleConfig
from malt_jax.errors import UserError

SLOT = re.compile(r"\{([a-z][a-z0-9_]*)\}")
QUESTION = "question"


@dataclass(frozen=True)
class Turn:
    """A worked example: what the role was asked and what it should have written."""

    user: str
    assistant: str


@dataclass(frozen=True)
class Role:
    """One step of the pipeline.

    Attributes:
        name:      names its adapter and its slot in later roles' prompts.
        branching: completions drawn for every prompt while a tree is sampled.
        system:    the system turn; "" for none.
        user:      the user turn, with the slots {question} and {name of an earlier role}.
        examples:  earlier turns of the conversation, shown before the user turn.
    """

    name: str
    branching: int
    system: str
    user: str
    examples: tuple[Turn, ...] = ()


@dataclass(frozen=True)
class Pipeline:
    """Roles in the order in which they act; role d reads the completions of roles 0 .. d-1."""

    roles: tuple[Role, ...]

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(role.name for role in self.roles)

    @property
    def branching(self) -> tuple[int, ...]:
        return tuple(role.branching for role in self.roles)

    def prompts(self, tokenizer: Tokenizer) -> tuple[RolePrompt, ...]:
        """The prompt of every role in a tokenizer's ids.

        Raises UserError when the tokenizer's chat template does not reproduce a user turn.
        """
        return tuple(
            RolePrompt(role, self.names[:depth], tokenizer) for depth, role in enumerate(self.roles)
        )


def load_pipeline(roles: Sequence[RoleConfig], prompts: Path) -> Pipeline:
    """The configured roles, with the task's prompts where the configuration names none.

    prompts: the task's prompt directory, with a file ROLE.yaml for each of its roles.

    Raises UserError when a role is badly named or a prompt file is missing or malformed.
    """
    loaded: list[Role] = []
    for config in roles:
        names = [role.name for role in loaded]
        if not SLOT.fullmatch(f"{{{config.name}}}") or config.name == QUESTION:
            raise UserError(
                f"pipeline.roles: {config.name!r} cannot name a role; use lower-case letters,"
                f" digits and underscores, and not {QUESTION!r}"
            )
        if config.name in names:
            raise UserError(f"pipeline.roles: two roles are named {config.name!r}")
        if config.branching < 1:
            raise UserError(
                f"pipeline.roles: {config.name}.branching must be 1 or more, got {config.branching}"
            )
        path = Path(config.prompt) if config.prompt else prompts / f"{config.name}.yaml"
        loaded.append(load_role(path, config.name, config.branching, ancestors=names))
    if not loaded:
        raise UserError("pipeline.roles: a pipeline needs at least one role")
    return Pipeline(tuple(loaded))


def load_role(path: Path, name: str, branching: int, ancestors: Sequence[str]) -> Role:
    """Reads a prompt file: a YAML mapping with `user`, and optionally `system` and `examples`.

    ancestors: the earlier roles' names, whose slots the user turn may have, in this order.

    Raises UserError, naming the file and the field.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(
            f"{path}: the prompt file of the role {name!r} cannot be read ({error.strerror});"
            " name another one with the role's `prompt` under pipeline.roles"
        ) from error
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not UTF-8 text: {error}") from error
    try:
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(f"{path}: not valid YAML: {error}") from error
    fields = _fields(path, "", content, required=("user",), optional=("system", "examples"))
    examples = fields.pop("examples", [])
    if not isinstance(examples, list):
        raise UserError(f"{path}: `examples` must be a list of user and assistant turns")
    turns = [
        Turn(**_texts(path, where, _fields(path, where, turn, required=("user", "assistant"))))
        for where, turn in ((f"examples[{i}].", turn) for i, turn in enumerate(examples))
    ]
    texts = _texts(path, "", fields)
    role = Role(name, branching, texts.get("system", ""), texts["user"], tuple(turns))
    _check_slots(path, role, ancestors)
    return role


class RolePrompt:
    """A role's prompt in token ids, cut into the levels of the reasoning tree.

    The root is all before the question, the same for all questions. Below it stands a level for the
    question, and one for every completion that the role reads, each with the fixed text behind it.
    The levels of a path, one behind the other, are the prompt; the last one ends with the header of
    the assistant's turn. A level whose role the prompt does not show is empty.

    Fixed text is tokenised once, with the control tokens of the chat template. Questions are
    tokenised as plain text, so that nothing in them can end a turn; completions stay the ids that
    were sampled. Tokens never reach across the joints; where slots stand on lines of their own this
    changes nothing, behind a space it does ("Question: " and "How" are not "Question:" and " How").
    """

    def __init__(self, role: Role, ancestors: Sequence[str], tokenizer: Tokenizer) -> None:
        """Raises UserError when the chat template does not reproduce the user turn."""
        self.role = role
        self.ancestors = tuple(ancestors)
        self._tokenizer = tokenizer
        self._stop_ids = frozenset(tokenizer.stop_ids)
        literals = self._literals()
        self.root = tuple(tokenizer.encode(literals[None], special=True))
        self._behind = {
            slot: tuple(tokenizer.encode(text, special=True))
            for slot, text in literals.items()
            if slot is not None
        }

    @property
    def depth(self) -> int:
        """Number of completions that the prompt depends on."""
        return len(self.ancestors)

    def question_level(self, question: str) -> tuple[int, ...]:
        """The level of a question's text."""
        return tuple(self._tokenizer.encode(question)) + self._behind[QUESTION]

    def completion_level(self, depth: int, completion: Sequence[int]) -> tuple[int, ...]:
        """The level of a completion of role depth-1 (`depth` from 1), without its stop token."""
        name = self.ancestors[depth - 1]
        if name not in self._behind:
            return ()
        return self.without_stop(completion) + self._behind[name]

    def without_stop(self, completion: Sequence[int]) -> tuple[int, ...]:
        """A completion's ids without the stop token that ended it, if one did."""
        ids = tuple(completion)
        return ids[:-1] if ids and ids[-1] in self._stop_ids else ids

    def levels(
        self, question: str, completions: Sequence[Sequence[int]]
    ) -> tuple[tuple[int, ...], ...]:
        """All levels for a question and the completions of one path, first role's first."""
        if len(completions) != self.depth:
            raise ValueError(f"{self.role.name} reads {self.depth} completions, not {completions}")
        behind = (self.completion_level(d, ids) for d, ids in enumerate(completions, start=1))
        return (self.root, self.question_level(question), *behind)

    def flat(self, question: str, completions: Sequence[Sequence[int]]) -> tuple[int, ...]:
        """The whole prompt in one piece."""
        return tuple(token for level in self.levels(question, completions) for token in level)

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
        """The fixed text before the question (under None) and behind each slot."""
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


def _fields(
    path: Path,
    where: str,
    content: Any,
    *,
    required: Sequence[str],
    optional: Sequence[str] = (),
) -> dict[str, Any]:
    """The fields of a mapping that must have all of `required` and none but `optional` besides."""
    known = (*required, *optional)
    if not isinstance(content, dict):
        raise UserError(
            f"{path}: {where.rstrip('.') or 'the file'} must be a mapping with the fields"
            f" {', '.join(known)}"
        )
    for name in content:
        if name not in known:
            raise UserError(
                f"{path}: unknown field `{where}{name}`; the known ones are {', '.join(known)}"
            )
    for name in required:
        if name not in content:
            raise UserError(f"{path}: the field `{where}{name}` is missing")
    return content


def _texts(path: Path, where: str, fields: dict[str, Any]) -> dict[str, str]:
    for name, value in fields.items():
        if not isinstance(value, str):
            raise UserError(f"{path}: `{where}{name}` must be text, got {value!r}; quote it")
    return fields


def _check_slots(path: Path, role: Role, ancestors: Sequence[str]) -> None:
    known = [QUESTION, *ancestors]
    slots = [match[1] for match in SLOT.finditer(role.user)]
    listed = ", ".join(f"{{{slot}}}" for slot in known)
    for slot in slots:
        if slot not in known:
            raise UserError(
                f"{path}: `user` has the slot {{{slot}}}, which the role {role.name!r} does not"
                f" know; its slots are {listed}"
            )
    if slots != [slot for slot in known if slot in slots]:
        raise UserError(f"{path}: `user` must have its slots once each, in the order {listed}")
    # The role right above must be shown: its level carries the end of the prompt.
    for slot in (known[0], known[-1]):
        if slot not in slots:
            raise UserError(f"{path}: `user` lacks the slot {{{slot}}}")
