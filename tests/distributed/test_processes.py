"""Real processes over gloo that start, agree, and end together; no model.

Run as a program, this file is one of those processes.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

import jax
import numpy as np
import pytest

from malt_jax.command import command
from malt_jax.config import ProcessesConfig, load_config
from malt_jax.distributed import processes
from malt_jax.distributed.processes import (
    barrier,
    broadcast,
    gather,
    is_coordinator,
    joined,
    process_count,
    require_equal,
    stop_requested,
)
from malt_jax.errors import Stopped, UserError
from tests.distributed.several import Ended, start, wait


def main() -> None:
    action, *options = sys.argv[1:]
    config = load_config(None, options)
    with joined(config.processes, {"seed": str(config.seed)}):
        index = jax.process_index()
        if action == "later" and index == 1:
            time.sleep(35)  # longer than Gloo waits at the first collective
        if action == "apart":
            barrier("a" if index == 0 else "b")
        if action == "absent":
            barrier("a") if index == 0 else time.sleep(60)
        compute(index)
        assert (process_count(), is_coordinator()) == (2, index == 0)
        assert broadcast(lambda: [jax.process_index(), "x" * 100_000]) == [0, "x" * 100_000]
        assert gather(index, "indices") == [0, 1]
        if action == "refuse":
            broadcast(refuse)
        elif action == "fail" and index == 1:
            raise ValueError("a mistake")
        elif action == "hang" and index == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        elif action == "hang":
            time.sleep(60)  # as a collective that waits for ever
        elif action in ("kill-0", "kill-1") and index == int(action[-1]):
            os.kill(os.getpid(), signal.SIGKILL)
        elif action == "preempt" and index == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        steps = 0
        while action not in ("end", "later"):  # as a run that computes
            steps += 1
            if stop_requested():
                raise Stopped(f"after {steps} steps")
            compute(index)
    print("the end", index)


def compute(index: int) -> None:
    from jax.experimental import multihost_utils

    assert multihost_utils.process_allgather(np.int32(index)).tolist() == [0, 1]


def refuse() -> None:
    raise UserError("there is no questions.jsonl")


def run(action: str, own: Sequence[Sequence[str]] = (), *options: str) -> list[Ended]:
    return wait(start([__file__, action, *options], 2, own), 100)


def last(ended: Ended) -> str:
    return ended.errors.splitlines()[-1]


@pytest.fixture(scope="module")
def late() -> list[subprocess.Popen[str]]:
    """Two processes, of which one comes late. They wait while other tests run."""
    return start([__file__, "later"], 2)


@pytest.mark.slow
def test_processes_end_together(late: list[subprocess.Popen[str]]) -> None:
    require_the_end(run("end"))


def require_the_end(processes: Sequence[Ended]) -> None:
    for index, ended in enumerate(processes):
        assert ended.status == 0, ended.errors
        assert ended.output.endswith(f"the end {index}\n")
        assert f"[{index}/2] INFO processes: 0 on " in ended.errors


@pytest.mark.slow
def test_what_process_0_refuses_ends_all_with_its_message() -> None:
    for ended in run("refuse"):
        assert ended.status == 2 and last(ended) == "error: there is no questions.jsonl"


@pytest.mark.slow
def test_an_error_in_one_process_ends_the_others_which_say_so() -> None:
    other, failing = run("fail")
    assert (failing.status, last(failing)) == (1, "ValueError: a mistake")
    assert other.status == 1
    assert "error: process 1 stopped: " in last(other)
    assert "stopped: ValueError: a mistake; this process stops too" in last(other)


@pytest.mark.slow
def test_processes_that_have_come_apart_are_told_so() -> None:
    for ended in run("apart"):
        assert ended.status == 1 and "different code: a and b" in ended.errors


@pytest.mark.slow
def test_a_process_that_comes_too_late_is_named() -> None:
    first, second = run("absent", (), "processes.barrier_timeout=2")
    assert first.status == second.status == 1
    for ended in (first, second):
        assert "no answer from process 1 (a)" in ended.errors


@pytest.mark.slow
def test_a_process_that_dies_within_a_collective_ends_the_others() -> None:
    other, killed = run("kill-1")
    assert killed.status == -signal.SIGKILL
    # Whether Gloo or JAX's coordination service notices first is open.
    assert other.status in (1, -signal.SIGABRT)
    assert "no answer from process 1 (" in other.errors or "unhealthy" in other.errors


@pytest.mark.slow
def test_a_process_that_dies_ends_those_that_wait_for_nothing_of_it() -> None:
    began = time.monotonic()
    other, killed = run("hang", (), "processes.heartbeat_timeout=5")
    assert killed.status == -signal.SIGKILL and other.status == -signal.SIGABRT
    assert "unhealthy (stopped sending heartbeats):\n1\n" in other.errors
    assert "processes: 0 on " in other.errors and ", 1 on " in other.errors
    assert time.monotonic() - began < 50


@pytest.mark.slow
def test_without_process_0_the_others_end_and_say_so() -> None:
    killed, other = run("kill-0")
    assert killed.status == -signal.SIGKILL and other.status != 0
    assert "the leader task was preempted/died" in other.errors


@pytest.mark.slow
def test_sigterm_in_one_process_stops_all_at_the_same_step() -> None:
    ended = run("preempt")
    assert [process.status for process in ended] == [143, 143]
    assert all(last(process).startswith("stopped by SIGTERM") for process in ended)


@pytest.mark.slow
def test_different_options_are_refused_in_both() -> None:
    for ended in run("end", [["seed=1"], ["seed=2"]]):
        assert ended.status == 2
        assert "error: all processes must be given the same, but:\n  seed is 1 in" in ended.errors
        assert "seed is 1 in process 0 and 2 in process 1" in last(ended)


@pytest.mark.slow
def test_a_process_that_nobody_answers_gives_up() -> None:
    first, second = start([__file__, "end"], 2, [[], ["processes.start_timeout=1"]])
    first.kill()
    _, ended = wait([first, second], 60)
    assert ended.status == 2
    assert "error: process 1 of 2 on" in last(ended) and "came to 127.0.0.1:" in last(ended)


@pytest.mark.slow
def test_a_port_that_is_taken_is_named() -> None:
    taken = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import socket; s = socket.create_server(('127.0.0.1', 0));"
            " print(s.getsockname()[1], flush=True); input()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert taken.stdout is not None
    with taken:
        own = [f"processes.coordinator=127.0.0.1:{taken.stdout.readline().strip()}"]
        first, second = start([__file__, "end"], 2, [own, own])
        second.kill()
        ended, _ = wait([first, second], 60)
        taken.kill()
    assert ended.status == 2 and "cannot listen at 127.0.0.1:" in last(ended)


@pytest.mark.slow
def test_processes_of_different_speed_meet(late: list[subprocess.Popen[str]]) -> None:
    require_the_end(wait(late, 100))


def test_one_process_needs_nobody() -> None:
    assert gather(3, "x") == [3] and is_coordinator() and process_count() == 1
    assert broadcast(lambda: (1, 2)) == (1, 2)
    require_equal({"a": "b"})
    barrier("x")


def test_sigterm_asks_a_single_process_to_stop() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with joined(ProcessesConfig(), {}):
        assert not stop_requested()
        signal.raise_signal(signal.SIGTERM)
        assert stop_requested()
    assert signal.getsignal(signal.SIGTERM) == before
    with joined(ProcessesConfig(), {}):
        assert not stop_requested()


def test_options_that_contradict_are_refused_before_anything_is_waited_for() -> None:
    with (
        pytest.raises(UserError, match=r"processes\.count"),
        joined(ProcessesConfig(coordinator="127.0.0.1:1", index=0), {}),
    ):
        pass
    assert processes._run is None


if __name__ == "__main__":
    command(main)
