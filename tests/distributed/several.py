"""Starting a command in several real processes on this machine."""

from __future__ import annotations

import dataclasses
import os
import socket
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import malt_jax

ROOT = Path(malt_jax.__file__).parent.parent


@dataclasses.dataclass(frozen=True)
class Ended:
    """How a process ended."""

    status: int
    output: str
    errors: str


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def start(
    command: Sequence[str], count: int, own: Sequence[Sequence[str]] = (), **environment: str
) -> list[subprocess.Popen[str]]:
    """Starts `python COMMAND... processes.coordinator=... OWN...` as so many processes.

    own: what each of them is given besides.
    """
    place = [f"processes.coordinator=127.0.0.1:{free_port()}", f"processes.count={count}"]
    variables = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"} | environment
    return [
        subprocess.Popen(
            [sys.executable, *command, *place, f"processes.index={index}", *additions],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=variables,
            cwd=ROOT,
        )
        for index, additions in zip(range(count), [*own, *[()] * count], strict=False)
    ]


def wait(processes: Sequence[subprocess.Popen[str]], seconds: float) -> list[Ended]:
    """Waits for all; one that takes longer is killed and fails the test."""
    ended = []
    try:
        for process in processes:
            output, errors = process.communicate(timeout=seconds)
            ended.append(Ended(process.returncode, output, errors))
    finally:
        for process in processes:
            process.kill()
    return ended
