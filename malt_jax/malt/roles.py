"""Roles and the prompt files that define them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pydantic
from pydantic.dataclasses import dataclass as pydantic_dataclass
from upath import UPath

from malt_jax.config import RoleConfig
from malt_jax.errors import UserError
from malt_jax.strict_yaml import read_yaml

SLOT = re.compile(r"\{([a-z][a-z0-9_]*)\}")
QUESTION = "question"


@pydantic_dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid"))
class Turn:
    """A worked example: a user turn and the reply to it."""

    user: str
    assistant: str


@pydantic_dataclass(frozen=True, config=pydantic.ConfigDict(extra="forbid"))
class PromptFile:
    """The fields of a prompt file."""

    user: str
    system: str = ""
    examples: tuple[Turn, ...] = ()


_FILE = pydantic.TypeAdapter(PromptFile)


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


def load_roles(configs: Sequence[RoleConfig], prompts: Path) -> tuple[Role, ...]:
    """The configured roles in the order in which they act.

    prompts: the task's prompt directory, with a file ROLE.yaml for each of its roles; a role takes
        its prompt from there unless its configuration names another file.

    Raises UserError when a role is named "question" or a prompt file is missing or malformed.
    """
    loaded: list[Role] = []
    for config in configs:
        names = [role.name for role in loaded]
        if config.name == QUESTION:
            raise UserError(f"pipeline.roles: {QUESTION!r} cannot name a role")
        path = Path(config.prompt) if config.prompt else prompts / f"{config.name}.yaml"
        loaded.append(load_role(path, config.name, config.branching, ancestors=names))
    return tuple(loaded)


def load_role(path: Path, name: str, branching: int, ancestors: Sequence[str]) -> Role:
    """Reads a prompt file: a YAML mapping with `user`, and optionally `system` and `examples`.

    ancestors: the earlier roles' names, whose slots the user turn may have, in this order.

    Raises UserError, naming the file and the field.
    """
    try:
        content = read_yaml(UPath(path))
    except UserError as error:
        raise UserError(
            f"the prompt of the role {name!r}: {error}; `prompt` under pipeline.roles names"
            " another file"
        ) from None
    try:
        file = _FILE.validate_python(content)
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        field = ".".join(map(str, problem["loc"])) or "the file"
        raise UserError(
            f"{path}: {field}: {problem['msg']}, got {problem['input']!r:.100}; a prompt has the"
            " texts `user` and `system`, and `examples`, a list with the texts `user` and"
            " `assistant` each"
        ) from None
    role = Role(name, branching, file.system, file.user, file.examples)
    require_slots(path, role, ancestors)
    return role


def require_slots(path: Path, role: Role, ancestors: Sequence[str]) -> None:
    """Raises UserError, which names `path`, unless a role's user turn has the slots it needs.

    ancestors: the earlier roles' names.
    """
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
    # The previous role must be shown: its level carries the end of the prompt.
    for slot in (known[0], known[-1]):
        if slot not in slots:
            raise UserError(f"{path}: `user` lacks the slot {{{slot}}}")
