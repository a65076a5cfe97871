"""Any text gets a verdict: nothing is raised, and no verdict takes a second."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt_jax.grading import equal
from malt_jax.grading.__main__ import judge

LENGTH = 100_000
FRAGMENTS = [
    *(
        "Final Answer: ",
        "#### ",
        "<answer>",
        "</answer>",
        "The answer is ",
        "```\n# Final Answer\n",
    ),
    *("La réponse est ", "Réponse finale : ", "答案是", "最终答案：", "选", "不是A", "A不对，"),
    *("\\boxed{", "\\boxed 2", "{", "}", "$", "$$", "\\(", "\\[", "\\", "\\\\", "\n", " ", ","),
    *(" and ", " or ", "x=", "x_1 = \\boxed{1} and ", "(x,y)=", "(1,2),", "a:b=", "2:3", "7:30 pm"),
    *("not A ", "(B) is wrong, ", "so C is the best answer", "A ", "(c) ", " - c", "option B"),
    *("\\frac{1}", "\\frac{", "\\sqrt{", "x^{", "\\sum_{k=1}^{99}", "\\sin x", "\\pm", "!", "%"),
    *("1,5", "1 000", "12.5", "9" * 400, "\\text{cm}", "\\begin{pmatrix}", "&", "=", "<", "\\cup"),
]
texts = st.text(max_size=40) | st.lists(st.sampled_from(FRAGMENTS), max_size=12).map("".join)
repeated = st.builds(
    lambda text, count: (text * count)[:LENGTH], texts, st.sampled_from([1, 3, 30, LENGTH])
)
nested = st.builds(
    lambda opening, count, inside, closing: opening * count + inside + closing * count,
    st.sampled_from(["{", "(", "\\frac{", "\\frac{1}{", "\\sqrt{", "\\boxed{", "\\text{", "x^{"]),
    st.sampled_from([3, 20, 100, 400, 10_000]),
    st.sampled_from(["1", "x", "9" * 400, "A", ""]),
    st.sampled_from(["}", "}{2}", ")", ""]),
)
kinds = st.sampled_from(["answer", "text", "letter"])


@given(kinds, repeated | nested, repeated | nested)
def test_any_text_gets_a_verdict_within_a_second(kind: str, gold: str, prediction: str):
    start = time.process_time()
    verdict = judge(kind, gold, prediction)["verdict"]
    assert time.process_time() - start < 1.0
    assert verdict in (True, False)


@given(nested, nested)
def test_verdicts_do_not_depend_on_the_order(a: str, b: str):
    assert equal("boxed", a, b) == equal("boxed", b, a)


terms = st.integers(1, 9)


@given(terms, terms, terms, terms)
def test_ratios_are_equal_up_to_a_factor(a: int, b: int, c: int, d: int):
    assert equal("boxed", f"{a}:{b}", f"x:y = {c}:{d}") == (a * d == b * c)


@given(st.integers(-999, 999), st.integers(10, 99), st.integers(-999, 999), st.integers(10, 99))
def test_decimal_commas_count_by_value(a: int, b: int, c: int, d: int):
    expected = (a, b) == (c, d) or (a == c and b % 10 == 0 == d % 10 and b == d)
    assert equal("boxed", f"{a},{b}", f"{c}.{d}") == expected
    assert not equal("boxed", f"({a},{b})", f"{c}.{d}")


pairs = st.tuples(st.integers(0, 3), st.integers(0, 3))


@given(st.lists(pairs, min_size=1, max_size=4), st.lists(pairs, min_size=1, max_size=4))
def test_lists_of_pairs_are_sets(a: list[tuple[int, int]], b: list[tuple[int, int]]):
    first, second = (", ".join(map(str, items)) for items in (a, b))
    assert equal("boxed", first, f"(x, y) = {second}") == (set(a) == set(b))


numbers = st.lists(st.integers(0, 3), min_size=1, max_size=4)


@given(numbers, numbers)
def test_repeated_numbers_are_multiplicities(a: list[int], b: list[int]):
    first, second = ("; ".join(map(str, items)) for items in (a, b))
    assert equal("boxed", first, second) == (sorted(a) == sorted(b))


@given(numbers, st.sampled_from([", ", " and ", ", and ", " and $x=$", ", $y_2 = $"]))
def test_boxes_of_one_sentence_are_a_list(values: list[int], joint: str):
    boxes = joint.join(f"$\\boxed{{{value}}}$" for value in values)
    reply = f"From $\\boxed{{7}}$ we get the rest. So they are {boxes}."
    assert judge("text", "; ".join(map(str, values)), reply)["verdict"]
    assert not judge("text", "; ".join(map(str, [*values, 7])), reply)["verdict"]


@pytest.mark.parametrize("sides", [("x + y", "0"), ("2x + y", "5"), ("x^2", "5"), ("|x|", "5")])
def test_equations_that_state_no_value(sides: tuple[str, str]):
    assert not equal("boxed", " = ".join(sides), sides[1])
