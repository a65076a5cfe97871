"""Tasks by name: the data sets that `task.name` picks."""

from __future__ import annotations

import difflib
import typing
from collections.abc import Collection
from typing import Any

from pydantic import TypeAdapter, ValidationError

from malt_jax.config import TaskConfig
from malt_jax.errors import UserError
from malt_jax.tasks import data_sets
from malt_jax.tasks.arithmetic import AdditionTask, ArithmeticTask
from malt_jax.tasks.base import Question, Split, Task
from malt_jax.tasks.reasoning_gym import ReasoningGymTask
from malt_jax.tasks.riddles import RiddlesTask
from malt_jax.tasks.rows import RowsTask

__all__ = ["TASKS", "Question", "Split", "Task", "create"]

TASKS: dict[str, type[Task]] = {
    "addition": AdditionTask,
    "arithmetic": ArithmeticTask,
    "commonsense_qa": data_sets.CommonsenseQaTask,
    "gsm8k": data_sets.Gsm8kTask,
    "gsm_symbolic": data_sets.GsmSymbolicTask,
    "jsonl": data_sets.JsonlTask,
    "math": data_sets.MathTask,
    "reasoning_gym": ReasoningGymTask,
    "riddles": RiddlesTask,
    "svamp": data_sets.SvampTask,
}


def create(config: TaskConfig) -> Task:
    """The task that a configuration describes.

    The parameters of the task's class, without `config`, are its options.

    Raises UserError for an unknown task, an unknown option, and a value of the wrong type.
    """
    _require(config.name, TASKS, f"task.name: unknown task {config.name!r}", "Known tasks")
    task: Any = TASKS[config.name]
    types = typing.get_type_hints(task.__init__, include_extras=True)
    known = [name for name in types if name not in ("config", "return")]
    for option, value in config.options.items():
        problem = f"task.options.{option}: the task {config.name!r} has no such option"
        _require(str(option), known, problem, "Its options")
        try:
            TypeAdapter(types[option]).validate_python(value, strict=True)
        except ValidationError as error:
            message = error.errors()[0]["msg"].replace("Input should", "must")
            raise UserError(f"task.options.{option}: {message}, got {value!r:.80}") from error
    if issubclass(task, RowsTask):
        return task(config, **config.options)
    for field in ("train", "test"):
        if getattr(config, field) is not None:
            raise UserError(
                f"task.{field}: the task {config.name!r} generates its questions and reads no"
                f" file; leave task.{field} out"
            )
    return task(**config.options)


def _require(name: str, known: Collection[str], problem: str, title: str) -> None:
    """Raises UserError, with the closest known name and all of them, unless a name is known."""
    if name not in known:
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" did you mean {close[0]!r}?" if close else ""
        raise UserError(f"{problem};{hint} {title}: {', '.join(known) or 'none'}")
