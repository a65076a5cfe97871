"""Which questions count as the same."""

import pytest

from malt_jax.tasks.base import Question
from malt_jax.tasks.duplicates import duplicates, normalized


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
