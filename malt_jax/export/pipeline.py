"""pipeline.json: the description of an exported pipeline for clients in any language.

docs/export.md lists its fields.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Literal

import pydantic
from pydantic import Field
from pydantic.dataclasses import dataclass

from malt_jax.errors import UserError
from malt_jax.files import parse_json_object
from malt_jax.malt.roles import Role, Turn, require_slots

PIPELINE_FILE = "pipeline.json"
VERSION: Literal[1] = 1

_STRICT = pydantic.ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)
_Name = Annotated[str, Field(pattern="^[a-z][a-z0-9_]*$")]
_Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
_Id = Annotated[int, Field(ge=0, lt=2**31)]


@dataclass(frozen=True, config=_STRICT)
class Base:
    """The model that was trained."""

    id: str
    """Its name on a hub, or its path."""
    weights_sha256: _Hash
    """Of `checkpoints.fingerprint.weights_sha256`."""
    tokenizer_sha256: _Hash
    """Of `checkpoints.tokenizer.Tokenizer.fingerprint`."""


@dataclass(frozen=True, config=_STRICT)
class Sampling:
    """The sampling parameters of the run."""

    temperature: float
    top_p: float
    top_k: int
    """0: all tokens."""
    max_tokens: int


@dataclass(frozen=True, config=_STRICT)
class PromptIds:
    """Token ids of a prompt's fixed text.

    A role's prompt in malt_jax is `before`, the ids of the question, `after["question"]`, the ids
    of the first completion that it shows, without their stop id, and so on: no token spans two of
    these parts.
    """

    before: tuple[_Id, ...]
    after: dict[str, tuple[_Id, ...]]
    """By slot: "question" and the names of earlier roles."""


@dataclass(frozen=True, config=_STRICT)
class ExportedRole:
    """A role with its prompt, as in a prompt file, and its weights."""

    name: _Name
    directory: str | None
    """Directory of its adapter or, after full fine-tuning, of its checkpoint; None: untrained."""
    system: str
    examples: tuple[Turn, ...]
    user: str
    prompt_ids: PromptIds

    @pydantic.field_validator("directory")
    @classmethod
    def _is_inside(cls, value: str | None) -> str | None:
        if value is not None and (not value.strip(".") or Path(value).name != value):
            raise ValueError("must be the name of a directory next to pipeline.json")
        return value


@dataclass(frozen=True, config=_STRICT)
class Score:
    """Accuracy of one system at the end of the run."""

    accuracy: float
    ci95: tuple[float, float]
    questions: int


@dataclass(frozen=True, config=_STRICT)
class StoredFile:
    """Size and checksum of a file."""

    bytes: Annotated[int, Field(ge=0)]
    sha256: _Hash


@dataclass(frozen=True, config=_STRICT)
class PipelineFile:
    """The content of a pipeline.json."""

    format: Literal["malt_jax pipeline"]
    version: Literal[1]
    task: str
    seed: int
    method: Literal["lora", "full"]
    base: Base
    sampling: Sampling
    stop_ids: tuple[_Id, ...]
    """Token ids that end a completion."""
    stop_tokens: tuple[str, ...]
    chat_template_kwargs: dict[str, bool]
    """Arguments of the chat template, as servers call them: whether a model thinks first."""
    roles: Annotated[tuple[ExportedRole, ...], Field(min_length=1)]
    """In the order in which they act."""
    scores: dict[str, Score]
    """By system; empty when the run was not evaluated."""
    files: dict[str, StoredFile]
    """The weights, by path below the directory."""
    versions: dict[str, str]

    def malt_roles(self, branching: tuple[int, ...]) -> tuple[Role, ...]:
        """The roles with their prompts; branching: of each in a tree."""
        return tuple(
            Role(role.name, branches, role.system, role.user, role.examples)
            for role, branches in zip(self.roles, branching, strict=True)
        )


_PIPELINE = pydantic.TypeAdapter(PipelineFile)


def to_json(pipeline: PipelineFile) -> str:
    """The text of a pipeline.json."""
    fields = _PIPELINE.dump_python(pipeline, mode="json")
    return json.dumps(fields, indent=2, ensure_ascii=False) + "\n"


def read_pipeline(file: Path) -> PipelineFile:
    """Reads a pipeline.json, which is not trusted.

    Raises UserError, naming file and field, when it is missing, malformed, of another version, or
    when a prompt lacks a slot.
    """
    try:
        text = file.read_bytes()
    except OSError as error:
        raise UserError(
            f"{file}: cannot be read ({error.strerror}); name a directory that `malt export` made"
        ) from None
    fields = parse_json_object(text, str(file))
    if fields.get("format") != "malt_jax pipeline" or fields.get("version") != VERSION:
        found = f"{fields.get('format')!r:.40} version {fields.get('version')!r:.20}"
        raise UserError(
            f"{file}: expected the format 'malt_jax pipeline' version {VERSION}, got {found};"
            " export the run again with this version of malt_jax"
        )
    try:
        pipeline = _PIPELINE.validate_json(json.dumps(fields))
    except pydantic.ValidationError as error:
        problem = error.errors()[0]
        name = ".".join(map(str, problem["loc"]))
        raise UserError(f"{file}: {name}: {problem['msg']}, got {problem['input']!r:.80}") from None
    names: list[str] = []
    for role in pipeline.malt_roles((1,) * len(pipeline.roles)):
        if role.name in names:
            raise UserError(f"{file}: roles: the role {role.name!r} is there twice")
        require_slots(file, role, names)
        names.append(role.name)
    return pipeline
