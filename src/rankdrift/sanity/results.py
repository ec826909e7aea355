"""What the checks of an experiment have come to: a line a check, of a file that outlives a rank that dies."""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, TextIO

from rankdrift import files

State = Literal["passed", "failed", "not run"]
OF_EXPERIMENT = ("model", "data")
OF_ARM = ("method", "gradients", "overfit", "logging", "seeds", "reload")
EVERY_ARM = "all"
"""What stands for the arm of a check that is the same for all of them."""
BEGUN = "begun"


@dataclass(frozen=True)
class Result:
    """One check of one arm."""

    check: str
    arm: str
    state: State
    what: str
    """What was seen, what is wrong, or why it was not run."""
    seconds: float = 0.0


class Record:
    """The file of results, which one process writes.

    Parameters
    ----------
    path
        JSON lines; None on ranks that write none.
    told
        Who is told of each check that begins.

    """

    def __init__(self, path: Path | None, told: TextIO = sys.stderr) -> None:
        self.path, self.told = path, told
        self.began = time.perf_counter()

    def begin(self, check: str, arm: str) -> None:
        """Say that a check is under way: if this process dies, it is the one that failed."""
        self.began = time.perf_counter()
        self._append({"check": check, "arm": arm, "state": BEGUN})
        if self.path:
            print(
                f"checking {check}{f' of {arm}' if arm != EVERY_ARM else ''} ...", file=self.told, flush=True
            )

    def end(self, check: str, arm: str, state: State, what: str) -> None:
        """Note what it came to, and the time since it began."""
        seconds = 0.0 if state == "not run" else time.perf_counter() - self.began
        self._append(asdict(Result(check, arm, state, what, seconds)))

    def _append(self, row: dict[str, object]) -> None:
        if self.path:
            with self.path.open("a", encoding="utf-8") as handle:
                files.append_jsonl(handle, row)


def read(path: Path) -> tuple[list[Result], tuple[str, str] | None]:
    """Return the results of a file, and the check and arm that has begun and not ended, if there is one."""
    done: list[Result] = []
    under_way = None
    for row in files.read_jsonl(path):
        if row["state"] == BEGUN:
            under_way = (row["check"], row["arm"])
        else:
            done.append(Result(**row))
            under_way = None if under_way == (row["check"], row["arm"]) else under_way
    return done, under_way
