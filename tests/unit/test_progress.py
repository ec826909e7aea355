"""Progress says how much is done and how long the rest will take, not too often."""

from __future__ import annotations

import pytest

from rankdrift.progress import byte_lines, progress_lines


class Clock:
    """A clock that is set by hand."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def test_the_first_and_the_last_are_said_and_few_between(clock: Clock) -> None:
    lines: list[str] = []
    progress = progress_lines(lines.append, pause=5, clock=clock)
    for done in range(11):
        progress("spectra", done, 10)
        clock.now += 2
    assert [line.split(",")[0].strip() for line in lines] == [
        "spectra 0/10",
        "spectra 3/10",
        "spectra 6/10",
        "spectra 9/10",
        "spectra 10/10",
    ]
    assert lines[1].endswith("about 14 s left")


@pytest.mark.parametrize(
    ("seconds", "left"), [(1, "3 s"), (50, "2 min"), (60, "3 min"), (2400, "2 h 00 min")]
)
def test_what_was_done_before_is_not_counted_as_speed(clock: Clock, seconds: int, left: str) -> None:
    lines: list[str] = []
    progress = progress_lines(lines.append, pause=0.5, clock=clock)
    progress("drift", 6, 10)
    clock.now += seconds
    progress("drift", 7, 10)
    assert lines == ["  drift 6/10", f"  drift 7/10, about {left} left"]


def test_each_work_has_a_first_line(clock: Clock) -> None:
    lines: list[str] = []
    progress = progress_lines(lines.append, clock=clock)
    progress("spectra", 0, 2)
    progress("drift", 0, 2)
    assert lines == ["  spectra 0/2", "  drift 0/2"]


def test_bytes_are_said_of_long_work_alone(clock: Clock) -> None:
    lines: list[str] = []
    progress = byte_lines(lines.append, "step-000002", pause=5, clock=clock)
    for done in range(0, 11):
        progress(done * 10**8, 10**9)
        clock.now += 2
    assert lines == [f"step-000002: {share}% of 1.00 GB" for share in (30, 60, 90)]
    quick: list[str] = []
    progress = byte_lines(quick.append, "step-000002", pause=5, clock=clock)
    progress(10**9, 10**9)
    assert quick == []
