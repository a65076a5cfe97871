"""The table of a few trees has every node's question, role, path, text and value."""

import numpy as np

from malt_jax.malt.tree import Tree
from malt_jax.malt.tree_table import tree_table
from malt_jax.tasks.base import Question


def small_tree(first: int) -> Tree:
    questions = tuple(Question(id, f"question {id}", "1") for id in (first, first + 1))
    leaves = np.array([["a", "b"], ["c", "d"]], object)
    rewards = np.array([[[0.0, 1.0]], [[1.0, 1.0]]])
    first_role = np.array([["u"], ["v"]], object)
    return Tree(questions, ("generator", "refiner"), (), (first_role, leaves[:, None]), rewards)


def test_rows_follow_the_axes_and_stop_after_the_limit() -> None:
    trees = [small_tree(0), small_tree(2)]
    table = tree_table(trees, 3)
    assert table.columns == ("question", "role", "path", "text", "value")
    assert table.rows[:4] == [
        ("question 0", "generator", "0", "u", 0.5),
        ("question 0", "refiner", "0.0", "a", 0.0),
        ("question 0", "refiner", "0.1", "b", 1.0),
        ("question 1", "generator", "0", "v", 1.0),
    ]
    assert {row[0] for row in table.rows} == {"question 0", "question 1", "question 2"}
    assert len(table.rows) == 9
    assert tree_table(trees, 0).rows == []
    assert len(tree_table(trees, 9).rows) == 12
