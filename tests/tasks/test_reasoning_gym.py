"""Generators of reasoning-gym as tasks."""

import pytest

from malt_jax.errors import UserError
from malt_jax.tasks.reasoning_gym import ReasoningGymTask

reasoning_gym = pytest.importorskip("reasoning_gym")


def test_questions_are_those_of_the_generator_with_its_answers():
    task = ReasoningGymTask("chain_sum", {"min_terms": 2, "max_terms": 2, "max_digits": 1})
    assert task.kind == "number"
    for question in task.questions("train")[:50]:
        left, operator, right = question.text.removesuffix(" =").split()[-3:]
        expected = int(left) + int(right) if operator == "+" else int(left) - int(right)
        assert int(question.answer) == expected
        assert task.equal(task.extract(f"Final Answer: {expected}") or "", question.answer)


def test_splits_share_no_question_and_are_the_same_every_time():
    task = ReasoningGymTask("leg_counting")
    train, test = ({q.text for q in task.questions(split)[:300]} for split in ("train", "test"))
    assert not train & test
    again = ReasoningGymTask("leg_counting").questions("test")
    assert again[41] == task.questions("test")[41]
    assert again[41].id == 41
    assert (len(task.questions("train")), len(again)) == (100_000, 10_000)


def test_answers_of_several_lines():
    task = ReasoningGymTask("rotate_matrix")
    question = task.questions("test")[0]
    item = next(
        item
        for item in (task._item(0, draw) for draw in range(50))
        if item["question"].strip() == question.text
    )
    assert "\n" in item["answer"]
    reply = f"Let me see.\n**Final Answer:**\n```\n{item['answer']}\n```"
    assert task.equal(task.extract(reply) or "", question.answer)
    assert task.extract("I do not know.") is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"generator": "leg_countin"}, "did you mean leg_counting"),
        ({"parameters": {"terms": 3}}, "'chain_sum' cannot be made with {'terms': 3}"),
        ({"parameters": {"min_terms": 9, "max_terms": 3}}, "max_terms must be >= min_terms"),
        ({"questions": 3}, "task.options.questions must be from 10 to"),
    ],
)
def test_settings_that_do_not_fit(options: dict, message: str):
    with pytest.raises(UserError) as error:
        ReasoningGymTask(**options)
    assert message in str(error.value)


def test_generators_without_one_right_answer_are_refused():
    with pytest.raises(UserError, match="'graph_color' gives no answer"):
        ReasoningGymTask("graph_color").questions("test")[0]


def test_generators_with_one_question_cannot_have_two_splits():
    task = ReasoningGymTask("chain_sum", {"min_terms": 2, "max_terms": 2})
    task._item = lambda index, draw: {"question": "Always this?", "answer": "1"}
    with pytest.raises(UserError, match="too few different questions"):
        for split in ("train", "test"):
            task.question(split, 0)
