"""Damaged and foreign checkpoints: who reads one names the file, once, and leaves the disk as it was."""

from __future__ import annotations

import copy
import json
import random
import shutil
import struct
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from rankdrift.analysis.sources.checkpoints import CheckpointTensors
from rankdrift.cli.main import main
from rankdrift.errors import IntegrityError, UserError
from rankdrift.export.consolidate import consolidate
from rankdrift.layout import RunLayout
from rankdrift.zero_checkpoint.manifest import Manifest
from rankdrift.zero_checkpoint.optimizer_state import open_training_state
from rankdrift.zero_checkpoint.shards import open_checkpoint

Tensors = dict[str, torch.Tensor]
OPTIMIZER = "zero_pp_rank_{}_mp_rank_00_optim_states.pt"
STEPS = (2, 4)


def save(zero: Any, folder: Path, tensors: Tensors, stage: int, ranks: int = 2) -> None:
    if stage == 0:
        zero.save_stage_0(folder, tensors)
    elif stage == 2:
        zero.save_stage_2(folder, [tensors], ranks)
    else:
        zero.save_stage_3(folder, [tensors], ranks)
    world_size = ranks if stage else 1
    zero.record_of(4 if "4" in folder.name else 2, zero_stage=stage, world_size=world_size).write(folder)


@pytest.fixture(params=[0, 2, 3], ids="stage-{}".format)
def run(request: pytest.FixtureRequest, tmp_path: Path, zero: Any, tensors: Tensors) -> RunLayout:
    """A run with two checkpoints, whose files have the same names and sizes."""
    run = RunLayout(tmp_path / "run")
    run.model.mkdir(parents=True)
    (run.model / "config.json").write_text('{"model_type": "llama"}')
    for step in STEPS:
        values = {name: tensor + step for name, tensor in tensors.items()}
        save(zero, run.checkpoint(step), values, request.param)
    return run


def victim(run: RunLayout) -> Path:
    """The last of a checkpoint's files: at stages 1 to 3 the last rank's optimizer shard."""
    return max(run.checkpoint(2).glob("*.pt"), key=lambda path: ("optim" in path.name, path.name))


def span(path: Path, member: str) -> tuple[int, int]:
    """Where a member's data lie in an archive."""
    with zipfile.ZipFile(path) as archive:
        info = next(info for info in archive.infolist() if info.filename.partition("/")[2] == member)
    name, extra = struct.unpack_from("<HH", path.read_bytes(), info.header_offset + 26)
    start = info.header_offset + 30 + name + extra
    return start, start + info.file_size


def flip(path: Path, place: int) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 4
    path.write_bytes(data)


def flip_data(run: RunLayout) -> None:
    flip(victim(run), span(victim(run), "data/0")[0] + 1)


def flip_pickle(run: RunLayout) -> None:
    flip(victim(run), sum(span(victim(run), "data.pkl")) // 2)


def flip_directory(run: RunLayout) -> None:
    flip(victim(run), victim(run).read_bytes().rindex(b"PK\1\2") + 17)  # of a CRC-32


def flip_local_header(run: RunLayout) -> None:
    flip(victim(run), victim(run).read_bytes().index(b"PK\3\4") + 28)  # of a length


def truncate(run: RunLayout) -> None:
    victim(run).write_bytes(victim(run).read_bytes()[:-1])


def empty(run: RunLayout) -> None:
    victim(run).write_bytes(b"")


def delete(run: RunLayout) -> None:
    victim(run).unlink()


def replace_by_folder(run: RunLayout) -> None:
    path = victim(run)
    path.unlink()
    path.mkdir()


def replace_by_loop(run: RunLayout) -> None:
    path = victim(run)
    path.unlink()
    path.symlink_to(path)


def swap_steps(run: RunLayout) -> None:
    shutil.copyfile(run.checkpoint(4) / victim(run).name, victim(run))


def swap_folders(run: RunLayout) -> None:
    shutil.rmtree(run.checkpoint(2))
    shutil.copytree(run.checkpoint(4), run.checkpoint(2))


def lie(**changes: Any) -> Callable[[RunLayout], None]:
    def change(run: RunLayout) -> None:
        path = run.checkpoint(2) / "checkpoint.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def cut_manifest(run: RunLayout) -> None:
    path = run.checkpoint(2) / "checkpoint.json"
    path.write_text(path.read_text()[:100])


# damage -> what the messages name; all of it is found by who reads the manifest and the files' sizes
BY_SIZE: dict[str, tuple[Callable[[RunLayout], None], str]] = {
    "truncated": (truncate, "victim"),
    "empty": (empty, "victim"),
    "missing": (delete, "victim"),
    "a folder instead": (replace_by_folder, "victim"),
    "a link to itself": (replace_by_loop, "victim"),
    "another step's folder": (swap_folders, "checkpoint.json"),
    "lies: step": (lie(step=4), "checkpoint.json"),
    "lies: ranks": (lie(world_size=7), "checkpoint.json"),
    "lies: stage": (lie(zero_stage=1), "checkpoint.json"),
    "lies: files": (lie(files={}), "checkpoint.json"),
    "lies: types": (lie(files=[1, 2]), "checkpoint.json"),
    "lies: climbing": (lie(files={"../../x": {"size": 1, "checksum": "0"}}), "checkpoint.json"),
    "manifest cut": (cut_manifest, "checkpoint.json"),
}
# found by who reads the files' indices
BY_INDEX = {
    "flipped pickle": (flip_pickle, "victim"),
    "flipped directory": (flip_directory, "victim"),
    "flipped header": (flip_local_header, "victim"),
}
# found by who reads the bytes, or knows the files by their directories
BY_CONTENT = {"flipped data": (flip_data, "victim"), "another step's shard": (swap_steps, "victim")}
DAMAGE = BY_SIZE | BY_INDEX | BY_CONTENT


def read_record(run: RunLayout) -> None:
    Manifest.read(run.checkpoint(2))


def check_contents(run: RunLayout) -> None:
    Manifest.read(run.checkpoint(2)).check_contents(run.checkpoint(2))


def open_shards(run: RunLayout) -> None:
    open_checkpoint(run.checkpoint(2))


def analyse(run: RunLayout) -> None:
    assert CheckpointTensors(run.checkpoint(2), adapter=False).names


def export(run: RunLayout) -> None:
    consolidate(run, 2)


READERS: dict[str, tuple[Callable[[RunLayout], None], set[str]]] = {
    "manifest": (read_record, {*BY_SIZE, "flipped directory", "another step's shard"}),
    "contents": (check_contents, {*DAMAGE}),
    "shards": (open_shards, {*BY_INDEX, "truncated", "empty", "a folder instead"}),
    "analysis": (analyse, {*BY_SIZE, *BY_INDEX, "another step's shard"}),
}
CASES = [(reader, damage) for reader, (_, found) in READERS.items() for damage in sorted(found)]


def listing(run: RunLayout) -> dict[str, tuple[int, int]]:
    """Every path below a run, with size and time of change."""
    paths = sorted(run.root.rglob("*"))
    states = {str(path): path.lstat() for path in paths if not path.is_dir()}
    return {path: (state.st_size, state.st_mtime_ns) for path, state in states.items()}


@pytest.mark.parametrize(("reader", "damage"), CASES)
def test_a_reader_names_the_file_and_changes_nothing(run: RunLayout, reader: str, damage: str) -> None:
    path, before = damaged(run, damage)
    with pytest.raises(IntegrityError) as caught:
        READERS[reader][0](run)
    assert_names(str(caught.value), path)
    assert listing(run) == before


def damaged(run: RunLayout, damage: str) -> tuple[Path, dict[str, tuple[int, int]]]:
    """Damage a run; return the path that messages are to name, and what the run holds now."""
    change, name = DAMAGE[damage]
    path = victim(run) if name == "victim" else run.checkpoint(2) / name
    change(run)
    return path, listing(run)


def assert_names(message: str, path: Path) -> None:
    assert path.name in message
    assert str(path.parent) in message
    assert "; " in message  # the remedy
    assert "\n" not in message


@pytest.mark.parametrize("damage", sorted(DAMAGE))
def test_commands_name_the_damaged_file_in_one_message(
    run: RunLayout, damage: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, before = damaged(run, damage)
    assert main(["verify", str(run.checkpoint(2))]) == 3
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if "DAMAGED" in line and str(path) in line]
    assert lines[-1] == "1 checkpoint: 1 of 1 damaged"
    assert main(["consolidate", str(run.root), "--step", "2"]) == 3
    message = capsys.readouterr().err
    assert message.startswith("rankdrift consolidate: error: ")
    assert_names(message.removesuffix("\n"), path)
    assert listing(run) == before


def test_a_manifest_removed_is_no_damage_but_no_checkpoint(run: RunLayout) -> None:
    (run.checkpoint(2) / "checkpoint.json").unlink()
    for reader in (read_record, check_contents, export):
        with pytest.raises(UserError, match="not a complete checkpoint") as caught:
            reader(run)
        assert not isinstance(caught.value, IntegrityError)


@pytest.mark.parametrize("stage", [2, 3])
def test_swapped_ranks_are_found_by_index(tmp_path: Path, zero: Any, tensors: Tensors, stage: int) -> None:
    even = {"weight": tensors["up"].repeat(2, 2)}  # both ranks' files have the same size
    run = RunLayout(tmp_path)
    save(zero, run.checkpoint(2), even, stage)
    one, other = (run.checkpoint(2) / OPTIMIZER.format(rank) for rank in range(2))
    first, second = one.read_bytes(), other.read_bytes()
    assert len(first) == len(second)
    one.write_bytes(second)
    other.write_bytes(first)
    for reader in (read_record, export):
        with pytest.raises(IntegrityError, match=rf"{one.name}: not the file that was written"):
            reader(run)


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("kind", ["ranks", "groups", "sizes"])
def test_a_foreign_shard_is_found_by_its_index(
    tmp_path: Path, zero: Any, tensors: Tensors, stage: int, kind: str
) -> None:
    """A manifest that calls it right does not help a shard of another run."""
    folder, other = tmp_path / "step-000002", tmp_path / "other"
    save(zero, folder, tensors, stage)
    items = list(tensors.items())
    if kind == "ranks":
        save(zero, other, tensors, stage, ranks=3)
    elif kind == "groups":
        (zero.save_stage_2 if stage == 2 else zero.save_stage_3)(other, [dict(items[:2]), dict(items[2:])], 2)
    else:
        save(zero, other, dict(items[:3]), stage)
    shutil.copyfile(other / OPTIMIZER.format(1), folder / OPTIMIZER.format(1))
    zero.record_of(2, world_size=2, zero_stage=stage).write(folder)
    of_sizes = r"its shards hold \d+: the shards are"
    message = of_sizes if kind == "sizes" else "rank 1's shard is"
    with pytest.raises(IntegrityError, match=f"{message} of another checkpoint"):
        open_checkpoint(folder)


def test_a_count_of_ranks_beyond_reason_is_refused(tmp_path: Path, zero: Any, tensors: Tensors) -> None:
    zero.save_stage_3(tmp_path, [tensors], 2, partition_count=2**21)
    with pytest.raises(UserError, match="partition_count=2097152"):
        open_checkpoint(tmp_path)


def nodes(tree: Any) -> Iterator[tuple[Any, Any]]:
    """Every place of a tree that holds a value: its container and its key or index."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from nodes(tree[key])


VALUES: list[Any] = [None, True, 0, -1, 10**12, 1.5, "x", [], {}, (), [None], {"a": 1}, [[]], [{}]]
TENSORS = [torch.zeros(3), torch.zeros(2, 2), torch.zeros(0), torch.zeros(5, dtype=torch.bool)]


@pytest.mark.parametrize("seed", range(3))
def test_values_of_a_wrong_kind_are_refused(run: RunLayout, seed: int) -> None:
    """Whole archives with any value in any place, as an attacker may make: read or refused, no crash."""
    draw = random.Random(seed)
    folder, path = run.checkpoint(2), victim(run)
    whole = torch.load(path, weights_only=False)
    refused = 0
    for _ in range(120):
        tree = copy.deepcopy(whole)
        container, key = draw.choice(list(nodes(tree)))
        if draw.random() < 0.2:
            container.pop(key)
        else:
            container[key] = draw.choice(VALUES + TENSORS)
        torch.save(tree, path)
        for read in (
            lambda: [tensor.load() for tensor in open_checkpoint(folder).tensors.values()],
            lambda: open_training_state(folder),
        ):
            try:
                read()
            except UserError:
                refused += 1
    assert refused > 50
