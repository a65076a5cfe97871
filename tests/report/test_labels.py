"""Labels stay apart and near their points."""

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.text import Text

from malt_jax.report.drawing import new_axes
from malt_jax.report.labels import Label, label_points, spread
from malt_jax.report.style import plain_style


@given(st.lists(st.floats(0, 100), min_size=1, max_size=8))
def test_spread_keeps_the_gap_and_the_order_and_the_mean(wanted: list[float]):
    positions = spread(np.array(wanted), 5.0)
    order = np.argsort(wanted, kind="stable")
    assert (np.diff(positions[order]) >= 5 - 1e-9).all()
    assert positions.mean() == pytest.approx(np.mean(wanted))


def test_spread_is_nearest_by_search_on_a_grid():
    wanted = np.array([10.0, 0.0, 11.0])
    positions = spread(wanted, 4.0)
    grid = np.arange(-5, 20, 0.5)
    best = min(
        (
            places
            for places in itertools.product(grid, repeat=3)
            if places[1] + 4 <= places[0] and places[0] + 4 <= places[2]
        ),
        key=lambda places: np.sum((np.array(places) - wanted) ** 2),
    )
    np.testing.assert_allclose(positions, best)


def test_labels_of_equal_points_do_not_cover_each_other():
    names = ("sa", "ma+mv", "malt+mv")
    with plain_style():
        axes = new_axes("title", "footer")
        axes.set_ylim(0, 100)
        label_points(axes, [Label(name, 0, 50, "black") for name in names], 0.1)
        figure = axes.get_figure(root=True)
        assert figure is not None
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        # Without the line to the point, which an annotation's own extent includes.
        boxes = [Text.get_window_extent(text, canvas.get_renderer()) for text in axes.texts]
    boxes.sort(key=lambda box: box.y0)
    assert len(boxes) == 3
    assert all(below.y1 <= above.y0 for below, above in itertools.pairwise(boxes))
