"""Results in order, computed on one thread each, by any number of processes; GPUs shared among these."""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import operator
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from rankdrift.analysis import parallel
from rankdrift.analysis.parallel import map_unordered
from rankdrift.analysis.worklist import GPU_PROCESSES, processes


def test_every_result_is_computed_on_one_thread() -> None:
    with threadpool_limits(limits=2):
        (threads,) = map_unordered(lambda _: {each["num_threads"] for each in threadpool_info()}, [0], 1)
    assert threads == {1}


@pytest.mark.parametrize("workers", [1, 2])
def test_results_come_as_they_are_done_and_a_failure_is_raised(workers: int) -> None:
    assert sorted(map_unordered(operator.neg, range(9), workers)) == list(range(-8, 1))
    with pytest.raises(ZeroDivisionError):
        list(map_unordered(functools.partial(operator.truediv, 1), range(9), workers))


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Which GPUs of three a process makes its own."""
    numbers: list[int] = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", numbers.append)
    return numbers


@pytest.mark.parametrize(("first", "expected"), [(0, [1, 2, 1]), (2, [2, 1, 2])])
def test_processes_take_the_gpus_in_turn(taken: list[int], first: int, expected: list[int]) -> None:
    """The first GPU is not set: it is what a process uses that sets none."""
    places = multiprocessing.Value("i", first)
    for _ in range(5):
        parallel._take_next_gpu(places)
    assert taken == expected


@pytest.mark.parametrize("count", [0, 1])
def test_one_gpu_or_none_is_never_set(taken: list[int], monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    parallel.take_gpu(5)
    assert taken == []


@pytest.mark.parametrize(
    ("gpus", "wanted", "expected"),
    [(0, 0, 16), (1, 0, GPU_PROCESSES), (2, 0, 2 * GPU_PROCESSES), (8, 0, 16), (1, 9, 9)],
)
def test_a_gpu_is_shared_by_few_processes(
    monkeypatch: pytest.MonkeyPatch, gpus: int, wanted: int, expected: int
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    assert processes(wanted) == expected


INTERRUPTED = {
    "command.py": """
import signal
import sys
from items import compute
from rankdrift.analysis import parallel

parallel.PRELOADED = ("preloaded", "rankdrift.analysis.parallel")
if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in background jobs
    try:
        list(parallel.map_unordered(compute, range(4), workers=2))
    except KeyboardInterrupt:
        sys.exit("stopped")
""",
    "items.py": """
import time
from pathlib import Path

def compute(item):
    Path(__file__).with_name(f"computing-{item}").touch()
    time.sleep(600)
""",
    "preloaded.py": """
import time
from pathlib import Path

Path(__file__).with_name("importing").touch()
while not Path(__file__).with_name("imported").exists():
    time.sleep(0.01)
""",
}


@pytest.mark.parametrize(("moment", "processes"), [("importing", 1), ("computing", 2)])
def test_an_interrupt_silently_ends_all_processes(tmp_path: Path, moment: str, processes: int) -> None:
    """A terminal's Ctrl-C is a signal to the command and to all its processes."""
    for name, text in INTERRUPTED.items():
        (tmp_path / name).write_text(text)
    if moment == "computing":
        (tmp_path / "imported").touch()
    command = subprocess.Popen(
        [sys.executable, "command.py"],
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        while len(list(tmp_path.glob(f"{moment}*"))) < processes:
            assert command.poll() is None
            time.sleep(0.01)
        os.killpg(command.pid, signal.SIGINT)
        (tmp_path / "imported").touch()
        assert command.communicate(timeout=300)[1] == "stopped\n"
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(command.pid, signal.SIGKILL)


def test_what_processes_have_in_common_opens_no_gpu() -> None:
    """CUDA does not survive a fork: their parent, which imports for all of them, must not ask for it."""
    program = (
        "import importlib, torch\n"
        "def refuse(*_):\n"
        "    raise SystemExit('CUDA was asked for at import')\n"
        "for name in ('is_available', 'device_count', 'current_device', '_lazy_init'):\n"
        "    setattr(torch.cuda, name, refuse)\n"
        f"for name in {parallel.PRELOADED!r}:\n"
        "    importlib.import_module(name)\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
