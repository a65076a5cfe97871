"""Questions that are asked twice: in training and in the test."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from malt_jax.tasks.base import Question

_INVISIBLE = re.compile(r"\\[,;:! ]|[\s$]")
"""White space, LaTeX's thin and thick spaces, and its dollars: no question differs by them."""


def normalized(text: str) -> str:
    """A question's text without what does not change what is asked.

    Compatibility forms of characters are made one (NFKC), upper and lower case too; white space,
    dollar signs and punctuation at the end are left out.
    """
    text = unicodedata.normalize("NFKC", text).casefold()
    return _INVISIBLE.sub("", text).rstrip(".?!:")


def duplicates(train: Sequence[Question], test: Sequence[Question]) -> dict[int, int]:
    """Ids of training questions that the test asks too, each with the id of the test question."""
    asked = {normalized(question.text): question.id for question in test}
    found = ((question.id, asked.get(normalized(question.text))) for question in train)
    return {id: other for id, other in found if other is not None}
