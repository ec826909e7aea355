"""Gathering from folders of this machine: parts become an ordinary checkpoint, or it is said what lacks."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from rankdrift import files
from rankdrift.cli.main import main
from rankdrift.errors import IntegrityError, UserError
from rankdrift.hosts import gather as gathering
from rankdrift.hosts.gather import Source, gather, sources_of
from rankdrift.hosts.ssh import Ssh
from rankdrift.layout import RunLayout, StudyLayout
from rankdrift.zero_checkpoint.manifest import Manifest, complete_steps, joined

FACTS = Manifest(
    step=4,
    world_size=2,
    zero_stage=2,
    method="full",
    precision="fp32",
    spec_digest="abc",
    base="/models/base",
    base_digest="def",
    data_position=16,
    seed=42,
)
FILES = ({"model.pt": b"weights", "optimizer_0.pt": b"0" * 99}, {"optimizer_1.pt": b"1" * 98})


def parts_in(root: Path, content: bytes = b"") -> list[RunLayout]:
    """Write what two machines would have of one run; rank 0's has the log as well."""
    runs = [RunLayout(root / name / "full-seed42") for name in ("vm1", "vm2")]
    folders = [run.checkpoint(4) for run in runs]
    own = []
    for folder, contents in zip(folders, FILES, strict=True):
        folder.mkdir(parents=True)
        for name, data in contents.items():
            (folder / name).write_bytes(data + content)
        own.append(FACTS.described(folder, {}))
    for node, folder in enumerate(folders):
        joined(own, ["vm1", "vm2"], node).keep(folder)
    runs[0].spec.write_text("{}")
    runs[0].metrics.write_text("logged\n")
    return runs


def brought(target: Path, *sources: Path) -> list[str]:
    said: list[str] = []
    gather(target, [Source(None, source) for source in sources], Ssh(), said.append)
    return said


def test_a_part_says_who_has_the_rest_and_how_it_is_brought(tmp_path: Path) -> None:
    first, second = parts_in(tmp_path)
    assert complete_steps(first.checkpoints) == complete_steps(second.checkpoints) == [4]
    with pytest.raises(UserError) as raised:
        Manifest.read(second.checkpoint(4))
    said = str(raised.value)
    assert "has 1 of the checkpoint's 3 files; node 0 (vm1) holds model.pt, optimizer_0.pt" in said
    assert said.endswith(f"rankdrift gather {second.root} --from vm1:{second.root}")


@pytest.mark.parametrize("kind", ["cut", "gone"])
def test_a_part_whose_own_file_is_damaged_is_no_checkpoint(tmp_path: Path, kind: str) -> None:
    _, second = parts_in(tmp_path)
    file = second.checkpoint(4) / "optimizer_1.pt"
    file.write_bytes(b"1") if kind == "cut" else file.unlink()
    assert complete_steps(second.checkpoints) == []


def test_gathered_parts_are_the_checkpoint_of_one_machine(tmp_path: Path) -> None:
    first, second = parts_in(tmp_path)
    said = brought(first.root, second.root)
    assert said == [f"{first.checkpoint(4)}: 1 of 3 files brought; whole now"]
    whole = Manifest.read(first.checkpoint(4))
    whole.check_contents(first.checkpoint(4))
    assert (whole.parts, whole.here, len(whole.files)) == ((), None, 3)
    assert sorted(path.name for path in first.checkpoint(4).iterdir()) == [
        "checkpoint.json",
        *sorted(whole.files),
    ]
    assert brought(first.root, second.root) == [f"{first.checkpoint(4)}: whole"]


def test_a_third_machine_gathers_the_run_with_its_log(tmp_path: Path) -> None:
    first, second = parts_in(tmp_path)
    third = RunLayout(tmp_path / "vm3" / "full-seed42")
    brought(third.root, second.root, first.root)
    Manifest.read(third.checkpoint(4)).check_contents(third.checkpoint(4))
    assert third.metrics.read_text() == "logged\n"
    assert complete_steps(third.checkpoints) == [4]


def test_a_study_is_gathered_run_by_run(tmp_path: Path) -> None:
    for name, content in (("full", b"full"), ("lora", b"lora")):
        for machine, run in zip(("vm1", "vm2"), parts_in(tmp_path / name, content), strict=True):
            study = tmp_path / "studies" / machine
            (study / "runs").mkdir(parents=True, exist_ok=True)
            run.root.rename(study / "runs" / f"{name}-seed42")
    target = tmp_path / "here"
    said = brought(target, *(tmp_path / "studies" / machine for machine in ("vm1", "vm2")))
    assert len(said) == 2
    for name in ("full", "lora"):
        folder = RunLayout(target / "runs" / f"{name}-seed42").checkpoint(4)
        Manifest.read(folder).check_contents(folder)
        assert (folder / "optimizer_1.pt").read_bytes() == b"1" * 98 + name.encode()


def test_a_killed_gathering_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = parts_in(tmp_path)
    third = RunLayout(tmp_path / "vm3" / "full-seed42")

    def killed(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(gathering, "_require_written", killed)
        with pytest.raises(KeyboardInterrupt):
            brought(third.root, first.root, second.root)
    assert complete_steps(third.checkpoints) == []
    brought(third.root, first.root, second.root)
    assert [path.name for path in third.checkpoints.iterdir()] == ["step-000004"]
    Manifest.read(third.checkpoint(4)).check_contents(third.checkpoint(4))


def test_an_altered_file_is_refused_and_taken_again_once_it_is_right(tmp_path: Path) -> None:
    first, second = parts_in(tmp_path)
    file = second.checkpoint(4) / "optimizer_1.pt"
    right = file.read_bytes()
    file.write_bytes(b"2" * len(right))
    with pytest.raises(IntegrityError, match=r"optimizer_1.pt \(from .*vm2.*not the file that was written"):
        brought(first.root, second.root)
    assert Manifest.read_part(first.checkpoint(4)).here == 0
    file.write_bytes(right)
    brought(first.root, second.root)
    Manifest.read(first.checkpoint(4))


def test_what_nobody_has_is_named_with_who_wrote_it(tmp_path: Path) -> None:
    first, second = parts_in(tmp_path)
    third = tmp_path / "vm3" / "full-seed42"
    with pytest.raises(
        UserError, match=r"model.pt and 1 more, written on vm1, is not in .*--from vm1:FOLDER"
    ):
        brought(third, second.root)
    assert first.checkpoint(4).exists()


def test_parts_of_another_saving_of_the_step_are_not_mixed(tmp_path: Path) -> None:
    first, _ = parts_in(tmp_path / "before")
    _, second = parts_in(tmp_path / "after", b"other")
    with pytest.raises(UserError, match=r"optimizer_1.pt, written on vm2, is not in"):
        brought(first.root, second.root)


@pytest.mark.parametrize(
    ("arguments", "part"),
    [
        ([], "gather from where?"),
        (["--from", ":/runs"], "--from :/runs: names no host"),
        (["--from", "nothing/there"], "no such folder"),
        (["--hostfile", "none"], "not a readable hostfile"),
    ],
)
def test_a_mistake_is_named(
    arguments: list[str], part: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gather", str(tmp_path), *arguments]) == 2
    assert part in capsys.readouterr().err


def test_sources_are_read_as_they_are_written(tmp_path: Path) -> None:
    here = Path("outputs/s")
    assert Source.parse("vm2:/data/s", here) == Source("vm2", Path("/data/s"))
    assert Source.parse("vm2:", here) == Source("vm2", here.absolute())
    assert Source.parse("root@10.0.0.2:x", here) == Source("root@10.0.0.2", Path("x"))
    assert Source.parse("./a:b", here) == Source(None, Path("./a:b"))
    name = subprocess.run(["hostname"], capture_output=True, text=True, check=True).stdout.strip()
    assert sources_of(["vm2", name, "127.0.0.1"], tmp_path) == [Source("vm2", tmp_path)]


def test_a_study_of_several_groups_is_gathered_group_by_group(tmp_path: Path) -> None:
    """Each machine has whole runs of its own groups, as phases leave them; locks stay where they are."""
    for machine, group in (("vm1", "sst2"), ("vm2", "rte")):
        study = StudyLayout(tmp_path / machine / "glue3")
        run = StudyLayout(study.root / group).run("full-seed42")
        files.write_json(study.cells, ["both know all cells"])
        files.write_json(run.spec, {"of": group})
        files.write_json(run.export(4) / "provenance.json", {"of": group})
        files.write_json(run.cell_lock, {})
        files.write_json(StudyLayout(study.root / group).tables / ".parts" / "drift" / "a.json", {})
    here = StudyLayout(tmp_path / "vm1" / "glue3")
    brought(here.root, tmp_path / "vm2" / "glue3")
    run = StudyLayout(here.root / "rte").run("full-seed42")
    assert files.read_json(run.export(4) / "provenance.json") == {"of": "rte"}
    assert (here.root / "rte" / "tables" / ".parts" / "drift" / "a.json").exists()
    assert not run.cell_lock.exists()
    assert files.read_json(StudyLayout(here.root / "sst2").run("full-seed42").spec) == {"of": "sst2"}
