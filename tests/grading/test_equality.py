"""Structure and values of answers."""

import pytest

from malt_jax.grading.equality import equal


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        (r"\int_0^1 x dx", "0.5", False),
        (r"(0,1) \cup [1,2)", r"(0,2)", False),
        ("5 cm", "5 m", False),
        ("x=5", "5", True),
        ("1}{1", "1", False),
    ],
)
def test_what_structure_and_value_can_tell(a: str, b: str, verdict: bool):
    assert equal(a, b) is verdict
    assert equal(b, a) is verdict
