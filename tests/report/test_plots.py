"""Plots are drawn for what is there, alike every time, and whatever things are called."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import matplotlib
import pytest
from PIL import Image

from malt_jax.report.plots import write_plots


def names(files: list[Path]) -> set[str]:
    return {file.stem for file in files}


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


def test_a_single_system_that_is_never_right(content: dict[str, Any], tmp_path: Path):
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
