"""The task in docs/tasks.md, its table of tasks, and the command that it shows."""

import importlib
import json
import re
from pathlib import Path

import pytest

from malt_jax import tasks
from malt_jax.config import TaskConfig
from malt_jax.errors import UserError
from malt_jax.tasks import __main__ as check
from malt_jax.tasks.base import PROMPTS

DOCS = (Path(__file__).parents[2] / "docs" / "tasks.md").read_text(encoding="utf-8")
ROW = {"question": "2 + 3?", "options": ["A)4", "B)5", "C)6", "D)7", "E)8"], "correct": "B"}


def test_the_task_that_is_added_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (code,) = re.findall(r"```python\n(.*?)```", DOCS, re.DOTALL)
    assert code.count("\n") < 40
    (tmp_path / "aqua.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(tasks.TASKS, "aqua", importlib.import_module("aqua").AquaTask)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(ROW) + "\n")

    task = tasks.create(TaskConfig(name="aqua", test=str(rows)))
    (question,) = task.questions("test")
    assert question.text == "2 + 3?\nA)4\nB)5\nC)6\nD)7\nE)8"
    assert task.equal(task.extract("So five.\nFinal Answer: (B)") or "", question.answer)
    assert not task.equal(task.extract("Final Answer: A") or "", question.answer)
    assert task.prompts == PROMPTS / "default"

    rows.write_text(json.dumps({**ROW, "options": "none"}))
    with pytest.raises(UserError, match=r"rows.jsonl:1: field 'options' must be a list of texts"):
        tasks.create(TaskConfig(name="aqua", test=str(rows))).questions("test")


def test_every_task_is_described():
    for name in tasks.TASKS:
        assert f"| `{name}` |" in DOCS


def test_the_check_counts_and_lists_duplicates(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    def write(name: str, *questions: str) -> str:
        rows = ({"question": question, "answer": "#### 1"} for question in questions)
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(tmp_path / name)

    train, test = write("train.jsonl", "a?", "B?", "c?"), write("test.jsonl", "x?", "b?")
    check.main(["task.name=gsm8k", f"task.train={train}", f"task.test={test}"])
    assert capsys.readouterr().out == (
        "gsm8k train: 3 questions (7,473 are published)\n"
        "gsm8k test: 2 questions (1,319 are published)\n"
        "training questions that the test asks too: 1\n"
        "  1 as test question 1\n"
    )
    check.main(["task.name=addition"])
    assert "addition train: 100,000 questions, generated" in capsys.readouterr().out
