"""The referee among strangers, late comers and guards of other starts of its job."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import pytest

from rankdrift.heartbeat.lines import Lines, Message, wait
from rankdrift.heartbeat.place import Limits, Place
from rankdrift.heartbeat.referee import Referee
from rankdrift.heartbeat.verdict import Verdict

SECONDS = 30.0
GUARD = {"host": "vm", "age": 5.0}


@pytest.fixture
def announced() -> list[Verdict]:
    return []


@pytest.fixture
def referee(announced: list[Verdict]) -> Iterator[Referee]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        job = str(probe.getsockname()[1])
    referee = Referee(Place(0, 0, 3, "vm", "127.0.0.1", job), Limits(5.0, 100.0), announced.append)
    yield referee
    referee.thread.join(SECONDS)
    assert not referee.thread.is_alive()


def connected(referee: Referee, **hello: object) -> Lines:
    lines = Lines(socket.create_connection(("127.0.0.1", referee.port), timeout=SECONDS))
    if hello:
        lines.send(hello)
    return lines


def heard(lines: Lines, key: str) -> Message | None:
    """Return the first message with a key; None if the connection is closed before."""
    deadline = time.monotonic() + SECONDS
    while not lines.closed:
        assert time.monotonic() < deadline
        wait([lines], 1.0)
        for message in lines.receive():
            if key in message:
                return message
    return None


def test_strangers_do_no_harm(referee: Referee, announced: list[Verdict]) -> None:
    guard = connected(referee, rank=0, **GUARD)
    strangers = [
        connected(referee),
        connected(referee, rank="0", **GUARD),
        connected(referee, rank=0, **GUARD),
    ]
    strangers[0].connection.send(b"GET / HTTP/1.1\r\n\r\n")
    for stranger in strangers:
        assert heard(stranger, "verdict") is None
    assert heard(guard, "beat")
    guard.send({"end": "done", "status": 0})
    guard.close()
    referee.thread.join(SECONDS)
    assert announced == []


def test_who_comes_late_is_told_and_who_is_of_another_start_is_not(
    referee: Referee, announced: list[Verdict]
) -> None:
    first, second = (connected(referee, rank=rank, **GUARD) for rank in (0, 1))
    assert heard(first, "beat")
    assert heard(second, "beat")
    second.send({"step": 4, "end": "died"})
    told = heard(first, "verdict")
    assert told is not None
    deadline = time.monotonic() + 10  # it is announced once all have been told
    while not announced and time.monotonic() < deadline:
        time.sleep(0.01)
    assert Verdict(**told["verdict"]) == announced[0]
    assert (announced[0].rank, announced[0].step, announced[0].status) == (1, 4, 4)
    time.sleep(0.5)
    assert heard(connected(referee, rank=2, host="vm", age=0.0), "verdict") is None
    late = connected(referee, rank=2, **GUARD)
    assert heard(late, "verdict") == told
    for guard in (first, second, late):
        guard.close()
