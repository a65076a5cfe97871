import re

import pytest

from malt_jax.config import PipelineConfig, TaskConfig
from malt_jax.errors import UserError
from malt_jax.malt.roles import load_roles
from malt_jax.tasks import create
from malt_jax.tasks.arithmetic import LARGEST_VALUE, ArithmeticTask, Problem, Step

COUNT = 2000


@pytest.fixture(scope="module")
def task() -> ArithmeticTask:
    return ArithmeticTask()


def test_created_from_a_configuration() -> None:
    task = create(TaskConfig(name="arithmetic", options={"min_steps": 4, "max_steps": 4}))
    assert task.questions("test")[0].metadata["solution"].count("=") == 4


def test_impossible_step_range_is_a_user_error() -> None:
    with pytest.raises(UserError, match="min_steps=3, max_steps=2"):
        ArithmeticTask(min_steps=3, max_steps=2)


def test_questions_depend_on_split_and_index_alone(task: ArithmeticTask) -> None:
    again = ArithmeticTask()
    for split in ("train", "test"):
        questions = task.questions(split)
        assert questions[17] == again.questions(split)[17] == questions[10:20][7]
        assert questions[17].id == 17
        assert questions[-1].id == len(questions) - 1
    assert task.questions("train")[17] != task.questions("test")[17]


def test_questions_stay_the_same_from_version_to_version(task: ArithmeticTask) -> None:
    assert task.questions("test")[0].text == (
        "Ben owns 14 toys. He sells 2. He gets 28 from Max. How many toys is that now?"
    )


def test_test_calculations_occur_in_no_training_question(task: ArithmeticTask) -> None:
    held_out = {task.problem("test", index) for index in range(COUNT)}
    trained = {task.problem("train", index) for index in range(COUNT)}
    assert not held_out & trained
    assert {problem.split for problem in held_out} == {"test"}
    assert {problem.split for problem in trained} == {"train"}


def test_hardly_two_test_questions_are_the_same(task: ArithmeticTask) -> None:
    assert len({question.text for question in task.questions("test")[:COUNT]}) >= 0.999 * COUNT


def test_answers_follow_from_the_worked_solution(task: ArithmeticTask) -> None:
    for question in task.questions("train")[:300]:
        *lines, final = question.metadata["solution"].split("\n")
        value = None
        for line in lines:
            left, operator, right, result = re.fullmatch(r"(\d+)([-+*])(\d+)=(\d+)", line).groups()
            assert value in (None, left)
            expected = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}[operator]
            assert int(result) == expected(int(left), int(right))
            assert 1 <= int(result) <= LARGEST_VALUE
            value = result
        assert final == f"Final Answer: {value}"
        assert question.answer == value == task.extract(question.metadata["solution"])


def test_the_text_names_every_number_in_order(task: ArithmeticTask) -> None:
    for index in range(100):
        problem = task.problem("test", index)
        numbers = [int(n) for n in re.findall(r"\d+", task.question("test", index).text)]
        assert numbers == [problem.start, *(step.operand for step in problem.steps)]


def test_solution_of_a_known_problem() -> None:
    problem = Problem(14, (Step("+", 9), Step("-", 6), Step("*", 2)))
    assert problem.values == (23, 17, 34)
    assert problem.solution == "14+9=23\n23-6=17\n17*2=34\nFinal Answer: 34"


@pytest.mark.parametrize(
    ("completion", "answer"),
    [
        ("3+4=7\nFinal Answer: 7", "7"),
        ("Final Answer: 7\nNo.\nFinal Answer: -12", "-12"),
        ("3-5=-2\nFinal Answer: -2", "-2"),
        ("Final Answer: 007", "7"),
        ("I do not know.", None),
    ],
)
def test_extract(task: ArithmeticTask, completion: str, answer: str | None) -> None:
    assert task.extract(completion) == answer


def test_equality_is_that_of_integers(task: ArithmeticTask) -> None:
    assert task.equal("17", "17")
    assert not task.equal("17", "71")
    assert not task.equal("-17", "17")


def test_every_role_has_a_prompt(task: ArithmeticTask) -> None:
    roles = load_roles(PipelineConfig().roles, task.prompts)
    assert [role.name for role in roles] == ["generator", "verifier", "refiner"]
