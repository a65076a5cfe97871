"""The processes of a run, one a host: how they start, decide together, and end together.

Every process runs the same program over the same questions; arrays are divided by their shardings.
So the processes agree by construction, except where something from outside decides: what is on the
disk, a signal, an error. Those decisions go through `Processes`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import platform
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

from malt_jax.config import ProcessesConfig
from malt_jax.distributed import preemption
from malt_jax.distributed.channel import Channel, Member, meet
from malt_jax.distributed.cluster import Place, find_place
from malt_jax.errors import Stopped, UserError, outcome

logger = logging.getLogger(__name__)

T = TypeVar("T")

_GRACE = 3.0
"""Seconds that a process has to end by itself once another one is lost."""
_JAX_TIMEOUT = 100
"""Seconds after which JAX itself ends a process. Longer than it takes the channel to say why."""


@dataclasses.dataclass(frozen=True)
class Processes:
    """This process among those of its run. Without a channel it is alone.

    All processes call each method the same number of times, in the same order.
    """

    index: int = 0
    count: int = 1
    channel: Channel | None = None

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files and shows progress."""
        return self.index == 0

    def gather(self, name: str, value: Any) -> list[Any]:
        """The small JSON values that the processes give, in their order."""
        return [value] if self.channel is None else self.channel.gather(name, value)

    def barrier(self, name: str) -> None:
        """Waits until all processes are here."""
        self.gather(name, None)

    def any(self, name: str, value: bool) -> bool:
        """Whether the value is true in any process."""
        return any(self.gather(name, value))

    def first(self, name: str, make: Callable[[], T]) -> T:
        """What `make` returns in process 0, which alone calls it: a small JSON value.

        A UserError of it is raised in every process.
        """
        if self.channel is None:
            return make()
        value, problem = None, None
        if self.is_first:
            try:
                value = make()
            except UserError as error:
                problem = str(error)
        value, problem = self.gather(name, [value, problem])[0]
        if problem is not None:
            raise UserError(problem)
        return value

    def require_same(self, facts: Mapping[str, str]) -> None:
        """Raises UserError, in every process, when a fact is not the same in all of them."""
        everywhere = self.gather("facts", dict(facts))
        for name, wanted in everywhere[0].items():
            for index, those in enumerate(everywhere):
                if those.get(name) != wanted:
                    raise UserError(
                        f"{name}: {wanted} in process 0, but {those.get(name)} in process {index};"
                        " all processes must be given the same"
                    )

    def stop_if_asked(self) -> None:
        """Raises Stopped, in every process, when any of them has got SIGTERM."""
        if self.any("stop", preemption.requested()):
            raise Stopped


ALONE = Processes()


@contextlib.contextmanager
def together(config: ProcessesConfig, facts: Mapping[str, str]) -> Iterator[Processes]:
    """Starts JAX in all processes of the run, and ends them together.

    Comes before any computation of JAX's. facts: what must be the same everywhere, by name. When
    the block raises in one process, it says why, the others say so too, and all of them end; this
    context does not return then.

    Raises UserError when the processes cannot meet, or were not started alike.
    """
    with preemption.noticed():
        place = find_place(config)
        if place is None:
            yield ALONE
            return
        member = Member(place.index, place.count, facts)
        meeting = meet(
            place.coordinator,
            member,
            start_timeout=config.start_timeout,
            barrier_timeout=config.barrier_timeout,
        )
        these = Processes(place.index, place.count, meeting.channel)
        ending = _Ending(meeting.channel, place)
        meeting.channel.start(ending.because_lost)
        try:
            _initialize_jax(place, meeting.service)
            _log_with_index(place)
            yield these
            these.barrier("the end")
        except BaseException as error:
            ending.because_of(error)
        _shut_jax_down()
        meeting.channel.leave()
        ending.is_good()


def _initialize_jax(place: Place, service: str) -> None:
    import jax  # here, because commands without a model also use run directories

    # SIGTERM is ours; processes on CPUs have no collectives of their own.
    jax.config.update("jax_enable_preemption_service", False)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(
        service,
        place.count,
        place.index,
        local_device_ids=place.local_devices,
        cluster_detection_method="deactivate",
        initialization_timeout=45,
        heartbeat_timeout_seconds=_JAX_TIMEOUT,
        shutdown_timeout_seconds=60,
    )
    if (jax.process_index(), jax.process_count()) != (place.index, place.count):
        raise UserError(
            f"this was started as process {place.index} of {place.count}, but for its devices it is"
            f" process {jax.process_index()} of {jax.process_count()}: leave out processes.index"
            " and processes.count, so that they are taken from the machines"
        )


def _shut_jax_down() -> None:
    import jax

    jax.distributed.shutdown()


def _log_with_index(place: Place) -> None:
    for handler in logging.getLogger().handlers:
        handler.setFormatter(
            logging.Formatter(f"[{place.index}/{place.count}] %(levelname)s %(message)s")
        )
    logger.info("process %d of %d on %s", place.index, place.count, platform.node())


class _Ending:
    """How this process ends when not all of them end well: with one message and a status."""

    def __init__(self, channel: Channel, place: Place) -> None:
        self._channel = channel
        self._title = f"process {place.index} of {place.count} on {platform.node()}"
        self._once = threading.Lock()
        # Where process 0 dies at once, JAX's threads end this process before Python's can speak.
        # A shell waits for that on a pipe, and says what has happened.
        self._last_words = subprocess.Popen(
            ["sh", "-c", 'text=$(cat); [ -z "$text" ] || printf "%s\\n" "$text" >&2'],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        assert self._last_words.stdin is not None
        self._last_words.stdin.write(
            f"error: {self._title} was ended from outside, in the middle of its work. Either the"
            " system did it (out of memory?), or process 0 has died, on which JAX ends all"
            " others: see the logs of all processes; start the command again to go on".encode()
        )
        self._last_words.stdin.flush()

    def because_of(self, error: BaseException) -> None:
        """Ends this process because of an error in it, and tells the others."""
        text, status = outcome(error)
        lost = self._channel.lost
        if isinstance(error, Exception) and not isinstance(error, UserError | Stopped):
            # A collective fails when a process dies; then its death is what there is to say.
            lost = self._channel.wait_lost(_GRACE)
            if lost is not None:
                text, status = outcome(lost)
        with self._once:
            print(text, file=sys.stderr, flush=True)
            if lost is None and not isinstance(error, Stopped):
                self._channel.stop_all(_summary(error), status)
            else:
                self._channel.leave()
            self._exit(status)

    def because_lost(self) -> None:
        """Ends this process, wherever it is, unless it ends by itself."""
        threading.Event().wait(_GRACE)
        with self._once:
            assert self._channel.lost is not None
            text, status = outcome(self._channel.lost)
            print(text, file=sys.stderr, flush=True)
            self._channel.leave()
            self._exit(status)

    def is_good(self) -> None:
        self._last_words.kill()
        self._last_words.wait()

    def _exit(self, status: int) -> None:
        # The ordinary way out would wait for processes that are no longer there.
        self.is_good()
        sys.stdout.flush()
        logging.shutdown()
        os._exit(status)


def _summary(error: BaseException) -> str:
    if isinstance(error, UserError):
        return str(error)
    return f"{type(error).__name__}: {error}".rstrip(": ")
