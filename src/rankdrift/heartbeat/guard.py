"""The process beside a rank: sees how the rank is, reports it, and ends the rank by the referee's verdict.

``python -m rankdrift.heartbeat.guard PID MEMORY CHANNEL rank=N`` with the rank's process id, and the
descriptors of its counter and of its socket. It goes when its rank has gone; beside rank 0, as the last.
"""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import os
import signal
import socket
import sys
import time
from pathlib import Path

from rankdrift import files
from rankdrift.errors import LostRankError
from rankdrift.heartbeat.lines import Lines, Message, wait
from rankdrift.heartbeat.place import Limits, Place
from rankdrift.heartbeat.rank import COUNTER, MEMORY_BYTES
from rankdrift.heartbeat.referee import PAUSE, TICK, Referee
from rankdrift.heartbeat.verdict import REQUESTED, End, Verdict
from rankdrift.layout import RunLayout

CONNECT = 1.0  # seconds for an attempt
HEARD = 1.0
"""Seconds for the referee to hear what was said last."""
TELLS = 10.0
"""Seconds that the end of a rank that has gone can wait for a referee to be told to."""
OBEYS = 3.0
"""Seconds after which a rank that was told to end is killed."""
LEAVES = 15.0
"""Seconds after which a rank that has said that it ends is killed."""
KINDS = {LostRankError.exit_code: "lost", **dict.fromkeys(REQUESTED, "stopped")}
UNREACHED = 60.0
"""Seconds of training without a referee after which that is told."""


class Rank:
    """The process that is watched: this one's parent."""

    def __init__(self, pid: int, memory: mmap.mmap, channel: Lines) -> None:
        self.pid, self.memory, self.channel = pid, memory, channel
        self.count = self.step = 0
        self.limited = False
        self.end: Message | None = None
        """What it has said of its end."""
        self.ended = 0.0
        self.folder: RunLayout | None = None
        self.steps = 0
        self._changed = time.monotonic()
        self._ran = time.monotonic()

    @property
    def is_gone(self) -> bool:
        """Whether it has ended: its children have another parent then."""
        return os.getppid() != self.pid

    @property
    def is_leaving(self) -> bool:
        """Whether it has said that it ends by itself."""
        return self.end is not None and self.end["end"] != End.CUT

    def look(self, now: float) -> None:
        """Read its counter and what it says."""
        count, self.step, self.limited = COUNTER.unpack_from(self.memory)
        if count != self.count:
            self.count, self._changed = count, now
        if not _is_stopped(self.pid):
            self._ran = now
        for message in self.channel.receive():
            if "end" in message:
                self.end, self.ended = message, now
            else:
                self.folder, self.steps = RunLayout(Path(message["folder"])), message["steps"]

    def report(self, now: float) -> Message:
        """Return how it is."""
        stopped = now - self._ran
        state = {"count": self.count, "step": self.step, "limited": self.limited}
        return {**state, "idle": now - self._changed, "stopped": stopped if stopped > TICK else 0.0}

    def forgive(self, gap: float) -> None:
        """Take a time off in which nobody looked."""
        self._changed += gap
        self._ran += gap

    def finish(self, verdict: Verdict) -> None:
        """Make it end, by itself if it can."""
        if not self.is_leaving:
            self.channel.send({"exit": verdict.status, "stack": verdict.hung})
            self._await(time.monotonic() + OBEYS)
        else:
            self._await(self.ended + LEAVES)

    def kill(self) -> None:
        """Kill it, where it is still there."""
        if not self.is_gone:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, signal.SIGKILL)

    def _await(self, deadline: float) -> None:
        while not self.is_gone and time.monotonic() < deadline:
            time.sleep(0.02)
        self.kill()


class Guard:
    """Reports of one rank until it has gone."""

    def __init__(self, rank: Rank, place: Place, limits: Limits) -> None:
        self.rank, self.place, self.limits = rank, place, limits
        self.referee = self._be_referee() if place.rank == 0 else None
        self.link: Lines | None = None
        self.host = place.address
        """Rank 0's machine."""
        now = time.monotonic()
        self._started = self._heard = self._looked = self._told = self._joined = self._lived = now
        self._warned = False
        self._reported = False

    def watch(self) -> None:
        """Watch the rank to its end, or to a verdict's, and let the referee do what is left to it."""
        verdict = None
        while verdict is None and not self._is_over():
            verdict = self._look()
        if verdict:
            self.rank.finish(verdict)
        if self.link:
            self.link.close(HEARD)
        if self.referee and self.link:
            self.referee.thread.join()  # it gives up those who do not end
            self._keep(self.referee.verdict)

    def _is_over(self) -> bool:
        """Whether the rank has gone and it is told how; one that has gone early may be the first to fail."""
        if not self.rank.is_gone:
            self._lived = time.monotonic()
            return False
        fine = self.rank.end is not None and self.rank.end["status"] == 0
        return self._reported or (self.link is None and (fine or time.monotonic() > self._lived + TELLS))

    def _look(self) -> Verdict | None:
        """See how the rank is, report it now and then, and return the verdict if there is one."""
        wait([self.rank.channel, self.link], TICK)
        now = time.monotonic()
        gap, self._looked = now - self._looked, now
        if gap > PAUSE:
            self._heard += gap
            self.rank.forgive(gap)
        gone = self.rank.is_gone  # before what it has said last is read
        self.rank.look(now)
        if self.rank.is_leaving and now > self.rank.ended + LEAVES:
            self.rank.kill()
        if self.link is None:
            self._join(now)
            return None
        if self._has_news(gone) or now - self._told >= self.limits.beat:
            self._report(now, gone)
        return self._verdict(now)

    def _has_news(self, gone: bool) -> bool:
        return not self._reported and (gone or self.rank.end is not None)

    def _report(self, now: float, gone: bool) -> None:
        assert self.link is not None
        self._told = now
        end = self.rank.end or ({"end": End.DIED} if gone else {})
        self._reported = bool(end)
        self.link.send({**self.rank.report(now), **end})

    def _verdict(self, now: float) -> Verdict | None:
        """Return the referee's verdict, or our own on its machine where it is silent."""
        assert self.link is not None
        for message in self.link.receive():
            self._heard = now
            if "verdict" in message:
                return Verdict(**message["verdict"])
        silent = now - self._heard
        if not self.link.closed and silent < self.limits.silence:
            return None
        how = f"has been silent for {silent:.0f} s" if silent >= self.limits.silence else "has gone"
        how += f" (seen from {self.place.host}: its machine, or the network to it, is down)"
        verdict = Verdict(0, self.host, self.rank.step, how, LostRankError.exit_code)
        if self.place.local_rank == 0 and not (self.rank.end and self.rank.is_gone):
            _say(verdict)
        return verdict

    def _be_referee(self) -> Referee | None:
        try:
            return Referee(self.place, self.limits, _say)
        except OSError as error:
            _warn(f"lost ranks will be noticed by time-outs alone: {error}")
            return None

    def _join(self, now: float) -> None:
        """Try to reach the referee; it may not have been started yet."""
        if now - self._joined < min(CONNECT, self.limits.beat) and self.place.rank:
            return
        for port in [self.referee.port] if self.referee else self.place.ports:
            if link := _connected(self.place, port):
                self.link, hello = link
                self.host = hello["host"]
                age = time.monotonic() - self._started
                self.link.send({"rank": self.place.rank, "host": self.place.host, "age": age})
                break
        self._heard = self._looked = time.monotonic()
        if not self.rank.limited or self.link:
            self._joined = now
        elif not self._warned and now - self._joined > UNREACHED:
            self._warned = True
            _warn(f"rank {self.place.rank} on {self.place.host} does not reach the heartbeat of rank 0, "
                  f"{self.place.address} ports {self.place.ports[0]} to {self.place.ports[-1]}: lost ranks "
                  "will be noticed by time-outs alone")  # fmt: skip

    def _keep(self, verdict: Verdict | None) -> None:
        """Keep the verdict with rank 0's run, which nobody else writes any more."""
        run = self.rank.folder
        if verdict is None or run is None or verdict.status in REQUESTED:
            return
        if run.status.exists() and files.read_json(run.status)["state"] == "finished":
            return
        with run.log.open("a", encoding="utf-8") as log:
            log.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} ERROR rankdrift.heartbeat: {verdict.text}\n")
        facts = dataclasses.asdict(verdict)
        told = {name: facts[name] for name in ("rank", "host", "how")}
        state = KINDS.get(verdict.status, "failed")
        # what rank 0 has done all have, and one that is silent may have told of less
        done = max(verdict.step, self.rank.step)
        value = {"state": state, "step": done, "steps": self.rank.steps, "time": files.timestamp()}
        files.write_json(run.status, {**value, **told})


def _connected(place: Place, port: int) -> tuple[Lines, Message] | None:
    """Return the connection to the referee and its greeting, if it is who listens on a port."""
    try:
        connection = socket.create_connection((place.address, port), timeout=CONNECT)
    except OSError:
        return None
    lines = Lines(connection)
    wait([lines], CONNECT)
    for greeting in lines.receive():
        if greeting.get("job") == place.job:
            return lines, greeting
    lines.close()
    return None


def _is_stopped(pid: int) -> bool:
    """Whether a process has been stopped by a signal."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return False
    return state == "T"


def _say(verdict: Verdict) -> None:
    if not verdict.said:
        kind = KINDS.get(verdict.status, "failed")
        print(f"rankdrift train: {kind}: {verdict.text}", file=sys.stderr, flush=True)


def _warn(text: str) -> None:
    print(f"rankdrift train: warning: {text}", file=sys.stderr, flush=True)


def main(arguments: list[str]) -> None:
    """Guard this process's parent."""
    pid, memory, channel = (int(argument) for argument in arguments[:3])
    rank = Rank(pid, mmap.mmap(memory, MEMORY_BYTES), Lines(socket.socket(fileno=channel)))
    Guard(rank, Place.here(), Limits.here()).watch()


if __name__ == "__main__":
    main(sys.argv[1:])
