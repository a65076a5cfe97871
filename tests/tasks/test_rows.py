"""Tasks of rows: questions from good rows, errors for bad ones, duplicates."""

import json
from pathlib import Path
from typing import Any

import pytest

from malt_jax.config import TaskConfig
from malt_jax.errors import UserError
from malt_jax.tasks.base import Question
from malt_jax.tasks.data_sets import (
    CommonsenseQaTask,
    Gsm8kTask,
    GsmSymbolicTask,
    JsonlTask,
    MathTask,
    SvampTask,
)
from malt_jax.tasks.rows import RowsTask, duplicates, normalized

GSM8K = {"question": "1 + 2?", "answer": "1 + 2 = <<1+2=3>>3\n#### 3"}
MATH = {
    "problem": "Half?",
    "level": "Level 1",
    "type": "Algebra",
    "solution": "$\\boxed{\\frac12}$",
}
CHOICES = {"label": list("ABCDE"), "text": ["bank", "shop", "mall", "sea", "sky"]}
CSQA = {"question": "Where is money?", "question_concept": "money", "choices": CHOICES}
CSQA["answerKey"] = "A"


def write(path: Path, *rows: dict[str, Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def only(task_type: type[RowsTask], path: Path, row: dict[str, Any]) -> Question:
    (question,) = task_type(TaskConfig(test=write(path, row))).questions("test")
    return question


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "rows.jsonl"


@pytest.mark.parametrize(
    ("end", "answer"), [("3", "3"), ("1,450", "1450"), ("-5", "-5"), (" 0.5", "0.5"), ("$7", "7")]
)
def test_gsm8k_answers(path: Path, end: str, answer: str):
    question = only(Gsm8kTask, path, {**GSM8K, "answer": f"So\n#### {end}"})
    assert question.answer == answer
    assert Gsm8kTask().extract(f"Final Answer: {end}") == answer
    assert question.metadata["solution"] == "So"


@pytest.mark.parametrize(
    ("solution", "answer"),
    [
        (r"$\boxed{\frac12}$", "0.5"),
        (r"$\boxed 2$", "2"),
        (r"$\boxed{1}$, rather $\boxed{x^{2}}$", "x^2"),
        (r"$\boxed{\text{(A)}}$", "(A)"),
        # Two training rows of the data set are so; no reply is right for them.
        (r"$\boxed{}$", ""),
    ],
)
def test_math_answers(path: Path, solution: str, answer: str):
    question = only(MathTask, path, {**MATH, "solution": solution})
    assert not answer or MathTask().equal(question.answer, answer)
    assert question.metadata["level"] == "Level 1"
    assert question.metadata["subject"] == "Algebra"
    assert not MathTask().equal("7", question.answer)


def test_commonsense_qa_shows_its_choices(path: Path):
    question = only(CommonsenseQaTask, path, CSQA)
    assert question.text == "Where is money?\nA. bank\nB. shop\nC. mall\nD. sea\nE. sky"
    assert question.answer == "A"


@pytest.mark.parametrize("answer", ["B", "(b)", "no"])
def test_a_users_own_choices(path: Path, answer: str):
    file = write(path, {"text": "Is it?", "right": answer, "options": ["yes", "no"]})
    task = JsonlTask(
        TaskConfig(train=file),
        question_field="text",
        answer_field="right",
        choices_field="options",
        kind="letter",
    )
    (question,) = task.questions("train")
    assert question == Question(0, "Is it?\nA. yes\nB. no", "B")


def test_a_users_own_texts(path: Path):
    task = JsonlTask(
        TaskConfig(test=write(path, {"question": "River?", "answer": "The Nile"})), kind="text"
    )
    (question,) = task.questions("test")
    assert task.equal(task.extract("Final Answer: the nile.") or "", question.answer)


def test_ids_are_indices_and_blank_lines_are_none(path: Path):
    path.write_text(f"\ufeff{json.dumps(GSM8K)}\r\n\n{json.dumps(GSM8K)}", encoding="utf-8")
    questions = Gsm8kTask(TaskConfig(test=str(path))).questions("test")
    assert [question.id for question in questions] == [0, 1]


@pytest.mark.parametrize(
    ("task", "row", "message"),
    [
        (Gsm8kTask, {"question": "?"}, "field 'answer' is missing; the row has question"),
        (Gsm8kTask, {**GSM8K, "question": " "}, "field 'question' must be text"),
        (Gsm8kTask, {**GSM8K, "question": ["?"]}, "field 'question' must be text, got ['?']"),
        (Gsm8kTask, {**GSM8K, "answer": "3"}, "field 'answer' must end with \"#### NUMBER\""),
        (Gsm8kTask, {**GSM8K, "answer": "#### x"}, "field 'answer' must hold an answer of kind"),
        (MathTask, {**MATH, "solution": "2"}, "field 'solution' must hold the answer in \\boxed{}"),
        (MathTask, {**MATH, "level": [3]}, "field 'level' must be text or a number, got [3]"),
        (CommonsenseQaTask, {**CSQA, "answerKey": "F"}, "field 'answerKey' must be one of A, B"),
        (CommonsenseQaTask, {**CSQA, "choices": ["a"]}, "field 'choices' must hold `label`"),
        (JsonlTask, {"question": "?", "answer": None}, "must be text or a number, got None"),
        (JsonlTask, {"question": "?", "answer": ""}, "field 'answer' must be text or a number"),
        (JsonlTask, {"question": "?", "answer": " "}, "must hold an answer of kind 'number'"),
        (JsonlTask, {"question": "", "answer": 1}, "field 'question' must be text, got ''"),
        (JsonlTask, {"question": "a \ud83d b", "answer": 1}, "a lone surrogate, '\\ud83d', in 'a"),
        (MathTask, {**MATH, "type": "\udcff"}, "a lone surrogate, '\\udcff'"),
    ],
)
def test_bad_rows_name_file_line_and_field(
    path: Path, task: type[RowsTask], row: dict[str, Any], message: str
):
    good = {Gsm8kTask: GSM8K, MathTask: MATH, CommonsenseQaTask: CSQA}.get(task)
    file = write(path, *([] if good is None else [good]), row)
    line = 1 if good is None else 2
    with pytest.raises(UserError) as error:
        task(TaskConfig(test=file)).questions("test")
    assert str(error.value).startswith(f"{file}:{line}: {message}"[: len(f"{file}:{line}: ")])
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("choices", "answer", "message"),
    [
        (["yes"], "A", "field 'c' must be a list of 2 to 10 texts"),
        (["yes", 3], "A", "field 'c' must be a list of 2 to 10 texts"),
        (["yes", "no"], "C", "field 'answer' is C, but there are 2 choices"),
        (["yes", "no"], "maybe", "field 'answer' must hold an answer of kind 'letter'"),
    ],
)
def test_bad_choices(path: Path, choices: list[Any], answer: str, message: str):
    file = write(path, {"question": "?", "answer": answer, "c": choices})
    with pytest.raises(UserError) as error:
        JsonlTask(TaskConfig(test=file), choices_field="c", kind="letter").questions("test")
    assert message in str(error.value)


def test_choices_need_letters():
    with pytest.raises(UserError, match=r"task\.options\.kind"):
        JsonlTask(choices_field="c", kind="text")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"question": "?"', ":1: not valid JSON"),
        (b'{"question": "\xff"}', ":1: not UTF-8"),
        (b"[1, 2]", ":1: expected a JSON object, got [1, 2]"),
        (b"[" * 100_000, ":1: not valid JSON"),
        (b"", ": no questions; task.test needs some"),
        (b"\n\n", ": no questions; task.test needs some"),
    ],
)
def test_files_that_are_no_rows(path: Path, content: bytes, message: str):
    path.write_bytes(content)
    with pytest.raises(UserError) as error:
        Gsm8kTask(TaskConfig(test=str(path))).questions("test")
    assert f"{path}{message}" in str(error.value)


def test_a_missing_file_says_what_to_put_where(tmp_path: Path):
    with pytest.raises(
        UserError, match=r"test.jsonl: cannot be read .* put the q.* task.test=FILE"
    ):
        Gsm8kTask(TaskConfig(test=str(tmp_path / "test.jsonl"))).questions("test")


def test_without_a_file_or_a_hub_the_error_says_which_file_to_name():
    with pytest.raises(UserError, match=r"task.train=FILE"):
        JsonlTask().questions("train")


def test_math_500_has_other_names_for_level_and_subject(path: Path):
    row = {**{key: MATH[key] for key in ("problem", "solution")}, "level": 1, "subject": "Algebra"}
    assert only(MathTask, path, row) == only(MathTask, path, MATH)


def test_gsm_symbolic_keeps_what_a_question_was_made_from(path: Path):
    question = only(GsmSymbolicTask, path, {**GSM8K, "original_id": 17})
    assert question.answer == "3"
    assert question.metadata["template"] == "17"


@pytest.mark.parametrize("answer", [5, 5.0, "5", "5.0"])
def test_svamp_joins_body_and_question(path: Path, answer: object):
    row = {"Body": "Tom has 2 pens. ", "Question": "And 3 more?", "Answer": answer, "Type": "Sum"}
    question = only(SvampTask, path, row)
    assert question == Question(0, "Tom has 2 pens. And 3 more?", "5", {"operation": "Sum"})


def sums(path: Path, *pairs: tuple[str, int]) -> str:
    return write(path, *({"question": text, "answer": answer} for text, answer in pairs))


def test_training_questions_that_the_test_asks_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    train = sums(tmp_path / "train.jsonl", ("1 + 1?", 2), ("2 + 2?", 4), ("3 + 3?", 6))
    test = sums(tmp_path / "test.jsonl", ("9 + 9?", 18), ("2  +  2?\n", 4))
    with caplog.at_level("INFO"):
        questions = JsonlTask(TaskConfig(train=train, test=test)).questions("train")
    assert [question.id for question in questions] == [0, 2]
    assert "left out 1 of 3 training questions" in caplog.text
    assert "1 as test question 1" in caplog.text
    assert len(JsonlTask(TaskConfig(train=train, test=test)).questions("test")) == 2
    assert (
        len(JsonlTask(TaskConfig(train=train, test=test, drop_duplicates=False)).questions("train"))
        == 3
    )
    assert len(JsonlTask(TaskConfig(train=train)).questions("train")) == 3


def test_a_test_that_is_the_training_is_an_error(path: Path):
    file = sums(path, ("1 + 1?", 2))
    with pytest.raises(UserError, match=r"asks all 1 training questions .*drop_duplicates=false"):
        JsonlTask(TaskConfig(train=file, test=file)).questions("train")


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("What is $1+1$?", "What is  $1 + 1$ ?\n"),
        ("Find $ab\\,$.", "find $ab$"),
        ("\uff32\uff4f\uff4f\uff54 of \u00bd", "root of 1\u20442"),
    ],
)
def test_the_same_question(a: str, b: str):
    assert normalized(a) == normalized(b)


@pytest.mark.parametrize(
    ("a", "b"), [("1 + 1?", "1 - 1?"), ("(0,1)", "[0,1)"), ("Is 0.5 > x?", "Is 05 > x?")]
)
def test_other_questions(a: str, b: str):
    assert normalized(a) != normalized(b)


def test_duplicates_map_training_to_test_ids():
    train = [Question(id, text, "") for id, text in ((3, "A?"), (5, "b?"), (8, "c?"))]
    test = [Question(id, text, "") for id, text in ((0, "C?"), (1, "a ?"))]
    assert duplicates(train, test) == {3: 1, 8: 0}
