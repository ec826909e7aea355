"""Messages over a socket that never blocks: JSON objects, one a line."""

from __future__ import annotations

import contextlib
import json
import select
import socket
import time
from collections.abc import Iterable
from typing import Any

LONGEST = 2**16
"""Bytes without a line's end after which the other side cannot be one of ours."""

Message = dict[str, Any]


class Lines:
    """One side of a connection. What cannot be sent yet is kept; the other side may be silent for ever."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.closed = False
        """Whether the other side has gone, or is none of ours."""
        self._unsent = self._read = b""

    def send(self, message: Message) -> None:
        """Send a message, or what can be sent of it now."""
        self._unsent += json.dumps(message).encode() + b"\n"
        self.flush()

    def flush(self) -> None:
        """Send what is kept. That nobody takes it is no end: what the other has said last may be here."""
        with contextlib.suppress(BlockingIOError, BrokenPipeError, ConnectionResetError):
            while self._unsent:
                self._unsent = self._unsent[self.connection.send(self._unsent) :]

    def receive(self) -> list[Message]:
        """Return the messages that have come; ``closed`` says whether there can be more."""
        while not self.closed:
            try:
                piece = self.connection.recv(LONGEST)
            except BlockingIOError:
                break
            except OSError:
                piece = b""
            self._read += piece
            self.closed = not piece
        *lines, self._read = self._read.split(b"\n")
        if len(self._read) > LONGEST:
            self.closed = True
        return self._parsed(lines)

    def close(self, wait_for: float = 0.0) -> None:
        """Say no more, and wait some seconds for the other side to hear all: it closes then."""
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_WR)
        deadline = time.monotonic() + wait_for
        while not self.closed and (left := deadline - time.monotonic()) > 0:
            wait([self], left)
            self.receive()
        self.closed = True
        self.connection.close()

    def _parsed(self, lines: list[bytes]) -> list[Message]:
        try:
            messages = [json.loads(line) for line in lines]
        except ValueError:
            messages = [None]
        if all(isinstance(message, dict) for message in messages):
            return messages
        self.closed = True
        return []


def wait(connections: Iterable[Lines | socket.socket | None], seconds: float | None = None) -> None:
    """Wait until one of them has something to say; those that are closed, or None, have not."""
    poll = select.poll()
    for each in connections:
        if isinstance(each, Lines):
            each = None if each.closed else each.connection
        if each is not None:
            poll.register(each, select.POLLIN)
    poll.poll(None if seconds is None else 1000 * seconds)
