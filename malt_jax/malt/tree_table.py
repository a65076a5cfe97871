"""A few sampled trees as a table, for the trackers of a run."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from malt_jax.malt import credit
from malt_jax.malt.tree import Tree
from malt_jax.tracking.tracker import Table

COLUMNS = ("question", "role", "path", "text", "value")


def tree_table(trees: Sequence[Tree], limit: int) -> Table:
    """The nodes of the first `limit` questions, each question's in the order of the tree's axes.

    A path is written as "0.2.1", its value is the mean reward of the leaves below it.
    """
    rows: list[tuple[str | float, ...]] = []
    for tree in trees:
        values = credit.values(tree.rewards)
        for number, question in enumerate(tree.questions):
            if limit == 0:
                return Table(COLUMNS, rows)
            limit -= 1
            for depth, role in enumerate(tree.roles):
                for path, text in np.ndenumerate(tree.texts[depth][number]):
                    value = float(values[depth][(number, *path)])
                    name = ".".join(map(str, path))
                    rows.append((question.text, role, name, str(text), value))
    return Table(COLUMNS, rows)
