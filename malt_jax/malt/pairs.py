"""Figures about the preference pairs of a role: doubt about their order, lengths, styles."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from malt_jax.malt import credit
from malt_jax.malt.credit import Node, RoleRows
from malt_jax.malt.tree import Tree
from malt_jax.malt.uncertainty import swap_doubt
from malt_jax.tasks.base import Task

Rows = Sequence[tuple[Tree, tuple[RoleRows, ...]]]
"""The training rows of every role in every tree."""
_LENGTHS = ("shorter", "equal", "longer")
_SHOWN = 4
"""Combinations of styles in a line of the log, the most frequent ones."""


class PairFigures(NamedTuple):
    """Figures about the pairs of one role in a round."""

    doubt: float | None
    """Expected share of pairs in the wrong order; None without pairs."""
    lengths: dict[str, int]
    """Pairs in which the chosen completion is "shorter", "equal" or "longer", in tokens."""
    styles: dict[str, dict[str, int]]
    """Pairs by the ways of writing of the chosen and then of the rejected completion, where the
    task knows both."""

    def to_json(self) -> dict[str, Any]:
        """The fields of a role in counts.json and results.json."""
        styles = {"pair_styles": self.styles} if self.styles else {}
        return {"pair_doubt": self.doubt, "pair_lengths": self.lengths, **styles}

    def __str__(self) -> str:
        """One line, for the log, about at least one pair."""
        lengths = ", ".join(f"{name} {count}" for name, count in self.lengths.items())
        line = f"{100 * (self.doubt or 0):.1f} % expected in the wrong order; chosen {lengths}"
        ways = [
            (count, f"{chosen} over {rejected} {count}")
            for chosen, counts in self.styles.items()
            for rejected, count in counts.items()
        ]
        most = sorted(ways, key=lambda way: -way[0])[:_SHOWN]
        styles = [text for _, text in most] + ["..."] * (len(ways) > _SHOWN)
        return f"{line}; {', '.join(styles)}" if styles else line


def pair_figures(rows: Rows, depth: int, task: Task) -> PairFigures:
    """The figures of the role at a depth of the trees."""
    lengths = dict.fromkeys(_LENGTHS, 0)
    styles: Counter[tuple[str, str]] = Counter()
    for tree, roles in rows:
        for chosen, rejected, _ in roles[depth].pairs:
            longer = _tokens(tree, chosen) - _tokens(tree, rejected)
            lengths[_LENGTHS[1 + int(np.sign(longer))]] += 1
            ways = [task.style(tree.roles[depth], _text(tree, node)) for node in (chosen, rejected)]
            if ways[0] is not None and ways[1] is not None:
                styles[ways[0], ways[1]] += 1
    return PairFigures(pair_doubt(rows, depth), lengths, _nested(styles.most_common()))


def pair_doubt(rows: Rows, depth: int) -> float | None:
    """Expected share of a role's pairs whose rejected completion is truly the better one.

    It is 0 for the last role, whose values are grades. None without pairs. Four decimals, so that
    the number that is reported is the number that a loss uses.
    """
    doubts = [
        _doubts(tree, roles[depth].pairs, depth) for tree, roles in rows if roles[depth].pairs
    ]
    return round(float(np.concatenate(doubts).mean()), 4) if doubts else None


def _doubts(tree: Tree, pairs: Sequence[credit.Pair], depth: int) -> np.ndarray:
    if depth == len(tree.roles) - 1:
        return np.zeros(len(pairs))
    value = credit.values(tree.rewards)[depth]
    chosen, rejected = (
        np.array([value[(node.question, *node.path)] for node in nodes])
        for nodes in zip(*((pair.chosen, pair.rejected) for pair in pairs), strict=True)
    )
    return swap_doubt(chosen, rejected, tree.rewards.size // value.size)


def _tokens(tree: Tree, node: Node) -> int:
    return len(tree.ids(*node))


def _text(tree: Tree, node: Node) -> str:
    return str(tree.texts[len(node.path) - 1][(node.question, *node.path)])


def _nested(counts: Iterable[tuple[tuple[str, str], int]]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for (chosen, rejected), count in counts:
        found.setdefault(chosen, {})[rejected] = count
    return found
