"""Units in one spelling."""

import pytest

from malt_jax.grading.quantities import canonical_unit


@pytest.mark.parametrize(
    ("spellings", "unit"),
    [
        (["cm", "centimeters", "Centimetre"], "cm"),
        (["cm^2", "square cm", "sq cm", "square centimeters", "cm^{2}"], "cm^2"),
        (["mph", "miles per hour", "mi/h", "miles/hour"], "mi/h"),
        (["dollars", "USD", r"\$"], "dollar"),
        (["apples", "apple"], "apple"),
        (["red  balls", "red ball"], "red ball"),
    ],
)
def test_spellings_of_a_unit(spellings: list[str], unit: str):
    assert {canonical_unit(spelling) for spelling in spellings} == {unit}


@pytest.mark.parametrize(
    "words", ["", "million", "pm", "remainder 2", "squared", "x + 1", "a" * 70]
)
def test_what_is_no_unit(words: str):
    assert canonical_unit(words) is None
