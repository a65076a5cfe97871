"""The data sets, by the names that the configuration knows them under."""

from __future__ import annotations

import difflib
import importlib
import inspect
import typing
from typing import Any

from malt_jax.config import TaskConfig
from malt_jax.errors import UserError
from malt_jax.tasks.base import Question, Split, Task
from malt_jax.tasks.rows import Data

__all__ = ["TASKS", "Data", "Question", "Split", "Task", "create"]

TASKS = {
    "addition": "malt_jax.tasks.addition:AdditionTask",
    "arithmetic": "malt_jax.tasks.arithmetic:ArithmeticTask",
    "commonsense_qa": "malt_jax.tasks.commonsense_qa:CommonsenseQaTask",
    "gsm8k": "malt_jax.tasks.gsm8k:Gsm8kTask",
    "gsm_symbolic": "malt_jax.tasks.gsm_symbolic:GsmSymbolicTask",
    "jsonl": "malt_jax.tasks.jsonl:JsonlTask",
    "math": "malt_jax.tasks.math:MathTask",
    "reasoning_gym": "malt_jax.tasks.reasoning_gym:ReasoningGymTask",
    "svamp": "malt_jax.tasks.svamp:SvampTask",
}
"""Where the class of each task is; a task's module is imported when the task is used."""


def create(config: TaskConfig) -> Task:
    """The task that a configuration describes.

    The class's parameters are the task's options, but for `data`, the other fields of `task`: a
    class without it generates its questions.

    Raises UserError for an unknown task, an option that the task does not have, or one of the
    wrong type.
    """
    if config.name not in TASKS:
        close = difflib.get_close_matches(config.name, TASKS, n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        raise UserError(
            f"task.name: unknown task {config.name!r}{hint} Known tasks: {', '.join(TASKS)}"
        )
    module, _, name = TASKS[config.name].partition(":")
    task: type[Task] = getattr(importlib.import_module(module), name)
    types = typing.get_type_hints(task.__init__)
    known = list(inspect.signature(task).parameters)
    options: dict[str, Any] = {}
    if "data" in known:
        known.remove("data")
        options["data"] = Data(
            config.train, config.test, config.array_records, config.drop_duplicates
        )
    else:
        for field in ("train", "test", "array_records"):
            if getattr(config, field) is not None:
                raise UserError(
                    f"task.{field}: the task {config.name!r} generates its questions and reads no"
                    f" file; leave task.{field} out"
                )
    for option, value in config.options.items():
        if option not in known:
            close = difflib.get_close_matches(str(option), known, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            listed = ", ".join(known) or "none"
            raise UserError(
                f"task.options.{option}: the task {config.name!r} has no such option{hint}"
                f" Its options: {listed}"
            )
        if not _has_type(value, types[option]):
            wanted = getattr(types[option], "__name__", str(types[option]))
            raise UserError(f"task.options.{option}: expected {wanted}, got {value!r}")
        options[option] = value
    return task(**options)


def _has_type(value: object, annotation: Any) -> bool:
    """Whether a value fits an annotation made of plain classes, Literal and |."""
    if typing.get_origin(annotation) is typing.Literal:
        return value in typing.get_args(annotation)
    if alternatives := typing.get_args(annotation):
        return any(_has_type(value, alternative) for alternative in alternatives)
    if isinstance(value, bool):
        return annotation is bool
    return isinstance(value, (int, float) if annotation is float else annotation)
