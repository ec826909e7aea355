"""What ``rankdrift analyze`` refuses before it measures anything."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankdrift import files
from rankdrift.cli.main import main
from rankdrift.layout import RunLayout, StudyLayout
from rankdrift.spec import parse_spec


@pytest.mark.parametrize(
    ("source", "part"),
    [
        ("auto", "no run has a complete checkpoint or an export"),
        ("exports", "use --source checkpoints"),
        ("checkpoints", "use --source exports"),
    ],
)
def test_a_study_with_nothing_to_read(
    source: str, part: str, tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = StudyLayout(tmp_path)
    run = study.run("full-seed1")
    files.write_json(run.spec, parse_spec({"model": {"name": "tiny"}}).as_dict())
    run.checkpoint(3).mkdir(parents=True)  # of a save that was killed
    assert main(["analyze", "--study", str(tmp_path), "--source", source]) == 2
    assert part in capsys.readouterr().err


def test_an_unknown_source(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["analyze", "--study", str(tmp_path), "--source", "shards"])
    assert stopped.value.code == 2
    assert "'auto', 'exports', 'checkpoints'" in capsys.readouterr().err


def test_a_checkpoint_outside_a_run(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    checkpoint = RunLayout(tmp_path).checkpoint(3)
    checkpoint.mkdir(parents=True)
    (checkpoint / "mp_rank_00_model_states.pt").touch()
    arguments = ["--base", "tiny", "--tuned", str(checkpoint), "--output", str(tmp_path / "out")]
    assert main(["analyze", *arguments]) == 2
    message = capsys.readouterr().err
    assert str(checkpoint) in message
    assert f"{tmp_path / 'model'} has no config.json" in message
