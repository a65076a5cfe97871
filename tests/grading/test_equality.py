"""Structure and values of answers."""

import time

import pytest

from malt_jax.grading.equality import equal


def test_long_lists_in_another_order_cost_little():
    items = [f"\\sum_{{k=1}}^{{99}}\\sin kx^{{{i}}}" for i in range(36)]
    start = time.process_time()
    assert equal(",".join(items), ",".join(reversed(items)))
    assert time.process_time() - start < 6.0  # 25 times less than comparing each with each


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
