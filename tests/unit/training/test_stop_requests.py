"""Requests come by signals and files; nothing is acted on between steps, and no request is lost."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from rankdrift.errors import Preempted
from rankdrift.layout import RunLayout
from rankdrift.training.stop_requests import Request, Requests, forget, listening


def send(*numbers: int) -> None:
    for number in numbers:
        os.kill(os.getpid(), number)


@pytest.fixture
def run(tmp_path: Path) -> RunLayout:
    return RunLayout(tmp_path)


@pytest.mark.parametrize(
    ("numbers", "told"),
    [
        ([], [Request.NONE, Request.NONE]),
        ([signal.SIGUSR1], [Request.SAVE, Request.NONE]),
        ([signal.SIGUSR1, signal.SIGUSR1], [Request.SAVE, Request.NONE]),
        ([signal.SIGTERM], [Request.STOP, Request.STOP]),
        ([signal.SIGTERM, signal.SIGTERM], [Request.STOP, Request.STOP]),
        ([signal.SIGINT], [Request.STOP, Request.STOP]),
        ([signal.SIGINT, signal.SIGTERM], [Request.STOP, Request.STOP]),
        ([signal.SIGTERM, signal.SIGINT], [Request.STOP, Request.STOP]),
        ([signal.SIGUSR1, signal.SIGTERM], [Request.STOP, Request.STOP]),
    ],
    ids=str,
)
def test_signals_wait_for_the_end_of_a_step(numbers: list[int], told: list[Request]) -> None:
    with listening() as requests:
        requests.at_step_ends = True
        send(*numbers)
        assert [requests.take(None), requests.take(None)] == told


@pytest.mark.parametrize("before", [[signal.SIGINT], [signal.SIGTERM, signal.SIGINT]], ids=str)
def test_a_second_interrupt_does_not_wait(before: list[int]) -> None:
    with listening() as requests:
        requests.at_step_ends = True
        send(*before)
        with pytest.raises(KeyboardInterrupt):
            send(signal.SIGINT)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_before_training_a_stop_ends_the_process_once(number: int) -> None:
    with listening() as requests:
        with pytest.raises(Preempted, match="nothing to save"):
            send(number)
        send(signal.SIGTERM)  # while it cleans up
        # a library may have swallowed the exception
        assert requests.take(None) is Request.STOP


def test_before_training_a_request_to_save_waits_for_the_first_step() -> None:
    with listening() as requests:
        send(signal.SIGUSR1)
        assert requests.take(None) is Request.SAVE


def test_the_handlers_that_were_there_come_back() -> None:
    numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    with listening():
        assert all(signal.getsignal(number) not in before for number in numbers)
    assert [signal.getsignal(number) for number in numbers] == before


@pytest.mark.parametrize(
    ("files", "told"),
    [
        ([], Request.NONE),
        (["SAVE"], Request.SAVE),
        (["STOP"], Request.STOP),
        (["SAVE", "STOP"], Request.STOP),
    ],
    ids=str,
)
def test_files_ask_until_it_is_done(files: list[str], told: Request, run: RunLayout) -> None:
    requests = Requests()
    for name in files:
        (run.root / name).touch()
    assert [requests.take(run), requests.take(run), requests.take(None)] == [told, told, Request.NONE]
    forget(run, told)
    assert list(run.root.iterdir()) == []


def test_a_saved_run_is_still_to_stop(run: RunLayout) -> None:
    run.save_request.touch()
    run.stop_request.touch()
    forget(run, Request.SAVE)
    assert Requests().take(run) is Request.STOP
