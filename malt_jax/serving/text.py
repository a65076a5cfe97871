"""The text of a completion while it grows, up to a stop text."""

from __future__ import annotations

from collections.abc import Sequence

from malt_jax.checkpoints.tokenizer import Tokenizer


class GrowingText:
    """Sampled ids as text that a client can show at once.

    A text is released when more ids cannot change it: an unfinished character is held back, and so
    is an end that may be the beginning of a stop text. The released parts, joined, are `text`.
    """

    def __init__(self, tokenizer: Tokenizer, stops: Sequence[str] = ()) -> None:
        self._tokenizer, self._stops = tokenizer, tuple(stops)
        self._released = 0
        self.ids: list[int] = []
        self.text = ""
        """All of it, without the stop text that ended it."""
        self.stopped = False
        """Whether a stop text has ended it."""

    def add(self, ids: Sequence[int], *, last: bool) -> str:
        """Adds ids up to the one that completes a stop text; returns what is released.

        last: no more ids follow, so nothing is held back.
        """
        # One by one where there are stops, so that the end does not depend on how ids are grouped.
        groups = [[id] for id in ids] if self._stops else [list(ids)]
        for group in groups:
            self.ids += group
            self.text = self._tokenizer.decode(self.ids)
            if found := [at for stop in self._stops if (at := self.text.find(stop)) >= 0]:
                self.text, self.stopped = self.text[: min(found)], True
                break
        end = len(self.text) if last or self.stopped else self._certain()
        released = self.text[self._released : end]
        self._released = max(end, self._released)
        return released

    def _certain(self) -> int:
        """Length of the text that more ids cannot change."""
        # An unfinished character decodes to a replacement mark.
        whole = self.text.rstrip("\ufffd")
        held = 0
        for stop in self._stops:
            for size in range(min(len(stop) - 1, len(whole)), held, -1):
                if whole.endswith(stop[:size]):
                    held = size
                    break
        return len(whole) - held
