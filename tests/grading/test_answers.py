"""Kinds of answers."""

import pytest

from malt_jax.grading import normalize
from malt_jax.grading.answers import Named, Parts, Quantity, Relation, Words, read_answer
from malt_jax.grading.equality import same


@pytest.mark.parametrize(
    ("latex", "kind"),
    [
        (r"\frac{x}{2}", Quantity),
        (r"15\text{ cm}^2", Quantity),
        (r"\text{Thursday}", Words),
        ("253_7", Parts),
        ("1, 2", Parts),
        (r"(-\infty, 3]", Parts),
        ("9:30 pm", Parts),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", Parts),
        ("x = 5", Named),
        ("x > 5", Named),
        ("2x + y = 5", Relation),
        (r"\int_0^1 x dx", Quantity),
    ],
)
def test_kinds(latex: str, kind: type):
    canonical = normalize("boxed", latex)
    assert canonical is not None
    answer = read_answer(canonical)
    assert isinstance(answer, kind)
    assert same(answer, read_answer(canonical)) is True
