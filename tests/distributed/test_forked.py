"""Scripts that are forked end as they would end if Python had been started for them."""

from __future__ import annotations

from pathlib import Path

import pytest
from forked import run_command, run_forked

pytestmark = pytest.mark.distributed

RANK = "import os; rank, ranks = (int(os.environ[name]) for name in ('RANK', 'WORLD_SIZE'))\n"


def script(folder: Path, code: str) -> Path:
    path = folder / "script.py"
    path.write_text(code)
    return path


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("pass", 0, ""),
        ("import os; os._exit(7)", 7, ""),
        ("raise SystemExit", 0, ""),
        ("import sys; sys.exit(3)", 3, ""),
        ("import sys; sys.exit('no')", 1, "no"),
        ("assert 1 == 2, 'not equal'", 1, "AssertionError: not equal"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -9, ""),
    ],
)
def test_its_exit_code_is_told(tmp_path: Path, code: str, status: int, said: str) -> None:
    found = run_forked(script(tmp_path, code))
    assert found[0] == status
    assert said in found[1]


@pytest.mark.parametrize("failing", [0, 1])
def test_a_rank_that_fails_is_told(tmp_path: Path, failing: int) -> None:
    code = f"{RANK}print(f'rank {{rank}} of {{ranks}}'); assert rank != {failing}"
    status, said = run_forked(script(tmp_path, code), ranks=2)
    assert status == 1
    assert {"rank 0 of 2", "rank 1 of 2"} <= set(said.splitlines())


def test_it_is_where_it_is_told_to_be_and_nothing_stays(tmp_path: Path) -> None:
    code = "import os, sys, tempfile; print(os.getcwd(), tempfile.gettempdir(), sys.argv[1:])"
    status, said = run_forked(script(tmp_path, code), "a b", "c", folder=tmp_path, TMPDIR=str(tmp_path))
    assert (status, said) == (0, f"{tmp_path} {tmp_path} ['a b', 'c']\n")
    status, said = run_forked(script(tmp_path, code))
    assert said == f"{Path.cwd()} {said.split()[1]} []\n"
    assert str(tmp_path) not in said


def test_a_command_ends_as_a_users(tmp_path: Path) -> None:
    status, said = run_command("verify", tmp_path, folder=tmp_path)
    assert status == 2
    assert said.startswith("rankdrift verify: error: ")
    assert "Traceback" not in said
