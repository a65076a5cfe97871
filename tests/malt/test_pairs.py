"""Figures about pairs, and the files of training rows, for small trees that are written by hand."""

import json
import logging
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from malt_jax.config import Config, CreditConfig, ProcessesConfig, load_config
from malt_jax.distributed.processes import joined
from malt_jax.malt import credit
from malt_jax.malt.pairs import pair_doubt, pair_figures
from malt_jax.malt.rows import row_counts, write_rows
from malt_jax.malt.tree import Tree
from malt_jax.malt.uncertainty import swap_doubt
from malt_jax.runs.directory import open_run
from malt_jax.sampling.completions import Completions
from malt_jax.tasks.base import GeneratedTask, Question, Split

ROLES = ("verifier", "refiner")


class Letters(GeneratedTask):
    """Texts are letters; small and capital ones are two styles, digits have none."""

    name = "letters"
    kind = "text"

    def question(self, split: Split, index: int) -> Question:
        raise NotImplementedError

    def style(self, role: str, text: str) -> str | None:
        if text[0].isdigit():
            return None
        return f"{role[0]}-{'small' if text.islower() else 'capital'}"


def tree(texts: Sequence[str], grades: Sequence[Sequence[float]]) -> Tree:
    """One question; the first role's completions have these texts and tokens, one a letter. Under
    each are refinements with these grades."""
    shapes = [(1, len(texts)), (1, len(texts), len(grades[0]))]
    written = [np.empty(shape, object) for shape in shapes]
    written[0][0] = texts
    for node in np.ndindex(shapes[1]):
        written[1][node] = "abcdef"[node[-1]]
    completions = [
        Completions.of_rows([[7] * len(text) for text in level.flat], shape)
        for level, shape in zip(written, shapes, strict=True)
    ]
    questions = (Question(5, "?", "!"),)
    return Tree(questions, ROLES, tuple(completions), tuple(written), np.array([grades], float))


def rows_of(trees: Sequence[Tree], **options: Any) -> list[Any]:
    configs = [CreditConfig(**options)] * 2
    return [(each, credit.assign(each.rewards, each.texts, [5], configs, seed=0)) for each in trees]


TREES = (
    tree(["long", "BIG", "no"], [[1, 1, 1], [0, 0, 1], [0, 0, 0]]),
    tree(["ab", "CDE", "1"], [[1, 0, 1], [0, 0, 0], [0, 0, 0]]),
)


def test_pairs_are_counted_by_length_and_by_style() -> None:
    figures = pair_figures(rows_of(TREES), 0, Letters())
    # long over BIG and no, ab over CDE and 1.
    assert figures.lengths == {"shorter": 1, "equal": 0, "longer": 3}
    assert figures.styles == {"v-small": {"v-capital": 2, "v-small": 1}}
    assert str(figures).endswith(
        "chosen shorter 1, equal 0, longer 3; v-small over v-capital 2, v-small over v-small 1"
    )


def test_the_doubt_is_the_mean_over_the_pairs() -> None:
    chosen, rejected = np.array([1, 1, 2 / 3, 2 / 3]), np.array([1 / 3, 0, 0, 0])
    expected = swap_doubt(chosen, rejected, 3).mean()
    assert pair_doubt(rows_of(TREES), 0) == pytest.approx(expected, abs=5e-5)
    # Grades are certain, and no pair leaves no doubt.
    assert pair_doubt(rows_of(TREES), 1) == 0
    assert pair_doubt(rows_of([tree(["a", "b"], [[1, 1], [1, 1]])]), 0) is None


def test_rows_are_written_counted_and_logged(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline = types.SimpleNamespace(names=[*ROLES])
    experiment: Any = types.SimpleNamespace(pipeline=pipeline, task=Letters())
    roles = "pipeline.roles=[{name: verifier}, {name: refiner}]"
    config = load_config(None, [roles, "training.kto_roles=[verifier]"])
    rows, folder = rows_of(TREES), tmp_path / "run" / "round-0" / "rows"
    with joined(ProcessesConfig(), {}), open_run(tmp_path / "run", Config()) as run:
        with caplog.at_level(logging.INFO, "malt_jax"):
            write_rows(run, "round-0/rows", experiment, config, rows)
        counts = row_counts(run, 0)
    assert counts["verifier"] == {
        "rows": 2,
        "correct": 2,
        "incorrect": 4,
        "pairs": 4,
        **pair_figures(rows, 0, Letters()).to_json(),
    }
    (line, _) = [record.message for record in caplog.records]
    assert line.startswith("round-0/rows: verifier: 2 rows, 4 pairs: ") and "longer 3" in line
    single = [json.loads(text) for text in (folder / "verifier/kto.jsonl").read_text().splitlines()]
    assert single[:3] == [
        {"question": 5, "path": [0], "correct": True},
        {"question": 5, "path": [1], "correct": False},
        {"question": 5, "path": [2], "correct": False},
    ]
    assert len(single) == 6 and not (folder / "refiner/kto.jsonl").exists()
