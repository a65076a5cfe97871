"""The parts of a run that the page shows, as far as they are there.

A run may be half-finished, or be read on a machine that has neither its model nor its questions. A
part that cannot be read is left out, and a note on the page says why.
"""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from upath import UPath

from malt_jax import tasks
from malt_jax.checkpoints.checkpoint import StoredCheckpoint
from malt_jax.config import Config
from malt_jax.errors import UserError
from malt_jax.evaluation.store import FOLDER
from malt_jax.files import parse_json_object, reached
from malt_jax.malt.prompts import Pipeline
from malt_jax.malt.roles import QUESTION, SLOT, Role, load_roles
from malt_jax.runs.directory import RESULTS_FILE, RunDirectory
from malt_jax.tasks.base import PROMPTS, Question, Split, Task
from malt_jax.viewer.completions import Pieces

OPEN, CLOSE = "\ue000", "\ue001"
"""Around the name of a slot in a prompt. These characters are for private use."""


@dataclasses.dataclass(frozen=True)
class Source:
    """A run, and what is known about its questions, tokens and prompts."""

    path: UPath
    config: Config
    task: Task | None
    questions: Mapping[Split, Sequence[Question]]
    pieces: Pieces
    prompts: Mapping[str, str]
    """The prompt of every role, with its slots between OPEN and CLOSE."""
    results: Mapping[str, Any] | None
    """Of malt_jax.evaluate where it was run, else of the training run; None before its end."""
    finished: bool
    """Whether the training run has come to its end."""
    notes: list[str]
    """Sentences about parts that are missing; readers add to them."""

    @property
    def roles(self) -> list[str]:
        return self.config.pipeline.names

    @property
    def thresholds(self) -> list[float]:
        """Of every role: a node whose value is above it is correct."""
        return [self.config.of_role(role).credit.threshold for role in self.roles]

    @contextlib.contextmanager
    def noted(self) -> Iterator[None]:
        """Ends the block at a UserError, and notes it."""
        try:
            yield
        except UserError as error:
            self.notes.append(str(error))

    def question(self, split: Split, id: int) -> Question:
        """A question by its id; one with a placeholder for its text where it is not there."""
        found = _find(self.questions.get(split, ()), id)
        return found or Question(id, f"(the text of question {id} cannot be loaded)", "")


def open_source(path: UPath) -> Source:
    """Reads the small files of a run, its tokenizer and its questions.

    Raises UserError when there is no run at `path`.
    """
    config, notes = RunDirectory.read(path).config, list[str]()
    task, questions = _task(config, notes)
    pieces, prompts = _prompts(config, task, notes)
    trained = _results(path / RESULTS_FILE, notes)
    evaluated = _results(path / FOLDER / RESULTS_FILE, notes)
    results, finished = evaluated or trained, trained is not None
    return Source(path, config, task, questions, pieces, prompts, results, finished, notes)


def _task(config: Config, notes: list[str]) -> tuple[Task | None, dict[Split, Sequence[Question]]]:
    task, questions = None, dict[Split, Sequence[Question]]()
    try:
        task = tasks.create(config.task)
        splits: tuple[Split, Split] = ("train", "test")
        for split in splits:
            questions[split] = task.questions(split)
    except UserError as error:
        notes.append(f"The questions cannot be loaded: {error}")
    return task, questions


def _prompts(config: Config, task: Task | None, notes: list[str]) -> tuple[Pieces, dict[str, str]]:
    """The tokenizer's pieces, and the prompts by its chat template or else as plain turns."""
    tokenizer, prompts = None, dict[str, str]()
    try:
        directory = PROMPTS / "default" if task is None else task.prompts
        roles = load_roles(config.pipeline.roles, directory)
        prompts = {role.name: _plain(role) for role in roles}
        tokenizer = StoredCheckpoint.of(config.model).tokenizer
        for prompt in Pipeline.of(roles, tokenizer).prompts:
            question, *completions = map(_marked, (QUESTION, *prompt.ancestors))
            prompts[prompt.role.name] = prompt.text(question, completions)
    except UserError as error:
        notes.append(f"Texts are shown without tokens, prompts without chat template: {error}")
    return Pieces(tokenizer), prompts


def _plain(role: Role) -> str:
    """The turns of a role's prompt without a chat template."""
    turns = [("system", role.system)] if role.system else []
    for example in role.examples:
        turns += [("user", example.user), ("assistant", example.assistant)]
    turns.append(("user", SLOT.sub(lambda match: _marked(match[1]), role.user)))
    return "\n\n".join(f"[{speaker}]\n{text}" for speaker, text in turns)


def _marked(slot: str) -> str:
    return f"{OPEN}{slot}{CLOSE}"


def _results(file: UPath, notes: list[str]) -> dict[str, Any] | None:
    with reached(file):
        if not file.exists():
            return None
        try:
            return parse_json_object(file.read_bytes(), str(file))
        except UserError as error:
            notes.append(str(error))
    return None


def _find(questions: Sequence[Question], id: int) -> Question | None:
    """The question with an id; ids ascend, and mostly are places too."""
    if id < len(questions) and questions[id].id == id:
        return questions[id]
    place = bisect.bisect_left(range(len(questions)), id, key=lambda row: questions[row].id)
    found = questions[place] if place < len(questions) else None
    return found if found is not None and found.id == id else None
