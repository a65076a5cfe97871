"""What an answer is taken for."""

import pytest

from malt_jax.grading import answers, normalize
from malt_jax.grading.answer_equality import same
from malt_jax.grading.answer_reader import read


@pytest.mark.parametrize(
    ("latex", "kind"),
    [
        (r"\frac{x}{2}", answers.Quantity),
        (r"15\text{ cm}^2", answers.Quantity),
        (r"\text{Thursday}", answers.Words),
        ("253_7", answers.InBase),
        ("1, 2", answers.Parts),
        (r"(-\infty, 3]", answers.Parts),
        ("9:30 pm", answers.Parts),
        (r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}", answers.Matrix),
        ("x = 5", answers.Named),
        ("x > 5", answers.Named),
        ("2x + y = 5", answers.Relation),
        (r"\int_0^1 x dx", answers.Opaque),
    ],
)
def test_kinds(latex: str, kind: type):
    canonical = normalize("boxed", latex)
    assert canonical is not None
    answer = read(canonical)
    assert isinstance(answer, kind)
    assert same(answer, read(canonical)) is True
