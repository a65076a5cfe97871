"""Values of expressions against Python's fractions and NumPy's polynomials."""

import time
from collections.abc import Iterable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt_jax.grading.expressions import TooLarge
from malt_jax.grading.expressions import read_expression as read
from malt_jax.grading.values import equal, proportional

numbers = st.integers(0, 50).map(lambda value: (str(value), Fraction(value)))


def _binary(parts):
    (a, x), sign, (b, y) = parts
    if sign == "/":
        return (f"\\frac{{{a}}}{{{b}}}", x / y) if y else (a, x)
    value = {"+": x + y, "-": x - y, "*": x * y}[sign]
    return (f"({a}) \\cdot ({b})" if sign == "*" else f"({a}) {sign} ({b})", value)


arithmetic = st.recursive(
    numbers,
    lambda inner: st.tuples(inner, st.sampled_from("+-*/"), inner).map(_binary),
    max_leaves=8,
)
polynomials = st.lists(st.integers(-5, 5), min_size=1, max_size=4)


@given(arithmetic)
def test_arithmetic_is_exact(case: tuple[str, Fraction]):
    text, value = case
    value_text = f"\\frac{{{value.numerator}}}{{{value.denominator}}}"
    assert equal(read(text), read(value_text))
    assert not equal(read(text), read(f"{value_text} + \\frac{{1}}{{{10**40}}}"))


def _latex(coefficients: Iterable[int]) -> str:
    return " + ".join(f"({value})x^{{{power}}}" for power, value in enumerate(coefficients))


@given(polynomials, polynomials)
def test_products_of_polynomials(a: list[int], b: list[int]):
    expanded = _latex(np.convolve(a, b))
    product = read(f"({_latex(a)})({_latex(b)})")
    assert equal(product, read(expanded))
    assert not equal(product, read(f"{expanded} + \\frac{{x}}{{10^{{30}}}}"))


IDENTITIES = [
    (r"\sqrt{3+2\sqrt{2}}", r"1+\sqrt{2}"),
    (r"\cos 36^\circ", r"\frac{1+\sqrt5}{4}"),
    (r"e^{i\pi}+1", "0"),
    (r"\arctan 1", r"\frac{\pi}{4}"),
    (r"\log_3 81", "4"),
    (r"\sin 3x", r"3\sin x-4\sin^3 x"),
    (r"\sqrt[3]{x^3}", "x"),
    (r"\binom{8}{3}", "56"),
]


@pytest.mark.parametrize(("a", "b"), IDENTITIES)
def test_identities(a: str, b: str):
    assert equal(read(a), read(b))
    assert equal(read(b), read(a))


@pytest.mark.parametrize(
    ("a", "b"),
    [
        (r"\sqrt{x^2}", "x"),
        (r"\frac{\pi}{10^{200}}", "0"),
        (r"\frac{\pi}{10^{200}}", r"\frac{e}{10^{200}}"),
        (r"\sqrt{10^{60}+1}", "10^{30}"),
        (r"\sin(10^{-40})", "10^{-40}"),
        ("x", "x + 10^{-30}"),
    ],
)
def test_near_is_not_equal(a: str, b: str):
    assert not equal(read(a), read(b))


def test_proportional_equations():
    assert proportional(read("2x+4y-6"), read("x+2y-3"))
    assert not proportional(read("2x+4y-6"), read("x+2y-4"))
    assert not proportional(read("x-1"), read("1-x"), positive=True)


@pytest.mark.parametrize(
    "text",
    [
        "9^{9^{9^9}}",
        "((9!)!)!",
        "(x+1)^{10^9}",
        "e^{e^{e^{e^e}}}",
        r"\sin(10^{100000})",
        "-" * 500 + "1" + "!" * 90,
        "(" * 200 + "1" + ")" * 200,
        r"\sqrt" * 90 + "2",
        "+".join(["x"] * 400),
    ],
)
def test_bounds_hold_at_once(text: str):
    start = time.process_time()
    with pytest.raises(TooLarge):
        equal(read(text), read("1"))
    assert time.process_time() - start < 0.5
