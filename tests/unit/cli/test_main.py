"""A user's mistake ends a command with one message and exit code 2, never a traceback."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from forked import run_command

from rankdrift.cli.main import commands, main
from rankdrift.errors import IntegrityError, Preempted, RankError, UserError


def refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    assert main(arguments) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"rankdrift {arguments[0]}: error: ")
    assert "Traceback" not in message
    return message


def test_commands_are_found_by_file_name() -> None:
    assert commands() == [
        "analyze",
        "check",
        "clean",
        "cluster",
        "compare",
        "consolidate",
        "data",
        "deploy",
        "doctor",
        "export",
        "fetch",
        "gather",
        "launch",
        "load",
        "notebook",
        "phase",
        "plan",
        "report",
        "run",
        "score",
        "search",
        "study",
        "train",
        "upload",
        "verify",
    ]


@pytest.mark.parametrize("command", commands())
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main([command, "--help"])
    assert stopped.value.code == 0
    assert "usage: rankdrift" in capsys.readouterr().out


@pytest.mark.parametrize("command", ["train", "study", "check"])
@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["--experiment", "none.yaml"], "none.yaml: no such recipe"),
        (["training.stepz=3"], "unknown key 'training.stepz' (value 3): did you mean 'steps'?"),
        (["data.tasks=[sst]"], "unknown task 'sst': did you mean 'sst2'?"),
        (["method.name=dora2"], "unknown method 'dora2'"),
        (["steps"], "override 'steps' is not of the form key.path=value"),
    ],
)
def test_bad_settings(
    command: str, arguments: list[str], part: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {"train": ["--config", "ds_configs/zero2.json"], "study": ["run"]}.get(command, [])
    assert part in refused([command, *before, *arguments], capsys)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        (["consolidate", "{}"], "no complete checkpoint"),
        (["score", "{}"], "{}: is no run, so it has no tasks of its own"),
        (["score", "{}", "--tasks", "topic"], "no config.json"),
        (["report", "{}"], "run 'rankdrift analyze --study {}' first"),
        (["analyze", "spectra"], "give either --study FOLDER, or --base MODEL"),
        (["analyze", "spektra", "--study", "x"], "unknown analysis 'spektra': did you mean 'spectra'?"),
        (["analyze", "--study", "{}"], "no runs there"),
        (["analyze", "--base", "{}", "--tuned", "x"], "no config.json"),
        (["analyze", "--base", "tiny"], "--base needs at least one --tuned"),
    ],
)
def test_bad_folders(
    arguments: list[str], part: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    filled = [argument.replace("{}", str(tmp_path)) for argument in arguments]
    assert part.replace("{}", str(tmp_path)) in refused(filled, capsys)


@pytest.mark.distributed
@pytest.mark.parametrize(
    ("given", "overrides", "part"),
    [
        ({"zero_optimisation": {"stage": 2}}, [], "did you mean 'zero_optimization'"),
        ({"gradient_clipping": 0.3}, [], "'gradient_clipping' is 0.3 here, but training.clip"),
        ({}, ["model.name={}"], "no *.safetensors weights"),
        ({}, ["method.targets=[q_prj]"], "'q_prj' matches no module"),
        ({}, ["data.tasks=[sst2]", "data.root={}"], "glue_sst2"),
        ({}, ["training.save_every=1", "training.steps=9000000"], "checkpoints take"),
    ],
    ids=["typo", "conflict", "no-weights", "no-target", "no-data", "no-space"],
)
def test_what_only_training_can_see_ends_it_before_the_first_step(
    given: dict, overrides: list[str], part: str, tiny: Path, tmp_path: Path
) -> None:
    (tmp_path / "config.json").write_text((tiny / "config.json").read_text())
    (tmp_path / "ds.json").write_text(json.dumps(given))
    filled = [override.replace("{}", str(tmp_path)) for override in ["model.name=tiny", *overrides]]
    status, said = run_command(
        "train", "--config", tmp_path / "ds.json", *filled, f"output={tmp_path / 'out'}", timeout=120
    )
    assert status == 2, said[-3000:]
    assert part in said
    assert "Traceback" not in said
    assert not list((tmp_path / "out").rglob("step-*"))


def ends(monkeypatch: pytest.MonkeyPatch, command: str, error: BaseException) -> None:
    """Make a command end with an error."""

    def end(*arguments: object) -> None:
        raise error

    monkeypatch.setattr(f"rankdrift.cli.{command}.run", end)


@pytest.mark.parametrize(
    ("error", "status", "message"),
    [
        (UserError("x: too long"), 2, "error: x: too long"),
        (IntegrityError("x: cut"), 3, "error: x: cut"),
        (RankError("rank 1 has lost another rank"), 1, "failed: rank 1 has lost another rank"),
        (Preempted("run again"), 75, "stopped: run again"),
        (KeyboardInterrupt(), 130, ""),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "failed: No space left on device"),
        (PermissionError(errno.EACCES, "Permission denied", "a/b"), 1, "failed: a/b: Permission denied"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_how_a_command_ended_is_its_exit_code(
    error: BaseException,
    status: int,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    ends(monkeypatch, "report", error)
    assert main(["report", "x"]) == status
    assert capsys.readouterr().err == (f"rankdrift report: {message}\n" if message else "")


@pytest.mark.parametrize(
    ("error", "rank"),
    [
        (FileNotFoundError(errno.ENOENT, "No such file", "a/b"), None),
        (OSError("a library's"), None),
        (OSError(errno.ENOSPC, "No space left on device"), "0"),
    ],
)
def test_mistakes_of_ours_and_ranks_keep_their_traceback(
    error: OSError, rank: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends(monkeypatch, "report", error)
    if rank:
        monkeypatch.setenv("RANK", rank)
    with pytest.raises(OSError, match=str(error.args[-1])) as caught:
        main(["report", "x"])
    assert caught.value is error


@pytest.mark.parametrize(("rank", "speaks"), [(None, True), ("0", True), ("1", False)])
def test_an_analysis_that_was_interrupted_can_go_on(
    rank: str | None, speaks: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ends(monkeypatch, "analyze", KeyboardInterrupt())
    if rank:
        monkeypatch.setenv("RANK", rank)
    assert main(["analyze"]) == 130
    message = "\nrankdrift analyze: interrupted; the same command goes on from there\n"
    assert capsys.readouterr().err == (message if speaks else "")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["intervene", "--step", "2", "runs/x", "runs/y"],
            "not understood: runs/x runs/y (names and folders go before the options)",
        ),
        (["spectra", "--study", "x", "--wrokers", "2"], "not understood: --wrokers 2"),
    ],
)
def test_words_that_no_command_takes(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["analyze", *arguments])
    assert stopped.value.code == 2
    assert capsys.readouterr().err.endswith(f"error: {message}\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_study_is_stopped_between_trainings_too(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    went_on = []

    def run_study(*arguments: object, **more: object) -> None:
        os.kill(os.getpid(), signal.SIGUSR1)  # nothing is training
        went_on.append(True)
        os.kill(os.getpid(), number)

    monkeypatch.setattr("rankdrift.studies.pipeline.run_study", run_study)
    assert main(["study", "run", "--ranks", "1"]) == 75
    assert went_on
    assert "stopped: run the same command again to go on" in capsys.readouterr().err


@pytest.mark.parametrize(("rank", "speaks", "waits"), [("0", True, []), ("3", False, [5.0])])
def test_of_many_ranks_the_first_one_speaks(
    rank: str,
    speaks: bool,
    waits: list[float],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    waited: list[float] = []
    monkeypatch.setattr("time.sleep", waited.append)
    monkeypatch.setenv("RANK", rank)
    assert main(["report", "/nowhere"]) == 2
    assert ("/nowhere" in capsys.readouterr().err) == speaks
    assert waited == waits


def test_a_model_is_made_before_the_ranks_form_a_group(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Inside a group, transformers' save_pretrained would write nothing on any rank but 0."""
    import rankdrift.training.run  # noqa: F401 - what it imports keeps the functions that it finds

    in_group = []

    def resolve(name: str, revision: str | None = None) -> Path:
        in_group.append(torch.distributed.is_initialized())
        raise UserError("far enough")

    monkeypatch.setattr("rankdrift.models.base.resolve", resolve)
    assert main(["train", "--config", str(root / "ds_configs" / "zero0.json"), "model.name=tiny"]) == 2
    assert in_group == [False]


@pytest.mark.parametrize("rank", [True, False])
def test_a_rank_ends_without_finalisation(rank: bool) -> None:
    # threads of gloo that outlive their group abort a process that finalises Python
    script = (
        "import atexit; from rankdrift.cli import main as cli; cli.main = lambda argv: 3; "
        "atexit.register(print, 'finalised'); print('buffered', end=''); cli.program([])"
    )
    environment = {key: value for key, value in os.environ.items() if key != "RANK"}
    ended = subprocess.run(
        [sys.executable, "-c", script],
        env=environment | ({"RANK": "0"} if rank else {}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 3
    assert ended.stdout == ("buffered" if rank else "bufferedfinalised\n")
