"""Process 0's side of the channel between the processes of a run."""

from __future__ import annotations

import dataclasses
import json
import platform
import selectors
import socket
import threading
import time
from collections.abc import Iterable
from typing import Any

from malt_jax.errors import UserError

_LONGEST_HELLO = 1 << 20
"""Bytes of a first message; a stranger who sends more is cut off."""
_SEND_TIMEOUT = 10.0
"""Seconds after which a process that reads nothing counts as dead."""


def listen(port: int) -> socket.socket:
    """A socket that waits for the other processes on all of this host's addresses.

    Raises UserError when the port is taken.
    """
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, backlog=512, dualstack_ipv6=both)
    except OSError as error:
        raise UserError(
            f"process 0 on {platform.node()} cannot listen on port {port} ({error.strerror}):"
            " give processes.coordinator another port, or end what uses this one"
        ) from None


def keep_alive(connection: socket.socket) -> None:
    """Lets the system find out within 30 s that the machine at the other end is gone.

    The system, not this process, answers the probes: a host that computes for long is not taken
    for a dead one.
    """
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    options = {"KEEPIDLE": 10, "KEEPINTVL": 5, "KEEPCNT": 4, "USER_TIMEOUT": 30_000}
    for name, value in options.items():
        option = f"TCP_{name}"
        if hasattr(socket, option):
            connection.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


@dataclasses.dataclass
class _Peer:
    connection: socket.socket
    received: bytes = b""
    hello: dict[str, Any] | None = None
    leaving: bool = False

    @property
    def title(self) -> str:
        assert self.hello is not None
        return f"process {self.hello['index']} (on {self.hello['host']}, pid {self.hello['pid']})"


@dataclasses.dataclass
class _Operation:
    """A `gather` that not all processes have reached yet."""

    name: str
    deadline: float
    values: dict[int, Any] = dataclasses.field(default_factory=dict)


class Hub(threading.Thread):
    """Brings the processes together, passes on what they gather, and tells them of a death."""

    def __init__(
        self, listener: socket.socket, count: int, start_timeout: float, barrier_timeout: float
    ) -> None:
        super().__init__(name="malt-hub", daemon=True)
        self._listener = listener
        self._count = count
        self._start_timeout = start_timeout
        self._deadline = time.monotonic() + start_timeout
        self._barrier_timeout = barrier_timeout
        self._selector = selectors.DefaultSelector()
        self._selector.register(listener, selectors.EVENT_READ)
        self._peers: list[_Peer] = []
        self._members: dict[int, _Peer] = {}
        self._met = False
        self._over = False
        self._refusal = f"a run of {count} processes is going on at this address already"
        self._operations: dict[int, _Operation] = {}
        self._alone = threading.Event()
        self._first_has_left = False

    def wait_until_alone(self, seconds: float) -> None:
        """Waits until all other processes have closed their connections, at most so long."""
        self._alone.wait(seconds)

    def run(self) -> None:
        with self._listener, self._selector:
            while not (self._first_has_left and self._alone.is_set()):
                for key, _ in self._selector.select(timeout=0.5):
                    if key.fileobj is self._listener:
                        self._accept()
                    else:
                        self._receive(key.data)
                self._look_at_clock()

    def _accept(self) -> None:
        connection, _ = self._listener.accept()
        keep_alive(connection)
        connection.setblocking(False)
        peer = _Peer(connection)
        self._peers.append(peer)
        self._selector.register(connection, selectors.EVENT_READ, peer)

    def _receive(self, peer: _Peer) -> None:
        try:
            data = peer.connection.recv(1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._closed(peer)
            return
        *lines, peer.received = (peer.received + data).split(b"\n")
        try:
            if peer.hello is None and len(peer.received) > _LONGEST_HELLO:
                raise ValueError("too long a line")
            for line in lines:
                self._take(peer, json.loads(line))
        except (ValueError, TypeError, KeyError, AttributeError):
            self._closed(peer)  # no process of a run talks like this

    def _closed(self, peer: _Peer) -> None:
        if peer not in self._peers:
            return
        self._selector.unregister(peer.connection)
        peer.connection.close()
        self._peers.remove(peer)
        if peer.hello is None:
            return
        self._first_has_left |= peer.hello["index"] == 0
        if self._members.get(peer.hello["index"]) is not peer:
            return
        del self._members[peer.hello["index"]]
        if self._met and not peer.leaving:
            self._stop(f"{peer.title} has died", 1)
        if not self._members.keys() - {0} and (self._met or self._over):
            self._alone.set()

    def _take(self, peer: _Peer, message: dict[str, Any]) -> None:
        if peer.hello is None:
            self._introduce(peer, message["hello"])
        elif "at" in message:
            self._gather(peer, message)
        elif "failed" in message:
            peer.leaving = True
            self._stop(f"{peer.title} stopped: {message['failed']}", int(message["status"]))
        elif "bye" in message:
            peer.leaving = True

    def _introduce(self, peer: _Peer, hello: dict[str, Any]) -> None:
        peer.hello = {
            "index": int(hello["index"]),
            "count": int(hello["count"]),
            "host": str(hello["host"]),
            "pid": int(hello["pid"]),
            "facts": dict(hello["facts"]),
        }
        if self._met or self._over:
            self._send([peer], {"refused": self._refusal})
            return
        index, count = peer.hello["index"], peer.hello["count"]
        if index in self._members:
            self._refuse(
                f"{peer.title} and {self._members[index].title} have the same processes.index",
                [peer],
            )
        elif count != self._count or not 0 <= index < count:
            self._refuse(
                f"{peer.title} was started as one of {count} processes, and process 0 as one of"
                f" {self._count}: give all of them the same processes.count",
                [peer],
            )
        else:
            self._members[index] = peer
            if len(self._members) == self._count:
                self._begin()

    def _begin(self) -> None:
        differences = self._differences()
        if differences:
            self._refuse("the processes were not started alike:\n  " + "\n  ".join(differences))
            return
        self._met = True
        with socket.create_server(("", 0)) as free:
            port = free.getsockname()[1]
        welcome = {"host": self._members[0].hello["host"], "service_port": port}  # type: ignore[index]
        self._send(self._members.values(), welcome)

    def _differences(self) -> list[str]:
        facts = {index: peer.hello["facts"] for index, peer in self._members.items() if peer.hello}
        lines = []
        for name in dict.fromkeys(name for each in facts.values() for name in each):
            wanted = facts[0].get(name, "(absent)")
            for index in range(1, self._count):
                value = facts[index].get(name, "(absent)")
                if value != wanted:
                    lines.append(
                        f"{name} is {wanted} in {self._members[0].title}"
                        f" and {value} in {self._members[index].title}"
                    )
                    break  # one line a field, however many processes differ
        return lines[:20]

    def _gather(self, peer: _Peer, message: dict[str, Any]) -> None:
        assert peer.hello is not None
        number, name = int(message["at"]), str(message["name"])
        deadline = time.monotonic() + self._barrier_timeout
        operation = self._operations.setdefault(number, _Operation(name, deadline))
        if operation.name != name:
            self._stop(
                f"the processes have come apart: {peer.title} is at {name!r}, others are at"
                f" {operation.name!r}",
                1,
            )
            return
        operation.values[peer.hello["index"]] = message["value"]
        if len(operation.values) == self._count:
            del self._operations[number]
            values = [operation.values[index] for index in range(self._count)]
            self._send(self._members.values(), {"at": number, "values": values})

    def _look_at_clock(self) -> None:
        now = time.monotonic()
        if not self._met and not self._over and now > self._deadline:
            missing = [str(i) for i in range(self._count) if i not in self._members]
            self._refuse(
                f"of {self._count} processes {len(missing)} did not come within"
                f" {self._start_timeout:g} s: {', '.join(missing[:20])}"
                f"{', ...' if len(missing) > 20 else ''}. Start the command on every host, each"
                " with its own processes.index; the hosts must reach process 0's port"
            )
        for operation in list(self._operations.values()):
            if now > operation.deadline and not self._over:
                missing = [
                    peer.title
                    for index, peer in sorted(self._members.items())
                    if index not in operation.values
                ]
                self._stop(
                    f"{operation.name!r} has been waited for in vain for"
                    f" {self._barrier_timeout:g} s by {len(operation.values)} of {self._count}"
                    f" processes; missing: {', '.join(missing[:20])}",
                    1,
                )

    def _refuse(self, text: str, others: Iterable[_Peer] = ()) -> None:
        self._over = True
        self._refusal = text
        self._send([*self._members.values(), *others], {"refused": text})

    def _stop(self, text: str, status: int) -> None:
        if not self._over:
            self._over = True
            self._send(self._members.values(), {"stop": text, "status": status})

    def _send(self, peers: Iterable[_Peer], message: dict[str, Any]) -> None:
        data = json.dumps(message).encode() + b"\n"
        for peer in list(peers):
            try:
                peer.connection.settimeout(_SEND_TIMEOUT)
                peer.connection.sendall(data)
                peer.connection.setblocking(False)
            except OSError:
                self._closed(peer)
