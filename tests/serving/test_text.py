"""Growing text against the text of all ids."""

import pytest

from malt_jax.checkpoints.checkpoint import StoredCheckpoint
from malt_jax.serving.text import GrowingText

TOKENIZER = StoredCheckpoint("tiny").tokenizer
TEXT = "Tom's café sold 12 * 7 = 84 cups — naïve 🚀🇫🇷! STOP here, and STOPPED there."


@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("stops", [(), ("absent",), ("ST", "TOP"), ("🇫🇷",), ("84 c", "sold 12 *")])
def test_pieces_are_the_text_before_the_first_stop(size: int, stops: tuple[str, ...]) -> None:
    ids = TOKENIZER.encode(TEXT)
    found = [TEXT.find(stop) for stop in stops if stop in TEXT]
    want = TEXT[: min(found)] if found else TEXT
    growing, pieces = GrowingText(TOKENIZER, stops), []
    for start in range(0, len(ids), size):
        pieces.append(growing.add(ids[start : start + size], last=start + size >= len(ids)))
        assert want.startswith("".join(pieces))
        if growing.stopped:
            break
    assert "".join(pieces) == growing.text == want
    assert growing.stopped == bool(found)
    # The ids end with the one that completes the stop text, however they are grouped.
    assert TOKENIZER.decode(growing.ids).startswith(want)
    if found:
        assert not any(stop in TOKENIZER.decode(growing.ids[:-1]) for stop in stops)


def test_text_that_may_begin_a_stop_is_held_back() -> None:
    growing = GrowingText(TOKENIZER, ["a stop"])
    assert growing.add(TOKENIZER.encode("this is a s"), last=False) == "this is "
    assert growing.add(TOKENIZER.encode("ong"), last=False) == "a song"


def test_unfinished_characters_are_held_back_until_the_end() -> None:
    ids = TOKENIZER.encode("🚀")
    assert len(ids) > 1
    growing = GrowingText(TOKENIZER)
    assert growing.add(ids[:-1], last=False) == ""
    assert growing.add([], last=True) == TOKENIZER.decode(ids[:-1])
