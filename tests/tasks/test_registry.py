"""Tasks by name, and the errors for options that do not fit."""

from pathlib import Path
from typing import Any

import pytest

from malt_jax import tasks
from malt_jax.config import TaskConfig
from malt_jax.errors import UserError
from malt_jax.tasks.base import PROMPTS


@pytest.mark.parametrize("name", tasks.TASKS)
def test_every_task_is_made_by_its_name(name: str):
    if name == "reasoning_gym":
        pytest.importorskip("reasoning_gym")
    task = tasks.create(TaskConfig(name=name))
    assert task.name == name
    for role in ("generator", "verifier", "refiner"):
        assert (task.prompts / f"{role}.yaml").is_file()


def test_tasks_without_prompts_of_their_own_have_the_default_ones():
    assert tasks.create(TaskConfig(name="jsonl")).prompts == PROMPTS / "default"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "gms8k"}, "task.name: unknown task 'gms8k'; did you mean 'gsm8k'?"),
        ({"name": "x"}, "Known tasks: addition, arithmetic, commonsense_qa, gsm8k, gsm_symbolic"),
        ({"name": "gsm8k", "options": {"level": 3}}, "no such option"),
        ({"name": "addition", "options": {"hihg": 3}}, "did you mean 'high'"),
        (
            {"name": "addition", "options": {"high": "9"}},
            "task.options.high: must be a valid integer",
        ),
        ({"name": "addition", "options": {"high": True}}, "must be a valid integer, got True"),
        ({"name": "addition", "options": {"high": 10**400}}, "must be less than or equal to 10000"),
        ({"name": "arithmetic", "options": {"max_steps": 101}}, "less than or equal to 100, got"),
        ({"name": "addition", "options": {"low": 50}}, "0 <= low < high must hold"),
        ({"name": "addition", "options": {"min_addends": 1}}, "2 <= min_addends <= max_addends"),
        ({"name": "addition", "options": {"low": 1, "high": 2}}, "too few problems"),
        ({"name": "addition", "train": "x.jsonl"}, "task.train: the task 'addition' generates"),
        ({"name": "addition", "test": "x.jsonl"}, "task.test: the task 'addition' generates"),
        (
            {"name": "math", "options": {"test_split": "x"}},
            "test_split: must be 'test' or 'math-500'",
        ),
        ({"name": "gsm_symbolic", "options": {"config": "x"}}, "task.options.config"),
        (
            {"name": "jsonl", "options": {"kind": "sentence"}},
            "task.options.kind: must be 'number', 'b",
        ),
        ({"name": "jsonl", "options": {"train": "x"}}, "task.options.train"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, Any], message: str):
    with pytest.raises(UserError) as error:
        tasks.create(TaskConfig(**settings))
    assert message in str(error.value)


def test_duplicates_are_kept_when_the_configuration_says_so(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "1 + 1?", "answer": 2}\n')
    config = TaskConfig(name="jsonl", train=str(path), test=str(path), drop_duplicates=False)
    assert len(tasks.create(config).questions("train")) == 1


def test_paths_and_options_reach_the_task(tmp_path: Path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"q": "1 + 1?", "answer": 2}\n')
    config = TaskConfig(name="jsonl", test=str(path), options={"question_field": "q"})
    (question,) = tasks.create(config).questions("test")
    assert (question.text, question.answer) == ("1 + 1?", "2")
