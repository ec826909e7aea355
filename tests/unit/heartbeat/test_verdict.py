"""Who was the first: tables of what guards report, each with the verdict that a person would give."""

from __future__ import annotations

import math
from typing import Any

import pytest

from rankdrift.heartbeat.place import Limits
from rankdrift.heartbeat.verdict import End, Seen, judge

LIMITS = Limits(silence=20.0, hang=500.0)
NOW = 1000.0


def seen(rank: int, **more: Any) -> Seen:
    return Seen(
        rank, f"vm{rank // 2}", **{"heard": NOW - 0.5, "count": 40, "step": 7, "limited": True} | more
    )


def ended(rank: int, end: End, ago: float, status: int = 1, **more: Any) -> Seen:
    return seen(rank, end=end, ended=NOW - ago, status=status, **more)


VICTIM = {"text": "rank 0 has lost another rank: connection reset", "idle": 0.1}
CASES: dict[str, tuple[list[Seen], tuple[int, int, str] | None]] = {
    # what is reported; rank, exit code and a part of the text of the verdict
    "all are well": ([seen(0), seen(1)], None),
    "none has begun a step, however long": ([seen(0, limited=False, idle=9e3), seen(1, limited=False)], None),
    "done, one before the other": ([ended(0, End.DONE, 3, 0), seen(1)], None),
    "killed": ([seen(0), ended(1, End.DIED, 0)], (1, 4, "rank 1 on vm0 died")),
    "killed, then its victims leave": (
        [ended(0, End.CUT, 0.1, **VICTIM), ended(2, End.DIED, 0.05), ended(1, End.CUT, 0.2, **VICTIM)],
        (2, 4, "rank 2 on vm1 died"),
    ),
    "killed, then another": (
        [seen(0), ended(1, End.DIED, 0.1), ended(2, End.DIED, 0.2)],
        (2, 4, "rank 2 on vm1 died"),
    ),
    "a machine reset": (
        [seen(0), ended(3, End.GONE, 0.1), ended(2, End.GONE, 0.2)],
        (2, 4, "has gone, and its guard with it; so have 3 on vm1"),
    ),
    "killed by NCCL, since it has waited for one that hangs": (
        [ended(0, End.DIED, 0.1, idle=600.0), seen(1, count=39, idle=601.0)],
        (1, 4, "hangs: nothing done for 601 s"),
    ),
    "stopped for a moment": ([seen(0), seen(1, stopped=19.0)], None),
    "stopped": ([seen(0), seen(1, stopped=20.5)], (1, 4, "has been stopped (SIGSTOP) for 20 s")),
    "stopped, and the others have given up": (
        [ended(0, End.CUT, 0.1, **VICTIM), seen(1, stopped=5.0)],
        (1, 4, "has been stopped"),
    ),
    "silent for a moment": ([seen(0), seen(2, heard=NOW - 19)], None),
    "silent": (
        [seen(0), seen(2, heard=NOW - 20.1), seen(3, heard=NOW - 19)],
        (2, 4, "has been silent for 20 s (its machine, or the network to it, is down); so have 3 on vm1"),
    ),
    "hangs": ([seen(0, idle=500.5), seen(1, count=39, idle=501.0)], (1, 4, "hangs: nothing done for 501 s")),
    "hangs beside its steps": (
        [seen(0, idle=500.5), seen(1, count=39, idle=501.0, limited=False)],
        (1, 4, "hangs"),
    ),
    "all wait in one exchange": ([seen(0, idle=500.5), seen(1, idle=500.7)], (1, 4, "hangs")),
    "cut, and the others are asked": ([ended(0, End.CUT, 1.0, **VICTIM), seen(1)], None),
    "cut, and the others are well": (
        [ended(0, End.CUT, 4.0, **VICTIM), seen(1)],
        (0, 1, "has lost the others, who are all there: rank 0 has lost another rank"),
    ),
    "cut, and one is not heard of": ([ended(0, End.CUT, 4.0, **VICTIM), seen(1, heard=NOW - 4.5)], None),
    "cut, and one that goes on is a part behind": (
        [ended(0, End.CUT, 1.0, text="x", idle=5.0), seen(1, count=39, idle=0.1)],
        None,
    ),
    "cut, all of them just now": ([ended(0, End.CUT, 1.0, **VICTIM), ended(1, End.CUT, 0.9, **VICTIM)], None),
    "cut, all of them": (
        [ended(0, End.CUT, 4.0, **VICTIM), ended(1, End.CUT, 4.1, **VICTIM)],
        (1, 1, "has lost the others, who are all there"),
    ),
    "cut by a time-out": (
        [ended(0, End.CUT, 4.0, text="Timed out", idle=600), seen(1, count=39, idle=601, limited=False)],
        (1, 4, "hangs"),
    ),
    "cut by one whose end its guard has not seen yet": (
        [ended(0, End.CUT, 0.1, text="reset", idle=0.0), seen(1, count=39, idle=0.2)],
        None,
    ),
    "raised": (
        [seen(0), ended(1, End.FAILED, 0, text="KeyError: 'x'")],
        (1, 1, "failed (KeyError: 'x'; its traceback is in its output)"),
    ),
    "raised, then its victims leave": (
        [ended(0, End.CUT, 0.0, **VICTIM), ended(1, End.FAILED, 0.1, text="KeyError: 'x'")],
        (1, 1, "failed"),
    ),
    "refused by one rank": ([seen(0), ended(1, End.FAILED, 2.5, 2, text="x: no")], (1, 2, "failed: x: no")),
    "refused by one rank just now": ([seen(0), ended(1, End.FAILED, 1.5, 2, text="x: no")], None),
    "refused by all": (
        [ended(0, End.FAILED, 0.1, 3, text="x: cut"), ended(1, End.FAILED, 1.0, 3, text="x: cut")],
        (0, 3, "failed: x: cut"),
    ),
    "asked to stop, all": ([ended(0, End.DONE, 20, 75), ended(1, End.DONE, 21, 75)], None),
    "asked to stop, alone": ([seen(0), ended(1, End.DONE, 10.5, 75)], (1, 75, "was asked to stop")),
    "asked to stop, before the others": ([seen(0), ended(1, End.DONE, 9.5, 75)], None),
    "asked to stop, and its victim": (
        [ended(0, End.CUT, 0.1, **VICTIM), ended(1, End.DONE, 0.3, 75)],
        (1, 75, "was asked to stop"),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_the_first_is_named(case: str) -> None:
    reported, expected = CASES[case]
    verdict = judge(reported, NOW, LIMITS)
    if expected is None:
        assert verdict is None
    else:
        assert verdict is not None
        assert (verdict.rank, verdict.status) == expected[:2]
        assert expected[2] in verdict.text
        assert verdict.text.endswith(", after step 7")


def test_what_rank_0_says_itself_is_not_said_again() -> None:
    for rank, said in ((0, True), (1, False)):
        verdict = judge([ended(rank, End.FAILED, 3, 2, text="no"), seen(1 - rank)], NOW, LIMITS)
        assert verdict is not None
        assert verdict.said is said


def test_before_the_first_step() -> None:
    verdict = judge([seen(0, step=0, end=End.DIED)], NOW, LIMITS)
    assert verdict is not None
    assert verdict.text.endswith("before its first step had ended")


def test_without_limits_nobody_is_lost_by_silence() -> None:
    unlimited = Limits(math.inf, math.inf)
    assert judge([seen(0, heard=0.0), seen(1, idle=9e9, stopped=9e9)], NOW, unlimited) is None
