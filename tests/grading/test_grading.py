"""Answers by their shapes, and what no reply may do to the grader."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from malt_jax.grading import KINDS, Kind, equal, extract, normalize
from malt_jax.grading.canonical import format_number, parse_number
from malt_jax.grading.extraction import last_boxed

NUMBERS = {
    # the final-answer line
    "Final Answer: 18": "18",
    "3 + 4 = 7\nFinal Answer: 7.": "7",
    "**Final Answer:** 42": "42",
    "**Final Answer**: $1,450.00 a day": "1450",
    "The final answer is 12 apples.": "12",
    "Final Answer:\n\n  **25%**": "25",
    "Final Answer: \\boxed{1{,}234}": "1234",
    "Final Answer: $\\frac{3}{4}$": "0.75",
    "Final Answer: 3 + 4 = 7 books": "7",
    "Final Answer: x = -5": "-5",
    "Final Answer: 18 eggs in 7 days": "18",
    "Final Answer: in 7 days 18 eggs": "18",
    "Final Answer: -$5": "-5",
    "Final Answer: $-5": "-5",
    "Final Answer: \u22125": "-5",
    "Final Answer: €1,000,000": "1000000",
    "Final Answer: 2 1/2 cups": "2.5",
    "Final Answer: 1/3": "1/3",
    "Final Answer: 0.50": "0.5",
    "Final Answer: .5": "0.5",
    "Final Answer: 4000.": "4000",
    "Final Answer: 007": "7",
    "Final Answer: 1e3": "1000",
    "Final Answer: 5\nFinal Answer: 6": "6",
    "Final Answer: 6\n\nNote that 9 is not.": "6",
    "It is 7.\n#### 8": "8",
    "#### 1,234": "1234",
    # a line without a number is no answer, even if a number precedes it
    "We get 5.\nFinal Answer: unknown": None,
    # no such line: the last number
    "So she has 5 + 3 = 8 apples.": "8",
    "He runs 10-3 = 7 miles": "7",
    "It was 5:30": "30",
    "We get 12.\nFinal Answer:": "12",
    # a marker without a number gives way to the box that ends the reply
    "Final Answer: X\n\nSo it is \\boxed{5}": "5",
    "```python\n# Final Answer\nanswer = 3 * 4\n```\nThe result is \\boxed{12}.": "12",
    "<answer>42</answer> is what 7 said": "42",
    "Final Answer: The final answer is $7,310$. I hope that helps.": "7310",
    "The answer is 12.\nFinal Answer: unknown": "12",
    # commas and spaces of other languages
    "Final Answer: 2,5": "2.5",
    "Final Answer: 2,500": "2500",
    "La réponse est 1 630 euros.": "1630",
    "我们有 5 个。答案：６３。": "63",
    # of several numbers the one that the line states
    "Final Answer: The rent is $140 for 3 days.": "140",
    "Final Answer: One is 140 and three are 420.": "420",
    "Final Answer: A day is $140, so 3 days make $420.": "420",
    # a number that is excluded is no answer
    "Final Answer: not 5": None,
    "It is not 5": None,
    "It is not 5 but 6": "6",
    "no number here": None,
    "": None,
    "1/0": None,
}
LETTERS = {
    "Final Answer: C": "C",
    "Final Answer: (C)": "C",
    "Final Answer: C.": "C",
    "Final Answer: C: ground": "C",
    "Final Answer: C ground": "C",
    "Final Answer: C - ground": "C",
    "Final Answer: **C**": "C",
    "**Final Answer: C**": "C",
    "Final Answer: $\\boxed{\\text{C}}$": "C",
    "Final Answer: c": "C",
    "Final Answer: (c) ground": "C",
    "Final Answer: A": "A",
    "Final Answer: A. bank": "A",
    "Final Answer: A, because it is near": "A",
    "Final Answer: Option D": "D",
    "Final Answer: the correct answer is E": "E",
    "Final Answer: It must be (B).": "B",
    "The answer is B because of that.": "B",
    "The correct choice is **D**.": "D",
    "Thinking about it.\nC": "C",
    "Thinking about it.\n(C) ground": "C",
    "Thinking about it.\nC: ground": "C",
    "I am sure that (E) fits best": "E",
    "<answer>B</answer>": "B",
    "Final Answer: ground (c)": "C",
    "The answer is ground, c.": "C",
    "Final Answer: not A but B": "B",
    "(A) is too far. (C) is wrong, so B.": "B",
    "Final Answer: X\nSo it is (C).": "C",
    "The answer is not A.": None,
    "Final Answer: neither A nor B": None,
    "(C) lake is wrong because it is far. So (D).": "D",
    "C because A is wrong": "C",
    "While A is tempting, D is the best answer.": "D",
    "因此，正确答案是D，而不是A。": "D",
    "La bonne réponse est (D).": "D",
    "La réponse a été longue": None,
    "Vitamin C is best taken early": None,
    # articles, pronouns and words are no choices
    "Final Answer: A bank": None,
    "Final Answer: a bank": None,
    "Final Answer: A bank (D)": "D",
    "A bank is where money lies": None,
    "I think so": None,
    "Final Answer: Bank": None,
    "Final Answer: A's": None,
    # two choices are none
    "Final Answer: B or C": None,
    "Final Answer: (B) and (C)": None,
    # the choices repeated
    "A. bank\nB. shop\nC. mall": None,
    "": None,
}
BOXED = {
    r"so $\boxed{5}$": "5",
    r"\boxed{1} and then \boxed{2}": "2",
    r"\boxed{\frac{1}{2}}": "0.5",
    r"\boxed{\frac12}": "0.5",
    r"\boxed{\dfrac{22}{7}}": "22/7",
    r"\boxed{-\frac{2}{6}}": "-1/3",
    r"\boxed{3\frac{1}{2}}": "3.5",
    r"\boxed{10,\!000}": "10000",
    r"\boxed{1{,}234}": "1234",
    r"\boxed{x = 5}": "x=5",
    r"\boxed{75^\circ}": r"75^\circ",
    r"\boxed{75°}": r"75^\circ",
    r"\boxed{50\%}": r"50\%",
    r"\boxed{\$118}": r"\$118",
    r"\boxed{118 \text{ dollars}}": r"118\text{dollars}",
    r"\boxed{5 cm}": "5 cm",
    r"\boxed{\text{even}}": r"\text{even}",
    r"\boxed{\left( 1, \tfrac{3}{4} \right]}": r"(1,\frac{3}{4}]",
    r"\boxed{3 \sqrt 2}": r"3\sqrt{2}",
    r"\boxed{x^{2} + 1}": "x^2+1",
    r"\boxed{664_{7}}": "664_7",
    r"\boxed{\{1, 2\}}": r"\{1,2\}",
    r"\boxed{\boxed{3}}": "3",
    r"\boxed 2$": "2",
    r"\fbox{9}": "9",
    r"\boxed{1} but then \boxed{2 + ": "1",
    r"either $\boxed{-2}$ and $\boxed{1}$": "-2,1",
    r"$\boxed{1}$, \(\boxed{2}\), and $\boxed{3}$.": "1,2,3",
    r"\boxed{-2} \text{ and } \boxed{1}": "-2,1",
    r"\boxed{1}. So \boxed{2}": "2",
    r"$x = \boxed{1}$ or $x = \boxed{2}$": "1,2",
    r"It is \boxed{28} or \boxed{28_9}": "28_9",
    "Final Answer: $x + 1$": "x+1",
    r"\boxed{}": None,
    "nothing": None,
}
TEXTS = {
    "Final Answer: The  Nile.": "the nile",
    '**Final Answer:** "Paris"': "paris",
    r"\boxed{Paris}": "paris",
    "Paris": None,
}
TABLE = [
    (kind, reply, answer)
    for kind, cases in (
        ("number", NUMBERS),
        ("letter", LETTERS),
        ("boxed", BOXED),
        ("text", TEXTS),
    )
    for reply, answer in cases.items()
]


@pytest.mark.parametrize(("kind", "reply", "answer"), TABLE)
def test_extracted_answer(kind: Kind, reply: str, answer: str | None):
    assert extract(kind, reply) == answer


@pytest.mark.parametrize(
    ("kind", "a", "b"),
    [
        ("number", "1,000", "1000"),
        ("number", "0.5", "1/2"),
        ("number", "$3.00", "3"),
        ("boxed", r"\frac{1}{2}", "0.5"),
        ("boxed", "x=5", "5"),
        ("boxed", r"(-\infty, 2)", r"\left(-\infty,2\right)"),
        ("letter", "(b)", "B"),
        ("text", "New  York", "new york."),
    ],
)
def test_equal_answers(kind: Kind, a: str, b: str):
    assert equal(kind, a, b)
    assert equal(kind, b, a)


@pytest.mark.parametrize(
    ("kind", "a", "b"),
    [
        ("number", "1000", "100"),
        ("number", "1e-30", "0"),
        ("number", "0.333", "1/3"),
        ("number", "", ""),
        ("boxed", "664_7", "664_8"),
        ("boxed", "1 2", "12"),
        ("boxed", "2 million", "2"),
        ("boxed", "2 pi", "2"),
        ("boxed", "3x", "3"),
        ("boxed", "(1,234)", "1234"),
        ("boxed", "10^{-30}", "0"),
        ("boxed", "5 am", "5 pm"),
        ("boxed", "", ""),
        ("letter", "A", "B"),
        ("letter", "AB", "AB"),
    ],
)
def test_unequal_answers(kind: Kind, a: str, b: str):
    assert not equal(kind, a, b)
    assert not equal(kind, b, a)


answers = st.text("0123456789.,/-+eE$%\\{}()[]^_=~ abcAC\n°–", max_size=30) | st.text(max_size=30)
replies = st.lists(
    st.sampled_from(["Final Answer: ", "\\boxed{", "}", "\n", "(C)", "A", "#### "]) | answers
).map("".join)


@given(st.sampled_from(KINDS), answers)
def test_canonical_answers_stay_as_they_are(kind: Kind, answer: str):
    canonical = normalize(kind, answer)
    assert canonical is None or normalize(kind, canonical) == canonical


@given(st.sampled_from(KINDS), answers, answers)
def test_equality_is_symmetric(kind: Kind, a: str, b: str):
    assert equal(kind, a, b) == equal(kind, b, a)


@given(st.sampled_from(KINDS), replies)
def test_every_reply_gives_a_canonical_answer_or_none(kind: Kind, reply: str):
    answer = extract(kind, reply)
    assert answer is None or equal(kind, answer, answer)


@given(st.fractions())
def test_numbers_survive_their_canonical_text(value: Fraction):
    assert parse_number(format_number(value)) == value


@given(st.integers(-(10**12), 10**12))
def test_numbers_with_separators(value: int):
    assert extract("number", f"It is so.\nFinal Answer: ${value:,}.") == str(value)


@given(st.recursive(st.text("ab1 ", max_size=5), lambda inner: st.builds("{{{}}}".format, inner)))
def test_boxed_content_with_balanced_braces(content: str):
    assert last_boxed(f"\\boxed{{0}} so \\boxed{{{content}}} {'}' * 3}") == content.strip()


HOSTILE = [
    "9" * 100_000,
    "1" + ",111" * 30_000,
    "1e999999999",
    "1e99999" * 1000,
    "9**9**9**9",
    "0." + "0" * 50_000 + "1",
    "1/" + "9" * 50_000 + "/",
    "1/0",
    "-" * 50_000,
    " " * 50_000 + "x",
    "1" + " " * 50_000 + "/",
    "Final Answer: " * 5_000,
    "Final Answer" + " " * 50_000,
    "####" * 20_000,
    "\\boxed{" * 10_000,
    "\\boxed{" * 5_000 + "}" * 5_000,
    "{" * 100_000,
    "\\boxed{" + "\\frac{" * 150 + "}" * 150 + "}",
    "\\boxed{" + "\\frac1" * 160 + "}",
    "\\boxed{" + "\\text{" * 150 + "}" * 150 + "}",
    "\\boxed{" + " a" * 490 + "}",
    "\\boxed{" + "1" * 990 + "}",
    "\\boxed{\\frac{" + "1" * 400 + "}{" + "3" * 400 + "}}",
    "\\boxed{__import__('os').system('false')}",
    "(" * 50_000 + "A" + ")" * 50_000,
    "Final Answer: " + "(" * 50_000,
    "A. \n" * 20_000,
    "٣٤٥",
    "\x00\ud800",
]


@pytest.mark.parametrize("index", range(len(HOSTILE)))
def test_hostile_replies_cost_no_time(index: int):
    reply = HOSTILE[index]
    start = time.process_time()
    for kind in KINDS:
        answer = extract(kind, reply)
        assert answer is None or len(answer) <= 1_000
        equal(kind, reply, "1")
        equal(kind, reply[-900:], "1")
    assert time.process_time() - start < 1.0
