import re

import pytest

from malt_jax.config import PipelineConfig, TaskConfig
from malt_jax.errors import UserError
from malt_jax.malt.roles import load_roles
from malt_jax.tasks import create
from malt_jax.tasks.arithmetic import Problem, Step
from malt_jax.tasks.riddles import (
    FACTORS,
    LARGEST_PRODUCT,
    LARGEST_VALUE,
    SMALLEST_VALUE,
    TERMS,
    RiddlesTask,
    factor_of,
    formula,
    solution,
)

COUNT = 2000
RIDDLE = Problem(16, (Step("+", 7), Step("*", 4), Step("-", 5)))


@pytest.fixture(scope="module")
def task() -> RiddlesTask:
    return RiddlesTask()


def test_created_from_a_configuration() -> None:
    task = create(TaskConfig(name="riddles", options={"min_steps": 4, "max_steps": 4}))
    assert task.questions("test")[0].metadata["solution"].count("=") == 4


def test_impossible_step_range_is_a_user_error() -> None:
    with pytest.raises(UserError, match="min_steps=3, max_steps=2"):
        RiddlesTask(min_steps=3, max_steps=2)


def test_questions_depend_on_split_and_index_alone(task: RiddlesTask) -> None:
    again = RiddlesTask()
    for split in ("train", "test"):
        questions = task.questions(split)
        assert questions[17] == again.questions(split)[17] == questions[10:20][7]
        assert questions[17].id == 17
        assert questions[-1].id == len(questions) - 1
    assert task.questions("train")[17] != task.questions("test")[17]


def test_test_riddles_occur_in_no_training_question(task: RiddlesTask) -> None:
    held_out = {task.problem("test", index) for index in range(COUNT)}
    trained = {task.problem("train", index) for index in range(COUNT)}
    assert not held_out & trained
    assert {problem.split for problem in held_out} == {"test"}
    assert {problem.split for problem in trained} == {"train"}


def test_numbers_stay_in_their_ranges(task: RiddlesTask) -> None:
    for index in range(COUNT):
        problem = task.problem("train", index)
        assert len(problem.steps) in (2, 3)
        assert all(
            SMALLEST_VALUE <= value <= LARGEST_VALUE for value in (problem.start, *problem.values)
        )
        for step in problem.steps:
            assert step.operand in (FACTORS if step.operator == "*" else TERMS)
        assert 1 < factor_of(problem) <= LARGEST_PRODUCT


def test_the_unknown_solves_the_equation(task: RiddlesTask) -> None:
    for question in task.questions("test")[:300]:
        left, target = question.metadata["formula"].split("=")
        assert re.fullmatch(r"[x0-9()*+-]+", left)
        assert eval(left, {"x": int(question.answer)}) == int(target)
        other = int(question.answer) + 1
        assert eval(left, {"x": other}) != int(target)


def test_half_of_the_riddles_are_told_in_words(task: RiddlesTask) -> None:
    told = 0
    for index in range(400):
        question, problem = task.question("test", index), task.problem("test", index)
        told += question.text != question.metadata["formula"]
        numbers = [int(n) for n in re.findall(r"\d+", question.text)]
        assert numbers == [*(step.operand for step in problem.steps), problem.values[-1]]
    assert 150 < told < 250


def test_solution_of_a_known_riddle(task: RiddlesTask) -> None:
    assert formula(RIDDLE) == "(x+7)*4-5=87"
    assert factor_of(RIDDLE) == 4
    assert solution(RIDDLE) == "87+5=92\n92/4=23\n23-7=16\nFinal Answer: 16"
    assert task.extract(solution(RIDDLE)) == "16"


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ((("*", 2), ("*", 3), ("-", 9)), "x*2*3-9=3"),
        ((("+", 6), ("-", 5), ("*", 2)), "(x+6-5)*2=6"),
        ((("*", 2), ("+", 3), ("*", 4)), "(x*2+3)*4=28"),
    ],
)
def test_a_sum_that_is_multiplied_has_brackets(
    steps: tuple[tuple[str, int], ...], expected: str
) -> None:
    assert formula(Problem(2, tuple(Step(*step) for step in steps))) == expected


def test_every_role_has_a_prompt(task: RiddlesTask) -> None:
    roles = load_roles(PipelineConfig().roles, task.prompts)
    assert [role.name for role in roles] == ["generator", "verifier", "refiner"]


@pytest.mark.parametrize(
    ("role", "text", "style"),
    [
        ("generator", "Final Answer: 16", "answer"),
        ("generator", "87+5=92\nFinal Answer: 16", "undo"),
        ("verifier", "17 is wrong", "verdict"),
        ("verifier", "17 gives 91\n91-87=4\n17 is too big", "value"),
        ("verifier", "17+7=24\n24*4=96\n96-5=91\n91-87=4\n17 is too big", "full"),
        ("refiner", "4/4=1\n17-1=16\nFinal Answer: 16", "follow"),
        ("judge", "17 is wrong", None),
    ],
)
def test_a_role_s_way_of_writing_is_known(
    task: RiddlesTask, role: str, text: str, style: str | None
) -> None:
    assert task.style(role, text) == style
