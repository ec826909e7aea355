"""Exports: whole or absent, made once, loadable, and refused with a reason."""

from __future__ import annotations

import dataclasses
import json
import multiprocessing
import os
import re
import shutil
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import families
import pytest
import torch
import xxhash
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GenerationConfig, LlamaForCausalLM

from rankdrift.cli.consolidate import size
from rankdrift.cli.main import main
from rankdrift.errors import UserError
from rankdrift.export import atomic_folder, safetensors_writer
from rankdrift.export import consolidate as consolidation
from rankdrift.export.consolidate import consolidate, consolidate_run
from rankdrift.export.contents import Options
from rankdrift.layout import RunLayout
from rankdrift.methods.full import METHOD
from rankdrift.models.base import load_model
from rankdrift.progress import byte_lines
from rankdrift.spec import ModelSpec
from rankdrift.zero_checkpoint.manifest import Manifest

MakeRun = Callable[..., RunLayout]


def test_an_export_states_where_it_came_from(make_run: MakeRun, tensors: dict[str, torch.Tensor]) -> None:
    run = make_run(500, shared={"head": "embed"})
    folder = consolidate(run, 500)
    assert folder == run.export(500)
    weights = load_file(folder / "model.safetensors")
    assert set(weights) == set(tensors)
    assert all(torch.equal(weights[name], tensors[name]) for name in tensors)
    provenance = json.loads((folder / "provenance.json").read_text())
    assert (provenance["run"], provenance["step"], provenance["method"]) == ("run", 500, "full")
    assert provenance["base"] == {"folder": "/models/base", "digest": "b" * 64}
    assert (provenance["dtype"], provenance["tied"]) == ("fp32", {"head": "embed"})
    assert provenance["checkpoint"]["world_size"] == 2
    assert set(provenance["outputs"]) == {"config.json", "tokenizer.json", "model.safetensors"}
    for name, output in provenance["outputs"].items():
        data = (folder / name).read_bytes()
        assert output == {"size": len(data), "checksum": xxhash.xxh3_128_hexdigest(data)}


def test_bf16_rounds_the_masters_once(make_run: MakeRun, tensors: dict[str, torch.Tensor]) -> None:
    folder = consolidate(make_run(1, config={"torch_dtype": "float16"}), 1, Options("bf16"))
    weights = load_file(folder / "model.safetensors")
    assert all(torch.equal(weights[name], tensors[name].bfloat16()) for name in tensors)
    assert json.loads((folder / "config.json").read_text()) == {"dtype": "bfloat16"}


def test_aliases_are_written_where_the_configuration_does_not_tie(make_run: MakeRun) -> None:
    run = make_run(1, shared={"head": "embed"}, config={"tie_word_embeddings": False})
    weights = load_file(consolidate(run, 1) / "model.safetensors")
    assert torch.equal(weights["head"], weights["embed"])


def state_of(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in [folder, *folder.rglob("*")]}


def change_checkpoint(run: RunLayout) -> None:
    manifest = Manifest.read(run.checkpoint(1))
    dataclasses.replace(manifest, data_position=manifest.data_position + 1).write(run.checkpoint(1))


def test_an_export_is_made_once(make_run: MakeRun) -> None:
    run, lines = make_run(1), []
    before = state_of(consolidate(run, 1))
    assert state_of(consolidate(run, 1, progress=lines.append)) == before
    assert lines == ["step-000001: up to date"]
    weights = load_file(consolidate(run, 1, Options("bf16")) / "model.safetensors")  # another export
    assert weights["embed"].dtype == torch.bfloat16


@pytest.mark.parametrize(
    "change",
    [
        change_checkpoint,
        lambda run: (run.model / "tokenizer.json").write_text('{"new": true}'),
        lambda run: (run.export(1) / "model.safetensors").unlink(),
        lambda run: (run.export(1) / "model.safetensors").write_bytes(b""),
    ],
)
def test_an_export_is_made_anew_when_its_inputs_change_or_it_is_damaged(
    make_run: MakeRun, tensors: dict[str, torch.Tensor], change: Callable[[RunLayout], object]
) -> None:
    run = make_run(1)
    before = state_of(consolidate(run, 1))
    change(run)
    folder = consolidate(run, 1)
    assert state_of(folder) != before
    assert set(load_file(folder / "model.safetensors")) == set(tensors)
    assert (folder / "tokenizer.json").read_text() == (run.model / "tokenizer.json").read_text()
    assert [entry.name for entry in run.exports.iterdir()] == ["step-000001"]


def test_every_complete_step_is_exported(make_run: MakeRun) -> None:
    run = make_run(10, 20, 30)
    (run.checkpoint(20) / "checkpoint.json").unlink()
    assert consolidate_run(run) == [run.export(10), run.export(30)]
    assert consolidate_run(run, [30]) == [run.export(30)]
    with pytest.raises(UserError, match="not a complete checkpoint"):
        consolidate_run(run, [20])


def test_processes_share_the_steps(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run, lines = make_run(10, 20, 30), []
    assert consolidate_run(run, jobs=2, progress=lines.append) == [run.export(step) for step in (10, 20, 30)]
    assert lines == [f"step-{step:06d}: {run.export(step)}" for step in (10, 20, 30)]
    alone = contents(run)
    shutil.rmtree(run.exports)
    consolidate_run(run)
    assert contents(run) == alone
    (run.checkpoint(20) / "checkpoint.json").unlink()
    fork = multiprocessing.get_context("fork")  # whose processes need not import all again
    monkeypatch.setattr(multiprocessing, "get_context", lambda _: fork)
    with pytest.raises(UserError, match="000020: not a complete checkpoint"):
        consolidate_run(run, [10, 20, 30], jobs=2)


def contents(run: RunLayout) -> dict[str, bytes]:
    """All exported files but those that state times."""
    files = (path for path in run.exports.rglob("*") if path.is_file() and path.name != "provenance.json")
    return {str(path): path.read_bytes() for path in files}


@pytest.fixture
def in_small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """Exports say how far they are after each number that is written."""
    monkeypatch.setattr(safetensors_writer, "_CHUNK", 4)
    monkeypatch.setattr(consolidation, "byte_lines", partial(byte_lines, pause=0))


@pytest.mark.usefixtures("in_small_steps")
def test_progress_counts_to_the_end(make_run: MakeRun) -> None:
    run, lines = make_run(7), []
    consolidate(run, 7, progress=lines.append)
    shares = [share(line) for line in lines[:-1]]
    assert shares == sorted(shares)
    assert len(shares) > 50
    assert shares[0] < 5
    assert 95 < shares[-1] <= 100
    assert lines[-1] == f"step-000007: {run.export(7)}"


def share(line: str) -> int:
    """The percentage that a line of progress says; -1 if it says none."""
    found = re.search(r"(\d+)% of", line)
    return int(found[1]) if found else -1


@pytest.mark.usefixtures("in_small_steps")
def test_a_killed_export_leaves_nothing_that_looks_finished(make_run: MakeRun) -> None:
    """The process dies at once (no clean-up, as by kill -9) when half of the weights are written."""
    run = make_run(1)
    if not (child := os.fork()):
        consolidate(run, 1, progress=lambda line: " 5" in line and os._exit(9))  # type: ignore[func-returns-value]
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    left = [entry.name for entry in run.exports.iterdir()]
    assert left == [".step-000001.tmp"]
    assert not (run.exports / left[0] / "provenance.json").exists()
    consolidate(run, 1)
    assert [entry.name for entry in run.exports.iterdir()] == ["step-000001"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (change_checkpoint, "replaced while it was read"),
        (lambda run: shutil.rmtree(run.checkpoint(1)), "No such file"),
        (lambda run: (run.checkpoint(1) / "checkpoint.json").unlink(), "not a complete checkpoint"),
    ],
    ids=["replaced", "removed", "half removed"],
)
@pytest.mark.usefixtures("in_small_steps")
def test_a_checkpoint_that_changes_while_it_is_read(
    make_run: MakeRun, change: Callable[[RunLayout], Any], message: str
) -> None:
    run, changed = make_run(1), False

    def progress(line: str) -> None:
        nonlocal changed
        if share(line) >= 50 and not changed:
            changed = True
            change(run)

    with pytest.raises(UserError, match=message):
        consolidate(run, 1, progress=progress)
    assert list(run.exports.iterdir()) == []


def test_the_generation_config_of_the_base_arrives(make_run: MakeRun, tmp_path: Path) -> None:
    """By way of what training writes to ``model/``."""
    base = LlamaForCausalLM(families.llama())
    base.generation_config.max_length = 23
    base.save_pretrained(tmp_path / "base")
    run = make_run(1)
    METHOD.save_config(load_model(tmp_path / "base", ModelSpec()), run.model)
    assert GenerationConfig.from_pretrained(consolidate(run, 1)).max_length == 23


def test_a_disk_too_small_is_said_before_writing(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make_run(1)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    monkeypatch.setattr(safetensors_writer, "write_safetensors", lambda *arguments: pytest.fail("it wrote"))
    with pytest.raises(UserError, match="GB free where the export needs"):
        consolidate(run, 1)
    assert list(run.exports.iterdir()) == []


def test_a_file_in_the_way_is_named(make_run: MakeRun) -> None:
    run = make_run(1)
    run.exports.write_text("in the way")
    with pytest.raises(UserError, match="exports: the export cannot be made"):
        consolidate(run, 1)


def test_two_exports_of_one_step_do_not_mix(make_run: MakeRun) -> None:
    run = make_run(1)
    with (
        atomic_folder.locked(run.checkpoint(1)),
        pytest.raises(UserError, match="another process is consolidating it"),
    ):
        consolidate(run, 1)
    consolidate(run, 1)


@pytest.mark.parametrize(
    ("change", "options", "message"),
    [
        (lambda run: shutil.rmtree(run.model), {}, "run/model: no such folder"),
        (lambda run: (run.model / "config.json").unlink(), {}, r"no config\.json or adapter_config\.json"),
        (lambda run: None, {"dtype": "int8"}, "unknown dtype 'int8'"),
        (lambda run: None, {"shard_size": 0}, "shard size 0"),
        (lambda run: None, {"merge": True}, "no LoRA run"),
    ],
)
def test_what_an_export_needs(
    make_run: MakeRun, change: Callable[[RunLayout], None], options: dict[str, Any], message: str
) -> None:
    run = make_run(1)
    change(run)
    with pytest.raises(UserError, match=message):
        consolidate(run, 1, Options(**options))


def test_a_run_without_checkpoint_is_refused(make_run: MakeRun) -> None:
    with pytest.raises(UserError, match="no complete checkpoint"):
        consolidate_run(make_run())


def test_a_model_beyond_the_limit_is_split_and_loads(tmp_path: Path, zero: Any) -> None:
    torch.manual_seed(0)
    config = families.llama(num_hidden_layers=2, tie_word_embeddings=True)
    model = LlamaForCausalLM(config).eval()
    run = RunLayout(tmp_path / "run")
    config.save_pretrained(run.model)
    zero.record_of(1).write(zero.save_stage_0(run.checkpoint(1), model.state_dict()))
    folder = consolidate(run, 1, Options(shard_size=2000))
    parts = sorted(path.name for path in folder.glob("*.safetensors"))
    assert parts == [f"model-{n:05d}-of-{len(parts):05d}.safetensors" for n in range(1, len(parts) + 1)]
    assert len(parts) > 2
    tokens = torch.arange(8)[None]
    with torch.no_grad():
        loaded = AutoModelForCausalLM.from_pretrained(folder).eval()
        assert torch.equal(loaded(tokens).logits, model(tokens).logits)


def test_memory_does_not_grow_with_the_model(tmp_path: Path, zero: Any) -> None:
    """200 MB of weights, half of them one tensor, in at most 80 MB of anonymous memory more than before."""
    tensors = {"embed": torch.zeros(25 * 2**20), **{f"layer{n}": torch.zeros(5 * 2**20) for n in range(5)}}
    run = RunLayout(tmp_path / "run")
    run.model.mkdir(parents=True)
    (run.model / "config.json").write_text("{}")
    zero.record_of(1).write(zero.save_stage_2(run.checkpoint(1), [tensors], 2))

    def anonymous() -> float:
        found = re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())
        assert found
        return int(found[1]) / 1024

    def watch() -> None:
        while not done.wait(0.002):
            seen.append(anonymous())

    seen, done = [anonymous()], threading.Event()
    watcher = threading.Thread(target=watch)
    watcher.start()
    consolidate(run, 1)
    done.set()
    watcher.join()
    assert (run.export(1) / "model.safetensors").stat().st_size > 200e6
    assert len(seen) > 10
    assert max(seen) - seen[0] < 80


@pytest.mark.parametrize(
    ("text", "bytes_meant"), [("5GB", 5 * 10**9), ("500mb", 5 * 10**8), ("1.5 GiB", 3 * 2**29), ("64", 64)]
)
def test_sizes(text: str, bytes_meant: int) -> None:
    assert size(text) == bytes_meant


@pytest.mark.parametrize(
    "arguments",
    [["--shard-size", "5 GX"], ["--shard-size", "."], ["--shard-size", "-1GB"], ["--all", "--step", "1"]],
    ids=str,
)
def test_what_the_command_does_not_understand(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["consolidate", "run", *arguments])
    assert ended.value.code == 2


def test_the_command(make_run: MakeRun, capsys: pytest.CaptureFixture[str]) -> None:
    run = make_run(10, 20)
    assert main(["consolidate", str(run.root), "--step", "20", "--dtype", "bf16"]) == 0
    assert f"step-000020: {run.export(20)}" in capsys.readouterr().out
    assert not run.export(10).exists()
    run.status.write_text('{"state": "finished"}')
    assert main(["consolidate", str(run.root), "--watch", "--shard-size", "60"]) == 0
    assert "the run is finished; 2 checkpoints are exported" in capsys.readouterr().out
    assert (run.export(10) / "model.safetensors.index.json").exists()
    assert main(["consolidate", str(run.root), "--merge"]) == 2
    assert "leave out --merge" in capsys.readouterr().err
    assert main(["consolidate", str(run.root / "absent")]) == 2
    assert "absent/checkpoints: no complete checkpoint" in capsys.readouterr().err
