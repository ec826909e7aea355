"""How far long work is, and how long the rest will take, in lines that also a pipe and a log can hold."""

from __future__ import annotations

import time
from collections.abc import Callable

Say = Callable[[str], None]
Clock = Callable[[], float]
Progress = Callable[[str, int, int], None]
"""Takes what is done, how much of it is, and how much there is."""


def progress_lines(say: Say, pause: float = 5.0, clock: Clock = time.monotonic) -> Progress:
    """Return a progress function that says how much is done and how long the rest will take.

    It says one line at the start of each work, at most one every ``pause`` seconds, and one at its end. What
    was done before is not counted as speed.
    """
    began: dict[str, tuple[float, int]] = {}
    said: dict[str, float] = {}

    def progress(what: str, done: int, total: int) -> None:
        now = clock()
        started, before = began.setdefault(what, (now, done))
        if done < total and now - said.get(what, -pause) < pause:
            return
        said[what] = now
        left = (now - started) / (done - before) * (total - done) if before < done < total else None
        say(f"  {what} {done}/{total}" + (f", about {duration(left)} left" if left is not None else ""))

    return progress


def byte_lines(
    say: Say, what: str, pause: float = 5.0, clock: Clock = time.monotonic
) -> Callable[[int, int], None]:
    """Return a function of the bytes done and of all that says how many, at most once a ``pause`` (seconds).

    What takes less than a pause says nothing.
    """
    said = clock()

    def progress(done: int, total: int) -> None:
        nonlocal said
        if clock() - said >= pause and done < total:
            said = clock()
            say(f"{what}: {done / total:.0%} of {total / 1e9:.2f} GB")

    return progress


def indented(say: Say, by: int = 2) -> Say:
    """Return what says lines behind so many spaces."""
    return lambda line: say(" " * by + line)


def duration(seconds: float) -> str:
    """Return a time as 5 s, 3 min or 2 h 05 min."""
    if seconds < 60:
        return f"{seconds:.0f} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min"


def say(line: str) -> None:
    """Print a line at once: it is watched, also through a pipe."""
    print(line, flush=True)
