"""Plots are drawn for the data there is, are repeatable, and take any names."""

import itertools
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from malt_jax.report.plots import figures, write_plots


def names(files: list[Path]) -> set[str]:
    return {file.stem for file in files}


def drawn_texts(figure: Figure) -> list[Text]:
    """All texts of a figure but the labels of ticks outside an axis's limits."""
    left_out = {
        tick.label1
        for axes in figure.axes
        for axis in (axes.xaxis, axes.yaxis)
        for tick in axis.get_major_ticks()
        if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval())
    }
    texts = figure.findobj(Text)
    return [t for t in texts if t.get_text() and t.get_visible() and t not in left_out]


def only(content: dict[str, Any], *views: str) -> dict[str, Any]:
    """The content without the views that are not named, and with two systems."""
    dropped = {"turns", "transitions", "groups"} - set(views)
    kept = {field: value for field, value in content.items() if field not in dropped}
    kept["systems"] = {name: content["systems"][name] for name in ("sa", "malt+mv")}
    return kept


def test_every_view_is_drawn_as_png_and_svg(content: dict[str, Any], tmp_path: Path):
    files = write_plots(content, tmp_path / "plots")
    assert sorted(files) == sorted((tmp_path / "plots").iterdir())
    assert names(files) == {
        "accuracy-against-calls",
        "ablations",
        "accuracy-after-each-role",
        "changed-answers",
        "accuracy-by-level",
        "accuracy-by-subject",
    }
    for file in files:
        if file.suffix == ".png":
            with Image.open(file) as image:
                assert image.size[0] == 1152
                assert len(image.convert("RGB").getcolors(1 << 20) or ()) > 50
        else:
            assert ElementTree.parse(file).getroot().tag.endswith("svg")


def test_no_text_covers_another_or_leaves_the_figure(content: dict[str, Any]):
    # Four systems with the same accuracies and calls.
    for name in ("sa+mv@9", "ma+mv", "star-ma+mv"):
        content["systems"][name] = content["systems"]["malt+mv"]
        content["turns"][name] = content["turns"]["malt+mv"]
    for name, figure in figures(content):
        canvas = FigureCanvasAgg(figure)
        canvas.draw()
        boxes = [text.get_window_extent(canvas.get_renderer()) for text in drawn_texts(figure)]
        assert len(boxes) > 8
        for box in boxes:
            assert figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1, name
            assert figure.bbox.y0 <= box.y0 and box.y1 <= figure.bbox.y1, name
        for one, other in itertools.combinations(boxes, 2):
            assert not one.overlaps(other), name


def test_equal_content_gives_equal_bytes_whatever_the_readers_settings(
    content: dict[str, Any], tmp_path: Path
):
    content = only(content, "transitions")
    before = dict(matplotlib.rcParams)
    first = [file.read_bytes() for file in write_plots(content, tmp_path / "a")]
    with matplotlib.rc_context({"font.size": 30, "axes.grid": False, "svg.hashsalt": None}):
        second = [file.read_bytes() for file in write_plots(content, tmp_path / "b")]
    assert first == second
    assert dict(matplotlib.rcParams) == before
    assert not any(b"<dc:date>" in drawn for drawn in first)


def test_what_is_not_there_is_not_drawn(content: dict[str, Any], tmp_path: Path):
    assert names(write_plots(only(content), tmp_path)) == {"accuracy-against-calls"}


def test_a_single_system_that_is_never_correct(content: dict[str, Any], tmp_path: Path):
    content = only(content)
    content["systems"] = {"sa": {**content["systems"]["sa"], "accuracy": 0.0, "ci95": [0.0, 0.0]}}
    assert len(write_plots(content, tmp_path)) == 2


@pytest.mark.filterwarnings("error")
def test_names_are_no_markup(content: dict[str, Any], tmp_path: Path):
    content = only(content, "groups")
    entry = content["groups"]["level"]["Level 1"]
    content["groups"] = {"../$x": {"50% of $y_{": entry, "<b>\n&" * 20: entry}}
    content["model"] = "a/$long$/path_" * 20
    files = write_plots(content, tmp_path)
    assert names(files) == {"accuracy-against-calls", "accuracy-by-x"}
    assert {file.parent for file in files} == {tmp_path}
