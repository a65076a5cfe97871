"""Pieces of text, charts, and questions by their ids."""

import math

import pyarrow as pa
import pytest

from malt_jax.checkpoints.checkpoint import StoredCheckpoint
from malt_jax.tasks.base import Question
from malt_jax.viewer.charts import line_chart, points_over_calls
from malt_jax.viewer.completions import Pieces, rows
from malt_jax.viewer.source import _find


@pytest.mark.parametrize("text", ["", "75-7=68\nFinal Answer: 36", "naïve 🙂🙂 ½", " a  b"])
def test_pieces_give_the_text_with_one_piece_a_token(text: str) -> None:
    tokenizer = StoredCheckpoint("tiny").tokenizer
    ids = [*tokenizer.encode(text), tokenizer.stop_ids[0]]
    written = tokenizer.decode(ids)
    pieces = Pieces(tokenizer).split(ids, written)
    assert "".join(pieces) == written and len(pieces) == len(ids)
    assert tokenizer.pieces(ids)[-1] == "" or "🙂" in text


def test_a_character_of_several_tokens_comes_with_its_last_one() -> None:
    tokenizer = StoredCheckpoint("tiny").tokenizer
    ids = tokenizer.encode("🙂")
    assert len(ids) > 1
    assert tokenizer.pieces(ids) == [""] * (len(ids) - 1) + ["🙂"]
    # Decoded alone, each part of the character would be a replacement character.
    assert Pieces(tokenizer).split(ids, "🙂") == tokenizer.pieces(ids)


def test_a_text_that_is_not_that_of_its_ids_is_one_piece() -> None:
    tokenizer = StoredCheckpoint("tiny").tokenizer
    assert Pieces(tokenizer).split(tokenizer.encode("one"), "another") == ["another"]
    assert Pieces(None).split([1, 2], "text") == ["text"]


def test_costs_are_finite_whatever_a_file_holds() -> None:
    columns = {
        "text": ["x", None],
        "ids": pa.array([[1, 2, 3, 4], []], pa.list_(pa.int32())),
        "log_probabilities": pa.array(
            [[-0.5, math.nan, -math.inf, 0.25], []], pa.list_(pa.float32())
        ),
        "finish": ["length", "stop"],
        "question": [7, 8],
    }
    first, second = rows(pa.table(columns))
    assert (first["costs"], first["cut"], first["ids"]) == ([50, 0, 9999, 0], True, [1, 2, 3, 4])
    assert first["fields"] == {"question": 7}
    assert (second["text"], second["costs"], second["cut"]) == ("", [], False)


def test_a_line_chart_is_linear_between_round_ticks() -> None:
    chart = line_chart("loss", {"loss": [(1, 0.2), (2, math.nan), (3, 1.0)]}, "update")
    left, right, top, bottom = chart.frame
    (line,) = chart.lines
    assert [x for x, _ in line.points] == [left, right]
    labels = [tick.label for tick in chart.y_ticks]
    assert labels == ["0.2", "0.4", "0.6", "0.8", "1"]
    assert [point[1] for point in line.points] == pytest.approx([bottom, top])
    assert line.last == "1"
    heights = [tick.position for tick in chart.y_ticks]
    assert heights == pytest.approx([bottom + (top - bottom) * n / 4 for n in range(5)])


def test_charts_of_one_point_of_none_and_of_many() -> None:
    (line,) = line_chart("one", {"a": [(1, 0.0)]}, "update").lines
    assert all(map(math.isfinite, line.points[0]))
    assert line_chart("none", {"a": [(1, math.inf)]}, "update").lines == ()
    many = line_chart("many", {"a": [(float(x), float(x)) for x in range(100_000)]}, "update")
    assert len(many.lines[0].points) <= 301 and many.lines[0].last == "1e+05"


def test_systems_with_equal_calls_stand_side_by_side_within_the_frame() -> None:
    entries = [(f"s{i}", i % 7, 1 if i < 12 else 9, 50.0, (40.0, 60.0), "") for i in range(24)]
    chart = points_over_calls(entries, [str(look) for look in range(7)])
    places = [dot.x for dot in chart.dots]
    assert len(set(places)) == 24
    assert chart.frame[0] < min(places) and max(places) < chart.frame[1]
    assert all(dot.high < dot.y < dot.low for dot in chart.dots)


def test_questions_are_found_by_id_also_where_ids_have_gaps() -> None:
    questions = [Question(id, str(id), "") for id in (0, 1, 4, 9, 12)]
    assert [q and q.id for q in (_find(questions, id) for id in (0, 4, 9, 12))] == [0, 4, 9, 12]
    assert [_find(questions, id) for id in (2, 13, -1)] == [None] * 3
