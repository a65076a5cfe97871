"""The processes of a run, one a host: they start, agree and end together.

All processes run the same program on the same questions. What comes from outside (files, signals,
clocks, errors) is agreed here. All processes call these functions the same number of times, in the
same order; in a run of one process they do nothing.

Values travel as JSON through the key-value store of JAX's coordination service, which process 0
runs and which ends all processes when one dies. Unlike the collectives of `multihost_utils`, it
needs no devices, and its barriers have time limits.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import logging
import os
import platform
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from malt_jax.config import ProcessesConfig
from malt_jax.errors import ProcessLost, Stopped, UserError, outcome

logger = logging.getLogger(__name__)

T = TypeVar("T")

_END = "malt_jax/end"
"""The key of the failure that ends all processes; "" once the run is finished."""
_GRACE = 3.0
"""Seconds in which a process may end with its own message after another one has failed."""
_FAREWELL = 10.0
"""Seconds that a failed process waits for the others to know."""


@dataclasses.dataclass(frozen=True)
class Member:
    """One process of a run of several."""

    coordinator: str
    """HOST:PORT at which process 0 waits for the others."""
    count: int
    index: int
    local_devices: Sequence[int] | None = None
    """The accelerators of this host that are this process's; None: all."""


@dataclasses.dataclass(frozen=True)
class _Run:
    """This process's part in a run of several."""

    member: Member
    barrier_timeout: float
    client: Any
    """Of JAX's coordination service. JAX has no public name for it."""
    calls: Iterator[int] = dataclasses.field(default_factory=itertools.count)
    stop_calls: Iterator[int] = dataclasses.field(default_factory=itertools.count)

    def meet(self, barrier: str, purpose: str, seconds: float) -> None:
        """Waits for all processes. Raises ProcessLost, which names those that do not come."""
        try:
            self.client.wait_at_barrier(barrier, round(seconds * 1000))
        except RuntimeError as error:
            # JAX lists the missing ones, one a line.
            missing = re.findall(r"^\d+$", str(error), re.MULTILINE)
            absent = f"process {', '.join(missing)}" if missing else f"the others ({error})"
            raise ProcessLost(f"no answer from {absent} ({purpose}): dead or late", 1) from error


_run: _Run | None = None
_sigterm = threading.Event()
"""SIGTERM has come to a process that is alone; in a run of several JAX handles it."""
_ending = threading.Lock()
"""Held by the thread that ends this process after a failure."""


def process_count() -> int:
    """The number of processes of the run."""
    return _run.member.count if _run else 1


def is_coordinator() -> bool:
    """Whether this is process 0, which writes files and shows progress."""
    return _run is None or _run.member.index == 0


def gather(value: T, purpose: str) -> list[T]:
    """The small JSON values that all processes give, in their order.

    Raises ProcessLost, which says `purpose`, when a process does not come within
    `processes.barrier_timeout`.
    """
    if _run is None:
        return [value]
    number, own, client = next(_run.calls), f"{_run.member.index:06}", _run.client
    client.key_value_set(f"malt_jax/{number}/{own}", json.dumps([purpose, value]))
    _run.meet(f"malt_jax/{number}", purpose, _run.barrier_timeout)
    found = sorted(client.key_value_dir_get(f"malt_jax/{number}/"))
    purposes, values = zip(*(json.loads(text) for _, text in found), strict=True)
    if len(different := sorted(set(purposes))) > 1:
        raise RuntimeError(f"the processes run different code: {' and '.join(different)}")
    # All processes are here, so all have read the values of the call before.
    client.key_value_delete(f"malt_jax/{number - 1}/{own}")
    return list(values)


def barrier(purpose: str) -> None:
    """Waits until all processes are here."""
    gather(None, purpose)


def broadcast(make: Callable[[], T]) -> T:
    """The small JSON value that `make` returns in process 0, which alone calls it.

    Its UserError is raised in every process.
    """
    if _run is None:
        return make()
    answer: tuple[Any, str | None] = None, None
    if is_coordinator():
        try:
            answer = make(), None
        except UserError as error:
            answer = None, str(error)
    value, problem = gather(answer, make.__qualname__)[0]
    if problem is not None:
        raise UserError(problem)
    return value


def require_equal(facts: Mapping[str, str]) -> None:
    """Raises UserError, in every process, when a fact is not the same in all of them."""
    everywhere = gather(dict(facts), "facts")
    problems = []
    for name, value in everywhere[0].items():
        other = next((i for i, those in enumerate(everywhere) if those.get(name) != value), 0)
        if other:
            found = everywhere[other].get(name)
            problems.append(f"\n  {name} is {value} in process 0 and {found} in process {other}")
    if problems:
        raise UserError(f"all processes must be given the same, but:{''.join(problems[:20])}")


def stop_requested() -> bool:
    """Whether SIGTERM has come to any process: the same answer in all of them.

    It announces that the machine is taken away: save, then raise `Stopped` in all processes.
    """
    if _run is None:
        return _sigterm.is_set()
    from jax.experimental import multihost_utils

    return multihost_utils.reached_preemption_sync_point(next(_run.stop_calls))


@contextlib.contextmanager
def joined(config: ProcessesConfig, facts: Mapping[str, str]) -> Iterator[None]:
    """Joins the other processes of the run, and ends together with them.

    Enter it before any JAX computation. facts: what must be the same everywhere, by name. When the
    block raises in one process, that process says why, the others repeat it, and all of them end
    there and then. Only `Stopped`, which all processes raise together, leaves the block.

    Raises UserError when options are missing or the port is taken.
    """
    global _run
    member = find_member(config)
    previous = signal.getsignal(signal.SIGTERM)
    if member is None:
        _sigterm.clear()
        signal.signal(signal.SIGTERM, _note)
        try:
            yield
        finally:
            signal.signal(signal.SIGTERM, previous)
        return
    _run = run = _Run(member, config.barrier_timeout, _initialize_jax(member, config))
    watch = threading.Thread(target=_watch, args=(run,), daemon=True)
    watch.start()
    stopped = None
    try:
        _agree(member, facts)
        try:
            yield
        except Stopped as error:
            stopped = error
        barrier("the end")
        if is_coordinator():
            run.client.key_value_set(_END, "")
    except BaseException as error:
        _leave(run, error)
    watch.join()
    _run = None
    import jax

    jax.distributed.shutdown()
    signal.signal(signal.SIGTERM, previous)
    if stopped is not None:
        raise stopped


def _note(*_: object) -> None:
    """The first SIGTERM sets a flag; a second one ends the process as usual."""
    _sigterm.set()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def find_member(config: ProcessesConfig) -> Member | None:
    """This process's part in the run; None when it is alone. Options win over the cluster.

    Raises UserError when options are missing or contradict one another.
    """
    names = ("coordinator", "count", "index")
    given = {name: value for name in names if (value := getattr(config, name)) is not None}
    member = Member("", 1, 0)
    if len(given) < len(names):
        found = _in_cluster(config.start_timeout) if config.cluster == "auto" else None
        if found is None and given:
            missing = [f"processes.{name}" for name in names if name not in given]
            raise UserError(f"several processes need {' and '.join(missing)} as well")
        member = found or member
    member = dataclasses.replace(member, **given)
    if member.index >= member.count:
        raise UserError(
            f"processes.index is {member.index}, but the indices of {member.count} processes are 0"
            f" to {member.count - 1}"
        )
    if member.count > 1 and not re.fullmatch(r".+:\d+", member.coordinator):
        raise UserError(f"processes.coordinator is {member.coordinator!r}, but must be HOST:PORT")
    return member if member.count > 1 else None


def _in_cluster(timeout: float) -> Member | None:
    """This process's part in the SLURM step or on the TPU pod that it was started on."""
    # jax.distributed.initialize asks them too; they have no public names.
    from jax._src.clusters import GceTpuCluster, GkeTpuCluster, SlurmCluster

    clusters = (SlurmCluster, GkeTpuCluster, GceTpuCluster)
    cluster = next((cluster for cluster in clusters if cluster.is_env_present()), None)
    if cluster is None or cluster.get_process_count() == 1:
        return None
    port = os.environ.get("JAX_COORDINATOR_PORT")
    address = cluster.get_coordinator_address(round(timeout), port)
    local = cluster.get_local_process_id()
    # With one task a node, a task has all of the node's devices; JAX would give it the first one.
    one = re.fullmatch(r"1(\(x\d+\))?", os.environ.get("SLURM_TASKS_PER_NODE", ""))
    devices = None if local is None or one else (local,)
    return Member(address, cluster.get_process_count(), cluster.get_process_id(), devices)


def _initialize_jax(member: Member, config: ProcessesConfig) -> Any:
    """Starts JAX's coordination service in process 0 and connects to it; gives the client."""
    import jax  # here, because commands without a model import this module too
    from jax._src import distributed

    title = f"process {member.index} of {member.count} on {platform.node()}"
    # By default the service listens on all interfaces.
    bind = os.environ.get("JAX_COORDINATOR_BIND_ADDRESS") or member.coordinator
    if member.index == 0:
        _require_free(bind, title)
    logger.info("%s, pid %d, waits for the others at %s", title, os.getpid(), member.coordinator)

    def give_up() -> None:
        print(
            f"error: {title} waited {config.start_timeout:g} s (processes.start_timeout), but not"
            f" all processes came to {member.coordinator}. Start the command on every host, each"
            " with its own processes.index; they must reach that port of process 0's host. To run"
            " alone: processes.cluster=none",
            file=sys.stderr,
        )
        os._exit(2)

    # JAX's own limit aborts the process with a stack trace.
    timer = threading.Timer(config.start_timeout, give_up)
    timer.start()
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
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
            coordinator_bind_address=bind,
        )
    finally:
        timer.cancel()
    return distributed.global_state.client


def _require_free(address: str, title: str) -> None:
    """Raises UserError when this process cannot listen at an address. JAX might crash."""
    host, _, port = address.rpartition(":")
    try:
        family, *_, place = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)[0]
        socket.create_server(place[:2], family=family).close()
        logger.info("process 0 listens at %s, port %s", place[0], port)  # the name's address here
    except OSError as error:
        raise UserError(
            f"{title} cannot listen at {address} ({error.strerror}): give processes.coordinator"
            " another port, or JAX_COORDINATOR_BIND_ADDRESS an address of this host"
        ) from None


def _agree(member: Member, facts: Mapping[str, str]) -> None:
    """Tells the processes who the others are, compares their facts, and has them compute once."""
    import jax
    from jax.experimental import multihost_utils

    index, count = member.index, member.count
    for handler in logging.getLogger().handlers:
        handler.setFormatter(logging.Formatter(f"[{index}/{count}] %(levelname)s %(message)s"))
    hosts = gather(f"on {platform.node()} (pid {os.getpid()})", "start")
    logger.info(
        "processes: %s. If JAX ends this process because a task is unhealthy, the process with"
        " that number has died: see its log",
        ", ".join(f"{other} {host}" for other, host in enumerate(hosts)),
    )
    require_equal({"processes.count": str(count), **facts})
    if jax.process_index() != index or jax.process_count() != count:
        raise UserError(
            f"process {index} of {count} is process {jax.process_index()} of {jax.process_count()}"
            " by its devices: leave out processes.index and processes.count"
        )
    # Gloo lets processes wait for 30 s at their first collective. Here they come at once.
    multihost_utils.sync_global_devices("malt_jax: start")


def _watch(run: _Run) -> None:
    """Ends this process after the failure of another one, even within a collective."""
    with contextlib.suppress(RuntimeError):  # the service is gone, so JAX ends this process
        if failure := run.client.blocking_key_value_get(_END, 2**31 - 1):
            time.sleep(_GRACE)
            _leave(run, ProcessLost(*json.loads(failure)))


def _leave(run: _Run, error: BaseException) -> NoReturn:
    """Says why this process ends, waits for the others to know, and ends it."""
    _ending.acquire()
    text, status = outcome(error)
    print(text, file=sys.stderr, flush=True)
    reason = str(error) if isinstance(error, UserError) else text.rpartition("\n")[2]
    with contextlib.suppress(RuntimeError):  # where another one has failed first
        failure = [f"process {run.member.index} stopped: {reason}", status]
        run.client.key_value_set(_END, json.dumps(failure))
    try:
        run.meet("malt_jax/left", "the end", _FAREWELL)
    except ProcessLost as lost:
        print(lost, file=sys.stderr, flush=True)
    if run.member.index == 0:
        time.sleep(1.0)  # its end aborts those that are still there
    sys.stdout.flush()
    logging.shutdown()
    os._exit(status)  # the ordinary end would wait for processes that are gone
