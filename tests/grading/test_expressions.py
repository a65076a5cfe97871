"""Texts that the grammar refuses."""

import pytest

from malt_jax.grading.expressions import Unreadable
from malt_jax.grading.expressions import read_expression as read


@pytest.mark.parametrize(
    "text", ["", "1 2", "x = 1", r"\foo", "f(x)", "2 +", "{", "x2", "__import__"]
)
def test_what_is_no_expression(text: str):
    with pytest.raises(Unreadable):
        read(text)
