"""Labels beside points, moved apart where they would cover each other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float
from matplotlib.axes import Axes
from scipy.optimize import isotonic_regression

from malt_jax.report.style import FONT_SIZE


class Label(NamedTuple):
    """A text for a point."""

    text: str
    x: float
    y: float
    color: str


def spread(wanted: Float[np.ndarray, "n"], gap: float) -> Float[np.ndarray, "n"]:
    """Positions at least `gap` apart, in the order of the wanted ones and nearest to them.

    Nearest in the sense of least squares, which isotonic regression finds.
    """
    order = np.argsort(wanted, kind="stable")
    steps = gap * np.arange(len(order))
    positions = np.empty(len(order))
    positions[order] = isotonic_regression(wanted[order] - steps).x + steps
    return positions


def label_points(axes: Axes, labels: Sequence[Label], x: float, *, left: bool = False) -> None:
    """Writes the labels below each other, from x on or (left) up to x, with lines to their points.

    The axes must have their limits and their place in the figure.
    """
    if not labels:
        return
    low, high = axes.get_ylim()
    height = axes.bbox.height / axes.figure.dpi
    gap = 1.3 * FONT_SIZE / 72 / height * (high - low)
    positions = spread(np.array([label.y for label in labels]), gap)
    for label, y in zip(labels, positions, strict=True):
        axes.annotate(
            label.text,
            xy=(label.x, label.y),
            xytext=(x, float(y)),
            ha="right" if left else "left",
            va="center",
            color=label.color,
            bbox={"facecolor": "white", "alpha": 0.75, "linewidth": 0, "pad": 0.6},
            arrowprops={
                "arrowstyle": "-",
                "color": label.color,
                "linewidth": 0.5,
                "alpha": 0.6,
                "shrinkA": 1,
                "shrinkB": 4,
            },
            zorder=5,
        )
