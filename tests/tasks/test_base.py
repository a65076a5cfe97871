"""Generated questions are computed on access."""

import pytest

from malt_jax.tasks.base import GeneratedQuestions, Question


def test_it_is_a_sequence_that_makes_only_what_is_asked_for():
    made = []

    def question(index: int) -> Question:
        made.append(index)
        return Question(index, f"{index}?", str(index))

    questions = GeneratedQuestions(question, 1_000_000)
    assert len(questions) == 1_000_000
    assert [q.id for q in questions[10:13]] == [10, 11, 12]
    assert questions[-1].id == 999_999
    assert made == [10, 11, 12, 999_999]
    with pytest.raises(IndexError):
        questions[1_000_000]
