"""The thread that decodes; other threads give jobs to it and cancel them."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from typing import Self

from malt_jax.sampling.completions import Finish
from malt_jax.serving.batch import Batch, Job, Ticket


class Engine:
    """Decodes jobs, in one batch for each model.

        with Engine(batches) as engine:
            ticket = engine.submit(job, deliver)

    Jobs of one model decode together; those without a free slot wait, in order. Unfinished jobs are
    dropped at the end of the block.
    """

    def __init__(self, batches: Sequence[Batch]) -> None:
        self._batches = tuple(batches)
        self._waiting: tuple[deque[Ticket], ...] = tuple(deque() for _ in batches)
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self.on_error: Callable[[], None] = lambda: None
        """Called, in the engine's thread, when an error has ended it."""
        self.error: BaseException | None = None
        """The error that ended the thread."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def submit(self, job: Job, deliver: Callable[[list[int], Finish | None], None]) -> Ticket:
        """Queues a job. `deliver` is called as `Ticket` says, in the engine's thread."""
        ticket = Ticket(job, deliver)
        with self._changed:
            if not self._closed:
                self._waiting[job.weights].append(ticket)
                self._changed.notify()
                return ticket
        deliver([], None)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Takes a job out of the queue or, after at most one chunk, out of the batch."""
        ticket.cancelled = True

    @property
    def tickets(self) -> list[Ticket]:
        """Jobs that decode or wait, those that were cancelled just now among them."""
        with self._changed:
            return self._tickets()

    def _tickets(self) -> list[Ticket]:
        running = [ticket for batch in self._batches for ticket in batch.tickets]
        return running + [ticket for waiting in self._waiting for ticket in waiting]

    def _run(self) -> None:
        try:
            while self._wait():
                for batch, waiting in zip(self._batches, self._waiting, strict=True):
                    if waiting or batch.tickets:
                        batch.advance(waiting)
        except BaseException as error:
            self.error = error
        with self._changed:
            self._closed = True
            dropped = self._tickets()
        for ticket in dropped:
            ticket.deliver([], None)
        if self.error is not None:
            self.on_error()

    def _wait(self) -> bool:
        """Waits for a job; False when the engine is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._tickets())
            return not self._closed
