"""Where all guards of a job report to; it gives the verdict. A thread of the guard beside rank 0."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import socket
import threading
import time
from collections.abc import Callable

from rankdrift.heartbeat.lines import Lines, Message, wait
from rankdrift.heartbeat.place import Limits, Place
from rankdrift.heartbeat.verdict import End, Seen, Verdict, judge

TICK = 0.2  # seconds
PAUSE = 2.0
"""Seconds between two looks after which this process was paused itself: silence meanwhile is nobody's."""
CARRIED_OUT = 10.0
"""Seconds after a verdict until which guards have ended their ranks, and themselves."""
REPORTED = frozenset(field.name for field in dataclasses.fields(Seen)) - {"rank", "host", "heard", "ended"}


class Referee:
    """Hears all guards until the last one has gone.

    Parameters
    ----------
    place
        That of rank 0.
    limits
        How long silence may last.
    announce
        Called with the verdict when it is given, in the referee's thread.

    """

    def __init__(self, place: Place, limits: Limits, announce: Callable[[Verdict], None]) -> None:
        self.limits, self.announce = limits, announce
        self.verdict: Verdict | None = None
        self._place = place
        self._greeting = {"job": place.job, "host": place.host}
        self._listener = _listen(place)
        self.port = self._listener.getsockname()[1]
        self._strangers: list[Lines] = []
        self._guards: dict[int, Lines] = {}
        self._seen: dict[int, Seen] = {}
        self._looked = time.monotonic()
        self._given = math.inf
        self.thread = threading.Thread(target=self._run, name="referee", daemon=True)
        self.thread.start()

    def _run(self) -> None:
        beaten = 0.0
        while not self._is_over():
            wait([self._listener, *self._strangers, *self._guards.values()], TICK)
            now = time.monotonic()
            self._forgive(now)
            self._meet(now)
            for rank in self._guards:
                self._hear(rank, now)
            if self.verdict is None and (verdict := judge(self._seen.values(), now, self.limits)):
                self._give(verdict, now)
            if now - beaten >= self.limits.beat:
                beaten = now
                self._tell_all({"beat": True})
        self._listener.close()

    def _is_over(self) -> bool:
        """Whether all guards have gone; after a verdict, those too that come late, or have had their time."""
        now = time.monotonic()
        left = [rank for rank, guard in self._guards.items() if not guard.closed]
        if self.verdict is None:
            return bool(self._guards) and not left
        silent = [rank for rank in left if now - self._seen[rank].heard >= self.limits.silence]
        all_told = left == silent and len(self._guards) == self._place.world_size
        return all_told or now > self._given + CARRIED_OUT

    def _forgive(self, now: float) -> None:
        """Take the time that this process was paused off everybody's silence."""
        gap, self._looked = now - self._looked, now
        if gap > PAUSE:
            for each in self._seen.values():
                each.heard += gap

    def _meet(self, now: float) -> None:
        """Greet who comes, and take those for guards who say which rank they guard."""
        with contextlib.suppress(OSError):  # nobody
            while True:
                self._strangers.append(Lines(self._listener.accept()[0]))
                self._strangers[-1].send(self._greeting)
        for stranger in list(self._strangers):
            if hello := stranger.receive()[:1]:
                self._take(stranger, hello[0], now)
            if stranger.closed or stranger in self._guards.values():
                self._strangers.remove(stranger)

    def _take(self, stranger: Lines, hello: Message, now: float) -> None:
        """Take somebody for a guard, unless he is of another start of the job."""
        rank, host, age = hello.get("rank"), hello.get("host"), hello.get("age")
        if not (isinstance(rank, int) and isinstance(host, str) and isinstance(age, float)):
            stranger.close()
            return
        if rank in self._guards or age < now - self._given:
            stranger.close()
            return
        self._guards[rank], self._seen[rank] = stranger, Seen(rank, host, now)
        if self.verdict:
            stranger.send({"verdict": dataclasses.asdict(self.verdict)})

    def _hear(self, rank: int, now: float) -> None:
        """Take what a guard reports; that it has gone without a word is a report as well."""
        guard, seen = self._guards[rank], self._seen[rank]
        if guard.closed:
            return
        for message in guard.receive():
            seen.heard = now
            self._note(seen, message, now)
        if guard.closed:
            guard.close()
            self._note(seen, {"end": End.GONE}, now)

    def _note(self, seen: Seen, message: Message, now: float) -> None:
        """Keep what is reported; a rank's first end is its end, unless it has survived it: a victim's."""
        told = {name: value for name, value in message.items() if name in REPORTED}
        end = told.pop("end", None)
        for name, value in told.items():
            setattr(seen, name, value)
        if end and (seen.end is None or (seen.end is End.CUT and end == End.GONE)):
            seen.end, seen.ended = End(end), now

    def _give(self, verdict: Verdict, now: float) -> None:
        """Tell every guard."""
        self.verdict, self._given = verdict, now
        self._tell_all({"verdict": dataclasses.asdict(verdict)})
        self.announce(verdict)

    def _tell_all(self, message: Message) -> None:
        for guard in self._guards.values():
            if not guard.closed:
                guard.send(message)


def _listen(place: Place) -> socket.socket:
    """Return a socket on the first of the job's ports that is free; OSError if none is."""
    local = place.address in ("localhost", "127.0.0.1")
    for port in place.ports:
        with contextlib.suppress(OSError):
            return _listener(("127.0.0.1" if local else "", port))
    raise OSError(f"ports {place.ports[0]} to {place.ports[-1]} are all taken")


def _listener(address: tuple[str, int]) -> socket.socket:
    if address[0] or not socket.has_dualstack_ipv6():
        listener = socket.create_server(address)
    else:
        listener = socket.create_server(address, family=socket.AF_INET6, dualstack_ipv6=True)
    listener.setblocking(False)
    return listener
