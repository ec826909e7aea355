"""The starter of ranks, with small Python programs for ranks: exit codes, signals, nobody left behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from rankdrift.errors import IntegrityError, LostRankError, Preempted, RankError, UserError
from rankdrift.studies import launcher

SECONDS = 30.0  # until what must happen has happened
Starter = Callable[[str], subprocess.Popen[bytes]]

RANK = "import os, signal, sys, time; from pathlib import Path; rank = int(os.environ['RANK'])\n"
STARTER = """
import sys
from rankdrift.studies import launcher
launcher.GRACE = 0.5
sys.exit(launcher.run_ranks(2, sys.argv[1:]))
"""
LISTENING = """
def note(number, frame):
    with open(f"{rank}.signals", "a") as handle:
        handle.write(signal.Signals(number).name + "\\n")
for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
    signal.signal(number, note)
Path(f"{rank}.pid").write_text(str(os.getpid()))
"""


def python(program: str) -> list[str]:
    return [sys.executable, "-S", "-c", RANK + program]


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.02)


def gone(pid: int) -> bool:
    return not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("device", "given", "told"),
    [
        ("cpu", None, launcher.WHOLE_HOLES),
        ("cpu", "glibc.malloc.check=0", f"glibc.malloc.check=0:{launcher.WHOLE_HOLES}"),
        ("cpu", "glibc.malloc.tcache_count=3", "glibc.malloc.tcache_count=3"),  # as the user says
        ("cuda", None, "None"),
    ],
)
def test_heaps_of_cpu_ranks_keep_holes_whole(
    device: str, given: str | None, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DS_ACCELERATOR", device)
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    if given:
        monkeypatch.setenv("GLIBC_TUNABLES", given)
    monkeypatch.chdir(tmp_path)
    program = "Path(f'{rank}.told').write_text(str(os.environ.get('GLIBC_TUNABLES')))"
    assert launcher.run_ranks(2, python(program)) == 0
    assert [Path(f"{rank}.told").read_text() for rank in range(2)] == [told, told]


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("sys.exit(0)", 0),
        ("sys.exit(2)", 2),
        ("sys.exit(75)", 75),
        ("sys.exit(5 if rank == 1 else 0)", 5),
        ("time.sleep(0.5 * rank); sys.exit(3 + rank)", 3),
        ("time.sleep(0.5 * (1 - rank)); sys.exit(3 + rank)", 4),
        ("os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else time.sleep(0.5); sys.exit(1)", -9),
        ("os.kill(os.getpid(), signal.SIGTERM)", -15),  # nobody asked it to stop
        ("os.kill(os.getpid(), signal.SIGKILL) if rank == 1 else time.sleep(0.5); sys.exit(4)", 4),
    ],
)
def test_the_first_failure_is_the_result(program: str, status: int) -> None:
    assert launcher.run_ranks(2, python(program)) == status


def test_every_rank_knows_its_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7")
    monkeypatch.chdir(tmp_path)
    names = "RANK LOCAL_RANK WORLD_SIZE LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT CUDA_VISIBLE_DEVICES"
    program = f"Path(str(rank)).write_text(' '.join(os.environ[n] for n in '{names}'.split()))"
    assert launcher.run_ranks(3, python(program)) == 0
    found = [Path(str(rank)).read_text().split() for rank in range(3)]
    port = found[0][5]
    assert found == [[str(r), str(r), "3", "3", "127.0.0.1", port, "3,5,7"] for r in range(3)]
    assert 1024 < int(port) < 65536


def test_the_others_have_a_grace_when_a_rank_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(launcher, "GRACE", 1.0)
    endless = (
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); Path(f'{rank}.pid').write_text(str(os.getpid()))\n"
    )
    program = endless + (
        "while not all(Path(f'{r}.pid').exists() for r in range(3)): time.sleep(0.01)\n"
        "if rank == 0: sys.exit(7)\n"
        "if rank == 1: time.sleep(0.3); Path('grace').touch(); sys.exit(1)\n"
        "time.sleep(100)"
    )
    assert launcher.run_ranks(3, python(program)) == 7
    assert Path("grace").exists()
    assert gone(int(Path("2.pid").read_text()))


@pytest.fixture
def starter(tmp_path: Path) -> Iterator[Callable[[str], subprocess.Popen[bytes]]]:
    """Start two ranks by a starter of its own, in ``tmp_path``."""
    started: list[subprocess.Popen[bytes]] = []

    def start(program: str) -> subprocess.Popen[bytes]:
        process = subprocess.Popen([sys.executable, "-c", STARTER, *python(program)], cwd=tmp_path)
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.wait()


def pids(folder: Path) -> list[int]:
    """Return the ranks' process ids once both listen."""
    paths = [folder / f"{rank}.pid" for rank in range(2)]
    wait_until(lambda: all(path.exists() and path.read_text() for path in paths))
    return [int(path.read_text()) for path in paths]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1], ids=lambda n: n.name)
def test_signals_reach_every_rank_once(number: signal.Signals, starter: Starter, tmp_path: Path) -> None:
    # saving takes longer than the grace after a failure
    end = "time.sleep(1.5); sys.exit(75 if 'SIGUSR1' not in Path(f'{rank}.signals').read_text() else 0)"
    process = starter(LISTENING + f"while not Path(f'{{rank}}.signals').exists(): time.sleep(0.01)\n{end}")
    pids(tmp_path)
    process.send_signal(number)
    assert process.wait(SECONDS) == (0 if number == signal.SIGUSR1 else 75)
    assert [(tmp_path / f"{rank}.signals").read_text().split() for rank in range(2)] == [[number.name]] * 2


def test_what_a_terminal_sends_reaches_ranks_through_the_starter(starter: Starter, tmp_path: Path) -> None:
    process = starter(LISTENING + "time.sleep(100)")
    groups = [os.getpgid(pid) for pid in pids(tmp_path)]
    assert os.getpgid(process.pid) not in groups


def test_a_rank_that_does_not_listen_yet_is_stopped_and_no_failure(starter: Starter, tmp_path: Path) -> None:
    process = starter("Path(f'{rank}.pid').write_text(str(os.getpid())); time.sleep(100)")
    pids(tmp_path)
    process.send_signal(signal.SIGUSR1)  # nothing to save yet
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 75


def test_a_failed_save_is_no_preemption(starter: Starter, tmp_path: Path) -> None:
    wait = "while not Path(f'{rank}.signals').exists(): time.sleep(0.01)\n"
    process = starter(LISTENING + wait + "sys.exit(2 if rank == 1 else time.sleep(0.3) or 1)")
    pids(tmp_path)
    process.send_signal(signal.SIGTERM)
    assert process.wait(SECONDS) == 2


def test_a_killed_starter_leaves_no_rank(starter: Starter, tmp_path: Path) -> None:
    save = "while not Path(f'{rank}.signals').exists(): time.sleep(0.01)\nPath(f'{rank}.saved').touch()"
    process = starter(LISTENING + save)
    ranks = pids(tmp_path)
    process.kill()
    process.wait()
    wait_until(lambda: all(map(gone, ranks)))
    for rank in range(2):
        assert (tmp_path / f"{rank}.signals").read_text().split() == ["SIGTERM"]
        assert (tmp_path / f"{rank}.saved").exists()


@pytest.mark.parametrize(
    ("status", "raised", "message"),
    [
        (1, RankError, "a rank failed with exit code 1"),
        (2, UserError, "its message is above"),
        (3, IntegrityError, "its message is above"),
        (75, Preempted, "run the same command again"),
        (130, KeyboardInterrupt, None),
        (4, LostRankError, "a rank was lost, see above"),
        (-9, LostRankError, "a rank was killed by SIGKILL"),
    ],
)
def test_a_study_says_how_training_ended(
    status: int, raised: type[BaseException], message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launcher, "run_ranks", lambda *given: status)
    with pytest.raises(raised, match=message) as caught:
        launcher.launch(2, [])
    assert caught.type is raised


def test_ranks_among_those_of_other_machines(tmp_path: Path) -> None:
    """They are numbered behind those of the machines before, and told where rank 0 is."""
    names = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
    program = "import os, sys; from pathlib import Path\n"
    program += (
        f"Path({str(tmp_path)!r}, os.environ['RANK']).write_text(' '.join(map(os.environ.get, {names})))"
    )
    among = launcher.Among(1, 4, 2, 8, "vm1", 2345)
    assert launcher.run_ranks(8, [sys.executable, "-c", program], None, among) == 0
    told = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert told == {"4": "4 0 8 2 vm1 2345", "5": "5 1 8 2 vm1 2345"}
