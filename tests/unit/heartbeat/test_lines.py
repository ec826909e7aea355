"""Messages over sockets: pieces, strangers, and what is said last."""

from __future__ import annotations

import socket

import pytest

from rankdrift.heartbeat.lines import LONGEST, Lines, wait


@pytest.fixture
def ends() -> tuple[Lines, socket.socket]:
    ours, theirs = socket.socketpair()
    return Lines(ours), theirs


def test_messages_come_whole_however_they_are_cut(ends: tuple[Lines, socket.socket]) -> None:
    lines, other = ends
    other.send(b'{"a": 1}\n{"b"')
    assert lines.receive() == [{"a": 1}]
    other.send(b": 2}\n")
    assert lines.receive() == [{"b": 2}]
    assert not lines.closed


def test_what_is_said_last_is_heard(ends: tuple[Lines, socket.socket]) -> None:
    lines, other = ends
    other.send(b'{"end": "died"}\n')
    other.close()
    lines.send({"beat": True})  # to nobody
    assert lines.receive() == [{"end": "died"}]
    assert lines.closed


@pytest.mark.parametrize("said", [b"GET / HTTP/1.1\r\n", b"[1]\n", b"\xff\xfe\n", b"x" * (LONGEST + 1)])
def test_who_is_none_of_ours_is_heard_no_more(said: bytes, ends: tuple[Lines, socket.socket]) -> None:
    lines, other = ends
    other.setblocking(False)
    while said:
        said = said[other.send(said) :]
        assert lines.receive() == []
    assert lines.closed


def test_nobody_waits_for_one_who_does_not_listen(ends: tuple[Lines, socket.socket]) -> None:
    lines, other = ends
    for _ in range(300):
        lines.send({"text": "x" * 10_000})
    other.setblocking(False)
    received = b""
    while received.count(b"\n") < 300:
        lines.flush()
        received += other.recv(2**20)
    assert received == b'{"text": "%s"}\n' % (b"x" * 10_000) * 300


def test_those_that_are_closed_are_not_waited_for(ends: tuple[Lines, socket.socket]) -> None:
    lines, other = ends
    other.close()
    lines.receive()
    wait([lines, None], 0.01)
    lines.close(wait_for=10)
    assert lines.connection.fileno() == -1
