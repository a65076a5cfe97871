"""How the processes of a run talk to each other besides JAX: they meet, agree, and notice a death.

A star of TCP connections: process 0 has a `Hub` in a thread, and every process, itself included, a
`Channel` to it. Messages are JSON, one a line. JAX's own coordination service cannot be asked for
this: it ends the whole process, without a word for people, as soon as somebody is missing.
"""

from __future__ import annotations

import dataclasses
import json
import os
import platform
import socket
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from malt_jax.distributed.hub import Hub, keep_alive, listen
from malt_jax.errors import ProcessLost, UserError

_RETRY = 0.2
"""Seconds between two attempts to reach the coordinator."""


@dataclasses.dataclass(frozen=True)
class Member:
    """One process of a run, as it introduces itself."""

    index: int
    count: int
    facts: Mapping[str, str]
    """What has to be the same in all processes, by name."""


class Channel:
    """This process's end of a connection to the hub. Made by `meet`."""

    def __init__(self, connection: socket.socket, hub: Hub | None, host: str) -> None:
        self._connection = connection
        self._hub = hub
        self._host = host
        self._changed = threading.Condition()
        self._answers: dict[int, list[Any]] = {}
        self._operations = 0
        self._closing = False
        self.lost: ProcessLost | None = None
        """Set when the run cannot go on: another process has died or has stopped."""
        self._reader = threading.Thread(target=self._read, name="malt-channel", daemon=True)

    def start(self, on_lost: Callable[[], None]) -> None:
        """Begins to listen; `on_lost` is called in a thread of its own when `lost` is set."""
        self._on_lost = on_lost
        self._reader.start()

    def gather(self, name: str, value: Any) -> list[Any]:
        """The small JSON values that all processes give, in their order.

        Every process calls this the same number of times with the same names. Raises ProcessLost
        when one of them cannot, or does not within the time-out.
        """
        number = self._operations
        self._operations += 1
        self._send({"at": number, "name": name, "value": value})
        with self._changed:
            self._changed.wait_for(lambda: number in self._answers or self.lost is not None)
            if number in self._answers:
                return self._answers.pop(number)
            assert self.lost is not None
            raise self.lost

    def wait_lost(self, seconds: float) -> ProcessLost | None:
        """`lost`, if it is or becomes set within so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: self.lost is not None, seconds)
            return self.lost

    def stop_all(self, reason: str, status: int) -> None:
        """Tells the others that this process cannot go on, so that they stop too."""
        self._closing = True
        self._send({"failed": reason, "status": status})
        self._close()

    def leave(self) -> None:
        """Says goodbye: the end of this process is no failure."""
        self._closing = True
        self._send({"bye": True})
        self._close()

    def _close(self) -> None:
        try:
            self._connection.shutdown(socket.SHUT_WR)
        except OSError:
            return
        if self._hub is not None:
            # JAX's service ends with process 0, and with it every process that still uses it.
            self._hub.wait_until_alone(seconds=5.0)

    def _send(self, message: Mapping[str, Any]) -> None:
        try:
            self._connection.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            if not self._closing:
                self._set_lost(_coordinator_died(self._host))

    def _read(self) -> None:
        try:
            with self._connection.makefile("rb") as lines:
                for line in lines:
                    self._take(json.loads(line))
        except OSError:
            pass
        if not self._closing:
            self._set_lost(_coordinator_died(self._host))

    def _take(self, message: dict[str, Any]) -> None:
        if "stop" in message:
            self._set_lost(ProcessLost(message["stop"], message["status"]))
            return
        with self._changed:
            self._answers[message["at"]] = message["values"]
            self._changed.notify_all()

    def _set_lost(self, lost: ProcessLost) -> None:
        with self._changed:
            if self.lost is not None:
                return
            self.lost = lost
            self._changed.notify_all()
        threading.Thread(target=self._on_lost, daemon=True).start()


@dataclasses.dataclass(frozen=True)
class Meeting:
    """What the processes have when all of them have met."""

    channel: Channel
    service: str
    """HOST:PORT for JAX's coordination service."""


def meet(address: str, member: Member, *, start_timeout: float, barrier_timeout: float) -> Meeting:
    """Waits until all processes are there and agree in their facts. Process 0 makes the hub.

    Raises UserError, in every process that could be reached, when one does not come within
    `start_timeout` seconds, when facts differ, and when indices are taken twice; in a process that
    cannot reach the coordinator, there.
    """
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal():
        raise UserError(f"processes.coordinator is {address!r}, but must be HOST:PORT")
    hub = None
    if member.index == 0:
        listener = listen(int(port))
        hub = Hub(listener, member.count, start_timeout, barrier_timeout)
        hub.start()
        host = "127.0.0.1"
    connection = _connect(host.strip("[]"), int(port), address, member, start_timeout)
    hello = {
        "index": member.index,
        "count": member.count,
        "host": platform.node(),
        "pid": os.getpid(),
        "facts": dict(member.facts),
    }
    connection.sendall(json.dumps({"hello": hello}).encode() + b"\n")
    # The hub decides when it has waited long enough; it may have begun a little later.
    connection.settimeout(start_timeout + 5)
    answer = _first_line(connection, address, member, start_timeout)
    if "refused" in answer:
        connection.close()
        if hub is not None:
            hub.wait_until_alone(seconds=1.0)
        raise UserError(answer["refused"])
    connection.settimeout(None)
    channel = Channel(connection, hub, answer["host"])
    return Meeting(channel, f"{address.rpartition(':')[0]}:{answer['service_port']}")


def _connect(host: str, port: int, address: str, member: Member, seconds: float) -> socket.socket:
    deadline = time.monotonic() + seconds
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=min(seconds, 5.0))
            keep_alive(connection)
            return connection
        except OSError as error:
            if time.monotonic() > deadline:
                raise UserError(
                    f"process {member.index} of {member.count} on {platform.node()} cannot reach"
                    f" process 0 at {address} ({error.strerror or error}), tried for {seconds:g} s."
                    " Is it running there, is the address right, and may this host connect to"
                    " that port?"
                ) from None
        time.sleep(_RETRY)


def _first_line(
    connection: socket.socket, address: str, member: Member, seconds: float
) -> dict[str, Any]:
    data = b""
    try:
        while not data.endswith(b"\n"):
            # One byte at a time: what follows the line belongs to the channel.
            piece = connection.recv(1)
            if not piece:
                break
            data += piece
        return json.loads(data)
    except (OSError, ValueError):
        raise UserError(
            f"process {member.index} of {member.count} on {platform.node()} got no answer from"
            f" {address} within {seconds:g} s: process 0 has ended, or something else listens there"
        ) from None


def _coordinator_died(host: str) -> ProcessLost:
    return ProcessLost(f"process 0 on {host} has died or cannot be reached any more", 1)
