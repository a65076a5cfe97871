"""The processes of a run, one a host: they start, agree and end together.

Every process runs the same program on the same questions; arrays are divided by their shardings.
So the processes agree by construction, except where something from outside decides: what is on
the disk, a signal, a clock, an error. Those decisions go through the functions of this module. All
processes call them the same number of times, in the same order. In a run of one process they do
nothing.

Messages are small JSON values in the key-value store of JAX's coordination service, which process
0 runs, and which also ends all processes when one stops sending heartbeats. The store needs
neither devices nor compiled programs, and its barriers have time limits; the collectives of
jax.experimental.multihost_utils have neither.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import platform
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from types import FrameType
from typing import Any, NoReturn, TypeVar

from malt_jax.config import ProcessesConfig
from malt_jax.distributed.cluster import Member, find_member
from malt_jax.errors import ProcessLost, Stopped, UserError, outcome

logger = logging.getLogger(__name__)

T = TypeVar("T")

_END = "malt_jax/end"
"""Key of the reason for which all processes end; empty when the run is finished."""
_GRACE = 3.0
"""Seconds that a process has to end with a message of its own once another one has failed."""
_FAREWELL = 10.0
"""Seconds that a process waits for the others to learn that it has failed."""


@dataclasses.dataclass
class _Membership:
    """This process's part in a run of several."""

    member: Member
    barrier_timeout: float
    client: Any
    """The client of JAX's coordination service. JAX has no public name for it."""
    hosts: list[str] = dataclasses.field(default_factory=list)
    """Host and process id of every process."""
    calls: int = 0
    stop_calls: int = 0

    def title(self, index: int) -> str:
        where = f" ({self.hosts[index]})" if index < len(self.hosts) else ""
        return f"process {index}{where}"


_membership: _Membership | None = None
_sigterm = threading.Event()
"""SIGTERM has come to a process that is alone. With several, JAX takes notice of it."""
_ending = threading.Lock()
"""Held by the thread that ends this process after a failure."""


def process_index() -> int:
    """This process's number in the run, from 0."""
    return _membership.member.index if _membership else 0


def process_count() -> int:
    """Number of processes of the run."""
    return _membership.member.count if _membership else 1


def is_coordinator() -> bool:
    """Whether this is process 0, which writes files and shows progress."""
    return process_index() == 0


def gather(value: T, name: str) -> list[T]:
    """The small JSON values that the processes give, in their order.

    name: what the processes wait for, in the message when one does not come within
        processes.barrier_timeout. Then ProcessLost is raised.
    """
    if (here := _membership) is None:
        return [value]
    here.calls += 1
    folder = f"malt_jax/{here.calls}/"
    here.client.key_value_set(f"{folder}{here.member.index:06}", json.dumps([name, value]))
    try:
        here.client.wait_at_barrier(folder, round(here.barrier_timeout * 1000))
    except _jax_error() as error:
        raise ProcessLost(_missing(here, folder, name, error), 1) from error
    answers = [json.loads(text) for _, text in sorted(here.client.key_value_dir_get(folder))]
    if len(names := {name for name, _ in answers}) > 1:
        raise RuntimeError(f"the processes run different code: {' and '.join(sorted(names))}")
    # All have come this far, so all have read the values of the call before.
    here.client.key_value_delete(f"malt_jax/{here.calls - 1}/{here.member.index:06}")
    return [value for _, value in answers]


def barrier(name: str) -> None:
    """Waits until all processes are here."""
    gather(None, name)


def broadcast(make: Callable[[], T]) -> T:
    """What `make` returns in process 0, which alone calls it: a small JSON value.

    A UserError of it is raised in every process.
    """
    if _membership is None:
        return make()
    answer: dict[str, Any] = {}
    if is_coordinator():
        try:
            answer["value"] = make()
        except UserError as error:
            answer["problem"] = str(error)
    answer = gather(answer, make.__qualname__)[0]
    if "problem" in answer:
        raise UserError(answer["problem"])
    return answer["value"]


def require_equal(facts: Mapping[str, str]) -> None:
    """Raises UserError, in every process, when a fact is not the same in all of them."""
    everywhere = gather(dict(facts), "facts")
    problems = []
    for name in dict.fromkeys(name for those in everywhere for name in those):
        values = [those.get(name, "(absent)") for those in everywhere]
        # One line a fact, however many processes differ.
        other = next((i for i, value in enumerate(values) if value != values[0]), None)
        if other is not None and _membership is not None:
            first, second = _membership.title(0), _membership.title(other)
            problems.append(f"{name} is {values[0]} in {first} and {values[other]} in {second}")
    if problems:
        raise UserError(
            "all processes must be given the same, but:\n  " + "\n  ".join(problems[:20])
        )


def stop_requested() -> bool:
    """Whether SIGTERM has come to any process: the same answer in all of them.

    It announces that a machine is taken away. Raise `Stopped` in all processes after that.
    """
    if _membership is None:
        return _sigterm.is_set()
    from jax.experimental import multihost_utils

    _membership.stop_calls += 1
    return multihost_utils.reached_preemption_sync_point(_membership.stop_calls)


@contextlib.contextmanager
def joined(config: ProcessesConfig, facts: Mapping[str, str]) -> Iterator[None]:
    """Joins the other processes of the run, and ends together with them.

    Comes before any computation of JAX's. facts: what must be the same everywhere, by name. When
    the block raises in one process, that process says why, the others say so too, and all of them
    end; this context does not return then. It does for `Stopped`, which all processes raise.

    Raises UserError when options are missing, when the processes do not meet, and when facts
    differ.
    """
    global _membership
    member = find_member(config)
    if member is None:
        with _sigterm_noted():
            yield
        return
    client = _initialize_jax(member, config)
    previous = signal.getsignal(signal.SIGTERM)
    _membership = here = _Membership(member, config.barrier_timeout, client)
    watch = threading.Thread(target=_watch, args=(here,), name="malt-processes", daemon=True)
    watch.start()
    stopped = None
    try:
        _agree(here, facts)
        try:
            yield
        except Stopped as error:
            stopped = error
        barrier("the end")
        if is_coordinator():
            client.key_value_set(_END, "")
    except BaseException as error:
        _end(here, error)
    watch.join()
    _shut_jax_down()
    _membership = None
    signal.signal(signal.SIGTERM, previous)
    if stopped is not None:
        raise stopped


def _initialize_jax(member: Member, config: ProcessesConfig) -> Any:
    """Starts JAX's coordination service in process 0, and connects to it."""
    import jax  # here, because commands without a model also use run directories
    from jax._src import distributed

    title = f"process {member.index} of {member.count} on {platform.node()}"
    # CPUs have no collectives of their own.
    jax.config.update("jax_cpu_collectives_implementation", "gloo")

    def give_up() -> None:
        print(
            f"error: {title} has waited {config.start_timeout:g} s"
            f" (processes.start_timeout), but not all processes have met at {member.coordinator}."
            " Start the command on every host, each with its own processes.index; the hosts must"
            " reach that port of process 0's host. To run alone: processes.cluster=none",
            file=sys.stderr,
            flush=True,
        )
        os._exit(2)

    logger.info("%s, pid %d; process 0 is at %s", title, os.getpid(), member.coordinator)
    # JAX itself would end this process without a word about options.
    timer = threading.Timer(config.start_timeout, give_up)
    timer.start()
    try:
        jax.distributed.initialize(
            member.coordinator,
            member.count,
            member.index,
            local_device_ids=member.local_devices,
            cluster_detection_method="deactivate",
            initialization_timeout=round(config.start_timeout) + 60,
            heartbeat_timeout_seconds=round(config.heartbeat_timeout),
            shutdown_timeout_seconds=60,
            coordinator_bind_address=_bind_address(member),
        )
    except _jax_error() as error:
        raise UserError(
            f"{title} cannot listen at {_bind_address(member)} ({error}): give"
            " processes.coordinator another port, or the variable JAX_COORDINATOR_BIND_ADDRESS an"
            " address of this host"
        ) from None
    finally:
        timer.cancel()
    for handler in logging.getLogger().handlers:
        form = f"[{member.index}/{member.count}] %(levelname)s %(message)s"
        handler.setFormatter(logging.Formatter(form))
    return distributed.global_state.client


def _bind_address(member: Member) -> str:
    """The service listens at the address that was named, not on all interfaces as by default."""
    return os.environ.get("JAX_COORDINATOR_BIND_ADDRESS") or member.coordinator


def _agree(here: _Membership, facts: Mapping[str, str]) -> None:
    """Tells the processes from each other, compares their facts, and makes them compute once."""
    import jax
    from jax.experimental import multihost_utils

    here.hosts = gather(f"{platform.node()}, pid {os.getpid()}", "start")
    logger.info(
        "processes: %s. If JAX ends this process because a task is unhealthy, that process has"
        " died: see its log",
        ", ".join(f"{index} on {host}" for index, host in enumerate(here.hosts)),
    )
    require_equal({"processes.count": str(here.member.count), **facts})
    found = jax.process_index(), jax.process_count()
    if found != (here.member.index, here.member.count):
        raise UserError(
            f"this was started as process {here.member.index} of {here.member.count}, but for its"
            f" devices it is process {found[0]} of {found[1]}: leave out processes.index and"
            " processes.count, so that they are taken from the machines"
        )
    # Gloo gives processes 30 s to meet at the first collective. Here they come at once.
    multihost_utils.sync_global_devices("malt_jax: start")


def _watch(here: _Membership) -> None:
    """Ends this process when another one has failed, wherever the main thread is."""
    while True:
        try:
            reason = here.client.blocking_key_value_get(_END, 3_600_000)
            break
        except _jax_error() as error:
            if "DEADLINE_EXCEEDED" not in str(error):
                return  # the service is gone, and JAX ends this process
    if reason:
        text, status = json.loads(reason)
        threading.Event().wait(_GRACE)
        _leave(here, ProcessLost(text, status))


def _end(here: _Membership, error: BaseException) -> NoReturn:
    """Ends this process because of an error in it, and tells the others."""
    text, status = outcome(error)
    summary = str(error) if isinstance(error, UserError) else text.rpartition("\n")[2]
    reason = json.dumps([f"{here.title(here.member.index)} stopped: {summary}", status])
    with contextlib.suppress(_jax_error()):  # another one has failed first
        here.client.key_value_set(_END, reason)
    _leave(here, error)


def _leave(here: _Membership, error: BaseException) -> NoReturn:
    """Says why this process ends, waits for the others to know, and ends it."""
    _ending.acquire()
    text, status = outcome(error)
    print(text, file=sys.stderr, flush=True)
    folder = "malt_jax/left/"
    try:
        here.client.key_value_set(f"{folder}{here.member.index:06}", "")
        here.client.wait_at_barrier(folder, round(_FAREWELL * 1000))
    except _jax_error() as problem:
        print(_missing(here, folder, "the end", problem), file=sys.stderr, flush=True)
    if is_coordinator():
        # JAX's service ends with this process, and aborts those that are still there.
        threading.Event().wait(1.0)
    sys.stdout.flush()
    logging.shutdown()
    # The ordinary way out would wait for processes that are no longer there.
    os._exit(status)


def _missing(here: _Membership, folder: str, name: str, error: Exception) -> str:
    """Names the processes that have not come to a barrier."""
    try:
        came = {int(key.rpartition("/")[2]) for key, _ in here.client.key_value_dir_get(folder)}
    except _jax_error():
        return f"process 0 does not answer: it has died or cannot be reached ({error})"
    missing = [here.title(i) for i in range(here.member.count) if i not in came]
    return f"no answer from {', '.join(missing[:20])} ({name}): it has died, hangs or is late"


def _shut_jax_down() -> None:
    import jax

    jax.distributed.shutdown()


def _jax_error() -> type[Exception]:
    import jax

    return jax.errors.JaxRuntimeError


@contextlib.contextmanager
def _sigterm_noted() -> Iterator[None]:
    """Within the block the first SIGTERM sets a flag; a second one ends the process as usual.

    Python takes signals in its main thread alone; in another one nothing is changed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    _sigterm.clear()

    def note(number: int, frame: FrameType | None) -> None:
        _sigterm.set()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    previous = signal.signal(signal.SIGTERM, note)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)
