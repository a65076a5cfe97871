"""One completion, from a job in the engine to text in the event loop."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Collection, Sequence
from typing import Literal

from malt_jax.checkpoints.tokenizer import Tokenizer
from malt_jax.sampling.completions import Finish
from malt_jax.serving.batch import Job
from malt_jax.serving.engine import Engine
from malt_jax.serving.requests import ApiError
from malt_jax.serving.text import GrowingText


class Turn:
    """A completion while it is drawn.

    job:      what is drawn.
    stops:    texts that end it; they are not part of it.
    stop_ids: tokens that end it, besides those that end every completion.
    """

    def __init__(
        self,
        job: Job,
        tokenizer: Tokenizer,
        stops: Sequence[str] = (),
        stop_ids: Collection[int] = (),
    ) -> None:
        self.job = job
        self.finish: Literal["stop", "length"] | None = None
        """Why it ended; None while it grows."""
        self._text = GrowingText(tokenizer, stops)
        self._stop_ids = frozenset(stop_ids)

    @property
    def text(self) -> str:
        return self._text.text

    @property
    def ids(self) -> list[int]:
        """The sampled ids, the stop token included."""
        return self._text.ids

    async def pieces(self, engine: Engine) -> AsyncGenerator[str]:
        """Draws the completion; yields its text, piece by piece.

        A caller that stops early closes the generator: then the job leaves the batch.

        Raises ApiError when the engine has stopped.
        """
        loop = asyncio.get_running_loop()
        arrived: asyncio.Queue[tuple[list[int], Finish | None]] = asyncio.Queue()

        def deliver(ids: list[int], finish: Finish | None) -> None:
            # The loop is closed when the server stops before the engine does.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(arrived.put_nowait, (ids, finish))

        ticket = engine.submit(self.job, deliver)
        try:
            while self.finish is None:
                ids, finish = await arrived.get()
                if finish is None:
                    raise ApiError("the server has stopped", 503)
                if piece := self._add(ids, finish):
                    yield piece
        finally:
            engine.cancel(ticket)

    def _add(self, ids: list[int], finish: Finish) -> str:
        ended = next((n for n, id in enumerate(ids, start=1) if id in self._stop_ids), None)
        if ended is not None:
            ids, finish = ids[:ended], Finish.STOP
        piece = self._text.add(ids, last=finish != Finish.RUNNING)
        if self._text.stopped or finish == Finish.STOP:
            self.finish = "stop"
        elif finish == Finish.LENGTH:
            self.finish = "length"
        return piece
