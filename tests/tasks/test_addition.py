"""Generated sums: repeatable, right, and disjoint across splits."""

import re
from typing import Literal

import pytest

from malt_jax.tasks.arithmetic import AdditionTask

NUMBER = re.compile(r"\d+")


@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize("addends", [(2, 2), (2, 4)])
def test_the_answer_is_the_sum_of_the_numbers_in_the_text(
    split: Literal["train", "test"], addends: tuple[int, int]
):
    task = AdditionTask(low=10, high=49, min_addends=addends[0], max_addends=addends[1])
    counts = set()
    for index, question in enumerate(task.questions(split)[:300]):
        numbers = [int(number) for number in NUMBER.findall(question.text)]
        assert question.id == index
        assert all(10 <= number <= 49 for number in numbers)
        assert question.answer == str(sum(numbers))
        assert task.extract(f"Final Answer: {sum(numbers)}") == question.answer
        counts.add(len(numbers))
    assert counts == set(range(addends[0], addends[1] + 1))


def test_splits_share_no_sum_whatever_the_order_of_its_addends():
    task = AdditionTask()

    def sums(split: Literal["train", "test"]) -> set[tuple[int, ...]]:
        questions = task.questions(split)[:2000]
        return {tuple(sorted(map(int, NUMBER.findall(question.text)))) for question in questions}

    train, test = sums("train"), sums("test")
    assert len(train) > 300
    assert len(test) > 100
    assert not train & test


def test_a_question_is_a_function_of_its_split_and_index():
    first, second = AdditionTask(), AdditionTask()
    assert first.questions("train")[123] == second.questions("train")[:200][123]
    assert first.questions("train")[-1].id == len(first.questions("train")) - 1
    # Written down, so that no version of a library changes the questions of a past run.
    question = first.questions("test")[0]
    assert question.text == "Ben has 26 apples. Ben finds 12 more. How many apples does Ben have?"
    texts = [question.text for question in first.questions("train")[:200]]
    assert len(set(texts)) > 190
