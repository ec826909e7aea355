"""Who was the first to fail, from what guards have reported."""

from __future__ import annotations

import enum
from collections.abc import Collection, Iterable
from dataclasses import dataclass

from rankdrift.errors import INTERRUPTED, LostRankError, Preempted, RankError
from rankdrift.heartbeat.place import Limits

SETTLE = 2.0
"""Seconds for rank 0 to say what every rank meets, and for a dead rank to be noticed behind its victims."""
ALONE = 10.0
"""Seconds that a rank may have gone before the others, where it was asked to stop."""
REQUESTED = (Preempted.exit_code, INTERRUPTED)


class End(enum.StrEnum):
    """How a rank has ended, or is about to."""

    DONE = "done"
    """It has left in good order, its status says how."""
    FAILED = "failed"
    """It has raised an error of its own."""
    CUT = "cut"
    """It has lost another rank in a collective: a victim."""
    DIED = "died"
    """It has gone without a word, its guard says."""
    GONE = "gone"
    """So has its guard: the connection has closed."""


@dataclass
class Seen:
    """What is known of a rank."""

    rank: int
    host: str
    heard: float
    """When its guard was last heard of; times are seconds of the referee's clock."""
    count: int = 0
    """Parts of steps that it has done; every rank does the same ones."""
    step: int = 0
    """The last step that it has done."""
    limited: bool = False
    """Whether it is within a step, whose parts may not last for ever."""
    idle: float = 0.0
    """Seconds since its count has changed."""
    stopped: float = 0.0
    """Seconds that the system has had it stopped."""
    end: End | None = None
    ended: float = 0.0
    status: int = 0
    """The exit code it has told."""
    text: str = ""
    """What it has said of its end."""


@dataclass(frozen=True)
class Verdict:
    """Which rank has failed first and how; all others end with ``status``."""

    rank: int
    host: str
    step: int
    """The last step that it has done."""
    how: str
    status: int
    said: bool = False
    """Whether the rank has said so itself."""
    hung: bool = False
    """Whether where it stands is to be seen in its stack."""

    @property
    def text(self) -> str:
        """One line for people."""
        stood = f"after step {self.step}" if self.step else "before its first step had ended"
        return f"rank {self.rank} on {self.host} {self.how}, {stood}"


def judge(seen: Collection[Seen], now: float, limits: Limits) -> Verdict | None:
    """Return the verdict, once there is something to be judged and it can be told who was first."""
    living = [each for each in seen if each.end is None]
    cut = [each for each in seen if each.end is End.CUT]
    for verdict in (
        _of_the_dead(seen, limits),
        _of_the_failed(seen, now),
        _of_the_stopped(living, limits, bool(cut)),
        _of_the_silent([*living, *cut], now, limits),
        _of_the_hanging(living, limits),
        _of_the_cut(seen, cut, now, limits),
        _of_the_alone(seen, now),
    ):
        if verdict:
            return verdict
    return None


def _of_the_dead(seen: Collection[Seen], limits: Limits) -> Verdict | None:
    dead = [each for each in seen if each.end in (End.DIED, End.GONE)]
    if not dead:
        return None
    first = min(dead, key=lambda each: each.ended)
    behind = _behind(first, seen)
    if behind and first.idle >= limits.hang:  # NCCL ends ranks that have waited for too long
        return _hanging(behind)
    if first.end is End.DIED:
        return _lost(first, "died (killed or crashed: it has said nothing)")
    return _lost(first, f"has gone, and its guard with it{_also(first, dead)}")


def _of_the_failed(seen: Collection[Seen], now: float) -> Verdict | None:
    """What every rank meets alike, rank 0 says; an error of one rank alone is told by its verdict."""
    failed = [each for each in seen if each.end is End.FAILED]
    if not failed:
        return None
    spoken = [each for each in failed if each.rank == 0 or each.status == RankError.exit_code]
    if not spoken and now < min(each.ended for each in failed) + SETTLE:
        return None
    first = min(spoken or failed, key=lambda each: each.ended)
    how = f"failed: {first.text}"
    if first.status == RankError.exit_code and first.rank:
        how = f"failed ({first.text}; its traceback is in its output)"
    return Verdict(first.rank, first.host, first.step, how, first.status, said=first.rank == 0)


def _of_the_stopped(living: Iterable[Seen], limits: Limits, missed: bool) -> Verdict | None:
    """A stopped rank may go on, unless others have given up waiting for it."""
    limit = min(SETTLE, limits.silence) if missed else limits.silence
    stopped = [each for each in living if each.stopped >= limit]
    if not stopped:
        return None
    first = max(stopped, key=lambda each: each.stopped)
    return _lost(first, f"has been stopped (SIGSTOP) for {first.stopped:.0f} s")


def _of_the_silent(watched: Iterable[Seen], now: float, limits: Limits) -> Verdict | None:
    silent = [each for each in watched if now - each.heard >= limits.silence]
    if not silent:
        return None
    first = min(silent, key=lambda each: each.heard)
    also = _also(first, [each for each in watched if now - each.heard >= limits.silence / 2])
    what = "its machine, or the network to it, is down"
    return _lost(first, f"has been silent for {now - first.heard:.0f} s ({what}){also}")


def _of_the_hanging(living: list[Seen], limits: Limits) -> Verdict | None:
    waiting = [each for each in living if each.limited and each.idle >= limits.hang]
    return _hanging(min(living, key=_progress)) if waiting else None


def _of_the_cut(seen: Collection[Seen], cut: list[Seen], now: float, limits: Limits) -> Verdict | None:
    """Find the cause behind the first victim; where all ranks are well it is the cause itself."""
    if not cut:
        return None
    first = min(cut, key=lambda each: each.ended)
    left = [each for each in seen if each.end is End.DONE and each.status in REQUESTED]
    if left:
        return _as_asked(min(left, key=lambda each: each.ended))
    told_since = first.ended + SETTLE + limits.beat
    if now < told_since or any(each.heard < told_since - limits.beat for each in seen if each.end is None):
        return None
    if behind := _behind(first, seen):  # by what it has told since: its guard may just not have seen its end
        return _hanging(behind)
    how = f"has lost the others, who are all there: {first.text}"
    return Verdict(first.rank, first.host, first.step, how, RankError.exit_code)


def _of_the_alone(seen: Collection[Seen], now: float) -> Verdict | None:
    """A rank that was stopped on request leaves the others behind, where it alone was asked."""
    left = [each for each in seen if each.end is End.DONE and each.status in REQUESTED]
    if left and now > min(each.ended for each in left) + ALONE and any(each.end is None for each in seen):
        return _as_asked(min(left, key=lambda each: each.ended))
    return None


def _as_asked(first: Seen) -> Verdict:
    return Verdict(first.rank, first.host, first.step, "was asked to stop", first.status)


def _lost(first: Seen, how: str) -> Verdict:
    return Verdict(first.rank, first.host, first.step, how, LostRankError.exit_code)


def _hanging(first: Seen) -> Verdict:
    how = f"hangs: nothing done for {first.idle:.0f} s"
    return Verdict(first.rank, first.host, first.step, how, LostRankError.exit_code, hung=True)


def _behind(of: Seen, seen: Iterable[Seen]) -> Seen | None:
    """Return the rank that has done the least, if it is less than this one and it stands as long."""
    others = [each for each in seen if each.end is None and each.count < of.count and each.idle >= of.idle]
    return min(others, key=_progress, default=None)


def _progress(each: Seen) -> tuple[int, float]:
    return each.count, -each.idle


def _also(first: Seen, found: Iterable[Seen]) -> str:
    """Name the others to whom the same has happened."""
    others = [f"{each.rank} on {each.host}" for each in found if each is not first]
    return f"; so have {', '.join(others)}" if others else ""
