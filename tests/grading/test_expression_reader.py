"""What the grammar refuses."""

import pytest

from malt_jax.grading.expression_reader import read
from malt_jax.grading.expressions import Unreadable


@pytest.mark.parametrize(
    "text", ["", "1 2", "x = 1", r"\foo", "f(x)", "2 +", "{", "x2", "__import__"]
)
def test_what_is_no_expression(text: str):
    with pytest.raises(Unreadable):
        read(text)
