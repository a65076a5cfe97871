"""Roles and the prompt files that define them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

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


def _fields(
    path: Path,
    where: str,
    content: Any,
    *,
    required: Sequence[str],
    optional: Sequence[str] = (),
) -> dict[str, Any]:
    """The fields of a mapping with all of `required`, some of `optional` and no others."""
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
    # The previous role must be shown: its level carries the end of the prompt.
    for slot in (known[0], known[-1]):
        if slot not in slots:
            raise UserError(f"{path}: `user` lacks the slot {{{slot}}}")
