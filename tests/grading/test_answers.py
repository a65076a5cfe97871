"""What an answer is taken for."""

import pytest

from malt_jax.grading import answers, normalize


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
        (r"\sum_{k=1}^n k", answers.Opaque),
    ],
)
def test_kinds(latex: str, kind: type):
    canonical = normalize("boxed", latex)
    assert canonical is not None
    answer = answers.read(canonical)
    assert isinstance(answer, kind)
    assert answers.same(answer, answers.read(canonical)) is True


@pytest.mark.parametrize(
    ("a", "b", "verdict"),
    [
        (r"\sum_{k=1}^3 k", "6", None),
        (r"(0,1) \cup [1,2)", r"(0,2)", None),
        ("5 cm", "5 m", False),
        ("x=5", "5", True),
        ("1}{1", "1", False),
    ],
)
def test_what_structure_and_value_can_tell(a: str, b: str, verdict: bool | None):
    assert answers.equal(a, b) is verdict
    assert answers.equal(b, a) is verdict
