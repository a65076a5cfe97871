"""Real processes over gloo that start, agree, and end together; no model."""

import signal
from pathlib import Path

import pytest

from malt_jax.config import ProcessesConfig
from malt_jax.distributed.processes import ALONE, together
from malt_jax.errors import Stopped, UserError
from tests.distributed.several import start, wait

PROGRAM = """
import os, signal, sys, time
import jax, numpy as np
from jax.experimental import multihost_utils
from malt_jax.command import command
from malt_jax.config import load_config
from malt_jax.errors import UserError
from malt_jax.distributed.processes import together

def main():
    action, *options = sys.argv[1:]
    config = load_config(None, options)
    with together(config.processes, {"seed": str(config.seed)}) as these:
        mine = these.index == 1
        everywhere = multihost_utils.process_allgather(np.int32(these.index))
        assert everywhere.tolist() == [0, 1] and jax.process_count() == 2
        assert these.first("value", lambda: [these.index, "x"]) == [0, "x"]
        if action == "refuse":
            these.first("reading", lambda: refuse())
        elif action == "fail" and mine:
            raise ValueError("a mistake")
        elif action in ("kill-0", "kill-1") and these.index == int(action[-1]):
            os.kill(os.getpid(), signal.SIGKILL)
        elif action == "preempt" and mine:
            os.kill(os.getpid(), signal.SIGTERM)
        while action != "end":  # as a run that computes
            these.stop_if_asked()
            multihost_utils.process_allgather(np.int32(these.index))
    print("the end", these.index)

def refuse():
    raise UserError("there is no questions.jsonl")

command(main)
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("program") / "program.py"
    file.write_text(PROGRAM)
    return str(file)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action", "statuses", "messages"),
    [
        ("end", (0, 0), ("", "")),
        ("refuse", (2, 2), ("error: there is no questions.jsonl",) * 2),
        ("fail", (1, 1), ("process 1 (on", "ValueError: a mistake")),
        ("kill-1", (1, -signal.SIGKILL), ("process 1 (on", "was ended from outside")),
        # Whether JAX or the channel notices first that process 0 is gone is open.
        ("kill-0", (-signal.SIGKILL, None), ("was ended from outside", "process 0")),
        ("preempt", (143, 143), ("stopped by SIGTERM",) * 2),
    ],
)
def test_processes_end_together_and_say_why(
    program: str, action: str, statuses: tuple[int | None, ...], messages: tuple[str, ...]
) -> None:
    ended = wait(start([program, action], 2), 60)
    for index, (process, status, message) in enumerate(zip(ended, statuses, messages, strict=True)):
        assert message in process.errors.splitlines()[-1] if message else not status
        assert process.status == status if status is not None else process.status != 0
        assert (f"the end {index}" in process.output) == (action == "end")


@pytest.mark.slow
def test_different_options_are_refused_in_both(program: str) -> None:
    for process in wait(start([program, "end"], 2, [["seed=1"], ["seed=2"]]), 60):
        assert process.status == 2
        assert "error: the processes were not started alike" in process.errors
        assert "seed is 1 in process 0" in process.errors and "and 2 in process 1" in process.errors


@pytest.mark.slow
def test_a_coordinator_that_is_not_there_is_named(program: str) -> None:
    first, second = start([program, "end"], 2, [[], ["processes.start_timeout=1"]])
    first.kill()
    _, ended = wait([first, second], 60)
    assert ended.status == 2
    assert "error: process 1 of 2" in ended.errors and "cannot reach process 0" in ended.errors


def test_one_process_needs_nobody() -> None:
    assert ALONE.gather("x", 3) == [3] and ALONE.any("x", True) and ALONE.is_first
    assert ALONE.first("x", lambda: (1, 2)) == (1, 2)
    ALONE.require_same({"a": "b"})
    ALONE.barrier("x")


def test_sigterm_asks_a_single_process_to_stop() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with together(ProcessesConfig(), {}) as these:
        these.stop_if_asked()
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(Stopped):
            these.stop_if_asked()
    assert signal.getsignal(signal.SIGTERM) == before
    with together(ProcessesConfig(), {}) as these:
        these.stop_if_asked()


def test_places_that_contradict_are_refused_before_anything_is_waited_for(tmp_path: Path) -> None:
    with (
        pytest.raises(UserError, match=r"processes\.count"),
        together(ProcessesConfig(coordinator="127.0.0.1:1", index=0), {}),
    ):
        pass
