"""How far a study is: told from what its cells left in their folders, and stopped by whom it names."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from rankdrift import files
from rankdrift.errors import Preempted, RankError, UserError
from rankdrift.layout import StudyLayout
from rankdrift.spec import recipe_of
from rankdrift.studies import carry_out as stages
from rankdrift.studies import driver
from rankdrift.studies.cells import CONFIGS, Cell, cells_of
from rankdrift.studies.executors.processes import node
from rankdrift.studies.status import CellStatus, as_json, left_in_all, status_of, table
from rankdrift.studies.study_export import export

SEEDS = [1, 2, 3, 4]


@pytest.fixture
def cells(tmp_path: Path) -> list[Cell]:
    tree = {"model": {"name": "tiny"}, "data": {"tasks": ["topic"]}, "output": str(tmp_path), "study": "s"}
    tree |= {"training": {"steps": 50}, "seeds": SEEDS}
    return cells_of(recipe_of(tree, Path()), CONFIGS / "zero2.json", 1)


def recorded(cell: Cell, state: str, **more: object) -> None:
    files.write_json(
        cell.run.cell, {"state": state, "stage": "train", "attempts": 1, "node": node(), "time": "now"} | more
    )


def test_states_are_told_from_the_folders(cells: list[Cell]) -> None:
    done, running, failed, _ = cells
    recorded(done, "done", stage="", seconds={"train": 40.0, "score": 20.0})
    recorded(running, "running")
    files.write_json(running.run.status, {"state": "training", "step": 10, "steps": 50})
    rows = [{"split": "train", "step": step, "seconds": 0.5 * step} for step in range(1, 11)]
    files.write_text(running.run.metrics, "".join(map(files.json_line, rows)))
    recorded(failed, "failed", error="no memory")
    assert status_of(running).state == "lost"  # it says so, and nobody holds it
    with files.held(running.run.cell_lock):
        found = [status_of(cell) for cell in cells]
        assert [each.state for each in found] == ["done", "running", "failed", "waiting"]
        assert (found[1].step, found[1].left) == (10, 2.75 * 40)  # the median of 0.5 to 5 s
        assert (found[0].seconds, found[2].error, found[3].steps) == (60.0, "no memory", 50)
        assert as_json(found)["states"] == {"done": 1, "running": 1, "waiting": 1, "failed": 1}
        assert left_in_all(found) == 2 * 60.0  # one runs, one waits, one at a time
        assert "4 cells: 1 done, 1 running, 1 waiting, 1 failed" in str(table(found).title)
    recorded(running, "running", node="elsewhere")
    assert status_of(running).state == "running"  # of another machine nobody here knows better


def test_looking_needs_no_torch() -> None:
    looking = "import sys; import rankdrift.studies.status; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", looking], check=False).returncode == 0


def test_no_time_is_foretold_before_a_cell_is_done() -> None:
    assert left_in_all([CellStatus("a", "running"), CellStatus("b", "waiting")]) is None


@pytest.mark.parametrize(
    ("error", "state", "said"),
    [
        (RankError("rank 1 died"), "failed", "rank 1 died"),
        (ZeroDivisionError("0"), "failed", "ZeroDivisionError: 0"),
        (Preempted("go on"), "stopped", None),
    ],
)
def test_a_cell_says_what_became_of_it(
    cells: list[Cell], monkeypatch: pytest.MonkeyPatch, error: BaseException, state: str, said: str | None
) -> None:
    def train(cell: Cell, *how: object) -> None:
        assert status_of(cell).state == "running"
        raise error

    monkeypatch.setattr(stages, "_train", train)
    for attempt in (1, 2):
        with pytest.raises(type(error)):
            stages.carry_out(cells[0], with_base=False)
        record = stages.read_record(cells[0].run)
        assert (record["state"], record["error"], record["stage"]) == (state, said, "train")
        assert record["attempts"] == attempt


def test_two_processes_do_not_carry_out_one_cell(cells: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stages, "MOMENT", 0.1)
    with (
        files.held(cells[0].run.cell_lock),
        pytest.raises(UserError, match="another process carries out this cell"),
    ):
        stages.carry_out(cells[0], with_base=False)


def test_one_driver_at_a_time_and_it_can_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "MOMENT", 0.1)
    root = StudyLayout(tmp_path)
    with pytest.raises(UserError, match="nobody carries it out"):
        driver.stop(root)
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    with driver.alone(root):
        with (
            pytest.raises(UserError, match=f"being carried out by process {os.getpid()}"),
            driver.alone(root),
        ):
            pass
        driver.stop(root)
        assert sent == [(os.getpid(), signal.SIGTERM)]
        files.write_json(root.driver, {"node": "elsewhere", "pid": 1})
        with pytest.raises(UserError, match="by process 1 on elsewhere: run this command there"):
            driver.stop(root)
    files.write_json(root.driver, {"node": node(), "pid": 1})  # of a driver that was killed
    with pytest.raises(UserError, match="nobody carries it out any more"):
        driver.stop(root)
    assert len(sent) == 1


def test_an_archive_has_all_but_weights(tmp_path: Path, cells: list[Cell]) -> None:
    study, run = cells[0].study, cells[0].run
    with pytest.raises(UserError, match="has no report yet"):
        export(study, cells, tmp_path / "s.tar.gz")
    kept = [study.report, study.table("a"), study.tables / "a.csv", study.figures / "f.png", run.metrics]
    kept += [run.score(4), run.probe("updates")]
    left = [
        run.checkpoint(4) / "x.pt",
        run.export(4) / "model.safetensors",
        study.tables / ".parts" / "p.json",
    ]
    for path in (*kept, *left):
        files.write_text(path, path.name)
    files.write_json(run.spec, cells[0].spec.as_dict())
    packed = export(study, cells, tmp_path / "s.tar.gz")
    assert set(packed) == {path.relative_to(study.root) for path in [*kept, run.spec]}
    with tarfile.open(tmp_path / "s.tar.gz") as tar:
        tar.extractall(tmp_path / "out")
    sums = (tmp_path / "out" / "s" / "SHA256SUMS").read_text().splitlines()
    assert len(sums) == len(packed)
    for line in sums:
        digest, name = line.split("  ")
        assert hashlib.sha256((tmp_path / "out" / "s" / name).read_bytes()).hexdigest() == digest
    with pytest.raises(UserError, match=r"a \.tar\.gz is written"):
        export(study, cells, tmp_path / "s.zip")
