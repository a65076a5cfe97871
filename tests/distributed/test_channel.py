"""Processes that meet, gather and miss one another; played by threads, over real sockets."""

import socket
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from malt_jax.distributed.channel import Channel, Member, _connect, meet
from malt_jax.errors import ProcessLost, UserError


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def together(members: list[Member], act: Callable[[Channel], Any], **timeouts: float) -> list[Any]:
    """What `act` returns or raises in each of the members."""
    address = f"127.0.0.1:{free_port()}"
    waits = {"start_timeout": 5.0, "barrier_timeout": 5.0} | timeouts

    def run(member: Member) -> Any:
        try:
            channel = meet(address, member, **waits).channel
            channel.start(lambda: None)
            return act(channel)
        except (UserError, ProcessLost) as error:
            return error

    with ThreadPoolExecutor(len(members)) as pool:
        return list(pool.map(run, members))


def members(count: int, **facts: str) -> list[Member]:
    return [Member(index, count, facts) for index in range(count)]


def end(channel: Channel) -> None:
    """What a process that is killed does to its connection."""
    channel._connection.shutdown(socket.SHUT_RDWR)


def test_values_are_gathered_in_the_order_of_the_processes() -> None:
    indices = iter(range(3))
    lock = threading.Lock()

    def act(channel: Channel) -> list[Any]:
        with lock:
            mine = next(indices)
        first = channel.gather("numbers", mine)
        again = channel.gather("texts", {"a": [str(mine)]})
        channel.leave()
        return [first, again]

    results = together(members(3, version="1"), act)
    assert results[0] == results[1] == results[2]
    assert sorted(results[0][0]) == [0, 1, 2]
    assert results[0][1] == [{"a": [str(number)]} for number in results[0][0]]


def test_processes_that_were_started_differently_are_refused_by_name_of_the_field() -> None:
    first, second, third = members(3, jax="0.10.2", seed="0")
    second = Member(1, 3, {"jax": "0.11.2", "seed": "0"})
    for error in together([first, second, third], end):
        assert isinstance(error, UserError)
        assert "jax is 0.10.2 in process 0" in str(error)
        assert "and 0.11.2 in process 1" in str(error) and "seed" not in str(error)


def test_those_who_do_not_come_are_named() -> None:
    (error,) = together(members(4)[:1], end, start_timeout=0.6)
    assert isinstance(error, UserError)
    assert "3 did not come within 0.6 s: 1, 2, 3" in str(error)


def test_a_coordinator_that_is_not_there_is_named() -> None:
    began = time.monotonic()
    (error,) = together(members(2)[1:], end, start_timeout=0.5)
    assert isinstance(error, UserError) and time.monotonic() - began < 5
    assert "process 1 of 2" in str(error) and "cannot reach process 0 at 127.0.0.1" in str(error)


@pytest.mark.parametrize(
    ("places", "message"),
    [
        ([(0, 3), (1, 3), (1, 3)], "have the same processes.index"),
        ([(0, 2), (1, 3)], "one of 3 processes, and process 0 as one of 2"),
    ],
)
def test_contradicting_places_are_refused(places: list[tuple[int, int]], message: str) -> None:
    for error in together([Member(index, count, {}) for index, count in places], end):
        assert isinstance(error, UserError) and message in str(error)


def test_a_port_that_is_taken_is_named() -> None:
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(UserError, match=f"cannot listen on port {port}"):
            meet(f"127.0.0.1:{port}", Member(0, 2, {}), start_timeout=1, barrier_timeout=1)


@pytest.mark.parametrize("address", ["somewhere", "host:", ":80", "host:http"])
def test_an_address_without_host_or_port_is_refused(address: str) -> None:
    with pytest.raises(UserError, match="must be HOST:PORT"):
        meet(address, Member(0, 2, {}), start_timeout=1, barrier_timeout=1)


def test_the_death_of_one_is_told_to_all_others() -> None:
    def act(channel: Channel) -> Any:
        who = channel.gather("who", threading.get_ident())
        if who[2] == threading.get_ident():
            end(channel)
            return None
        return channel.gather("more", 0)

    lost = [error for error in together(members(3), act) if error is not None]
    assert len(lost) == 2
    for error in lost:
        assert isinstance(error, ProcessLost) and error.status == 1
        assert "process 2" in str(error) and "has died" in str(error)


def test_why_one_stops_is_told_to_all_others() -> None:
    def act(channel: Channel) -> Any:
        who = channel.gather("who", threading.get_ident())
        if who[1] == threading.get_ident():
            channel.stop_all("there is no file questions.jsonl", 2)
            return None
        return channel.gather("more", 0)

    for error in together(members(3), act):
        if error is not None:
            assert isinstance(error, ProcessLost) and error.status == 2
            assert "process 1" in str(error) and "no file questions.jsonl" in str(error)


def test_the_end_of_process_0_is_noticed() -> None:
    def act(channel: Channel) -> Any:
        if channel._hub is not None:
            channel.gather("who", 0)
            channel._hub._members[1].connection.shutdown(socket.SHUT_RDWR)
            return None
        channel.gather("who", 1)
        return channel.gather("more", 0)

    error = together(members(2), act)[1]
    assert isinstance(error, ProcessLost)
    assert "process 0" in str(error) and "has died or cannot be reached" in str(error)


def test_who_is_missing_at_a_barrier_is_named() -> None:
    def act(channel: Channel) -> Any:
        who = channel.gather("who", threading.get_ident())
        if who[1] == threading.get_ident():
            return channel.wait_lost(5.0)
        return channel.gather("files are written", 0)

    for error in together(members(3), act, barrier_timeout=0.5):
        assert isinstance(error, ProcessLost)
        assert "'files are written'" in str(error) and "2 of 3 processes" in str(error)
        assert "missing: process 1 (" in str(error)


def test_processes_that_have_come_apart_are_stopped() -> None:
    def act(channel: Channel) -> Any:
        who = channel.gather("who", threading.get_ident())
        return channel.gather(f"stage {who.index(threading.get_ident())}", 0)

    for error in together(members(2), act):
        assert isinstance(error, ProcessLost) and "have come apart" in str(error)


def test_strangers_at_the_port_are_turned_away() -> None:
    port = free_port()

    def run(index: int) -> list[int]:
        channel = meet(
            f"127.0.0.1:{port}", Member(index, 2, {}), start_timeout=5, barrier_timeout=5
        ).channel
        channel.start(lambda: None)
        values = channel.gather("who", index)
        channel.leave()
        return values

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(run, 0)
        for words in (b"GET / HTTP/1.1\r\n\r\n", b"[]\n", b'{"hello": {"index": "x"}}\n'):
            with _connect("127.0.0.1", port, "", Member(1, 2, {}), 5.0) as stranger:
                stranger.sendall(words)
                assert stranger.recv(10) == b""
        assert pool.submit(run, 1).result() == first.result() == [0, 1]
