"""Whole checkpoints and exports are found well; what is wrong with one is named, and the rest is checked."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import families
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from rankdrift import files
from rankdrift.cli.main import main
from rankdrift.errors import UserError
from rankdrift.export.consolidate import Options, consolidate
from rankdrift.layout import RunLayout
from rankdrift.progress import byte_lines
from rankdrift.verify.verify import Verdict, find, verify
from rankdrift.zero_checkpoint.checksums import stored_file
from rankdrift.zero_checkpoint.manifest import Manifest

STEP = 2
EMBED, UP = "model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"
SHARD = "zero_pp_rank_1_mp_rank_00_optim_states.pt"

Tensors = dict[str, torch.Tensor]
Make = Callable[..., RunLayout]


def model_of(method: str) -> torch.nn.Module:
    torch.manual_seed(5)
    kind = LlamaForSequenceClassification if method == "classifier" else LlamaForCausalLM
    return kind(families.llama(tie_word_embeddings=True, vocab_size=19))


def adapted(base: Path) -> torch.nn.Module:
    """A LoRA model on the base model, as after some training: no factor is zero."""
    config = LoraConfig(task_type="CAUSAL_LM", r=2, lora_alpha=4, target_modules=["q_proj", "down_proj"])
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base), config)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def save_shards(zero: Any, folder: Path, tensors: Tensors, step: int, adam: Tensors) -> None:
    """Write a ZeRO-2 checkpoint of two ranks with Adam's state; ``adam`` replaces one of its vectors."""
    part = -(-sum(tensor.numel() for tensor in tensors.values()) // 4) * 2
    state = {"step": torch.tensor(float(step)), "exp_avg": torch.randn(part), "exp_avg_sq": torch.rand(part)}
    stored = {"state": {0: state | adam}, "param_groups": [{"params": [0]}]}
    zero.save_stage_2(folder, [tensors], 2, base_optimizer_state=stored)
    zero.save_model_file(
        folder / "mp_rank_00_model_states.pt",
        tensors,
        param_shapes=[{name: tensor.shape for name, tensor in tensors.items()}],
        shared_params={"lm_head.weight": EMBED} if EMBED in tensors else {},
        global_steps=step,
        skipped_steps=0,
    )


@pytest.fixture
def make(tmp_path: Path, zero: Any, cache: Path) -> Make:
    """Return a function that makes a run of a method with one checkpoint, not yet exported."""

    def make_run(
        method: str = "full",
        step: int = STEP,
        change: Callable[[Tensors], None] | None = None,
        adam: Tensors | None = None,
    ) -> RunLayout:
        run, base = RunLayout(tmp_path / method), tmp_path / "base"
        if not base.exists():
            model_of("full").save_pretrained(base)
        model = adapted(base) if method == "lora" else model_of(method)
        trained = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
        if change:
            change(trained)
        save_shards(zero, run.checkpoint(step), trained, step, adam or {})
        (model.peft_config["default"] if method == "lora" else model.config).save_pretrained(run.model)
        facts = {"world_size": 2, "method": "lora" if method == "lora" else "full"}
        where = {"base": str(base), "base_digest": files.weights_digest(base)}
        zero.record_of(step, **facts, **where).write(run.checkpoint(step))
        return run

    return make_run


def checked(*folders: Path, **options: bool) -> SimpleNamespace:
    lines: list[str] = []
    subjects = [subject for folder in folders for subject in find(folder, lines.append)]
    verdict = verify(subjects, lines.append, **options)
    return SimpleNamespace(verdict=verdict, lines=lines, text="\n".join(lines), summary=lines[-1])


@pytest.mark.parametrize("method", ["full", "lora", "classifier"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_what_was_written_is_well(make: Make, method: str, dtype: str) -> None:
    run = make(method)
    consolidate(run, STEP, Options(dtype=dtype))
    found = checked(run.root, reload=True)
    assert found.verdict is Verdict.WELL, found.text
    assert found.summary == "1 checkpoint, 1 export: all well"
    names = [line.split(":")[0].strip() for line in found.lines if line.startswith("  ")]
    updates = ["updates"] if method == "lora" else []
    assert names == [
        *("manifest", "contents", "layout", "parameters", *updates, "weights", "moments"),
        *("manifest", "contents", "parameters", *updates, "weights", "logits"),
    ]
    assert "difference 0," in found.text  # the same weights, the same arithmetic


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_merged_model_computes_what_was_trained(make: Make, dtype: str) -> None:
    run = make("lora")
    consolidate(run, STEP, Options(dtype=dtype, merge=True))
    found = checked(run.merged(STEP), reload=True)
    assert found.verdict is Verdict.WELL, found.text
    difference = float(found.text.split("difference ")[1].split(",")[0])
    assert 0 < difference < (1e-6 if dtype == "fp32" else 1e-2)


def flip(path: Path, place: int = -200) -> None:
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)


def flip_data(run: RunLayout) -> None:
    path = run.checkpoint(STEP) / SHARD
    flip(path, len(path.read_bytes()) // 2)


def restating(**changes: Any) -> Callable[[RunLayout], None]:
    """Write another manifest, whose own checksum is right."""

    def change(run: RunLayout) -> None:
        folder = run.checkpoint(STEP)
        dataclasses.replace(Manifest.read(folder), **changes).write(folder)

    return change


def changing(**changes: Any) -> Callable[[RunLayout], None]:
    """Change the configuration of the model or adapter that the run states."""

    def change(run: RunLayout) -> None:
        for path in run.model.glob("*config.json"):
            path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def add_file(run: RunLayout) -> None:
    (run.checkpoint(STEP) / "more.txt").write_text("more")


CHECKPOINTS: dict[str, tuple[str, Callable[[RunLayout], Any], str, str]] = {
    "flipped bit": ("full", flip_data, "contents", rf"{SHARD}: checksum"),
    "missing file": (
        "full",
        lambda run: (run.checkpoint(STEP) / SHARD).unlink(),
        "manifest",
        rf"{SHARD}: missing",
    ),
    "another file": ("full", add_file, "manifest", r"more\.txt: its checkpoint\.json lists no such file"),
    "another name": (
        "full",
        lambda run: run.checkpoint(STEP).rename(run.checkpoint(3)),
        "manifest",
        r"checkpoint\.json: states step 2",
    ),
    "other ranks": ("full", restating(world_size=3), "layout", "world_size=2, .* states 3"),
    "another stage": ("full", restating(zero_stage=3), "layout", "zero_stage=2, .* states 3"),
    "a layer less": ("full", changing(num_hidden_layers=2), "parameters", r"layers\.1\.\S+' is missing"),
    "a layer more": (
        "full",
        changing(num_hidden_layers=0),
        "parameters",
        r"has no parameter 'model\.layers\.0",
    ),
    "another width": ("full", changing(intermediate_size=13), "parameters", r"the model's is \(13, 8\)"),
    "no model": (
        "full",
        changing(model_type="unknown"),
        "parameters",
        r"config\.json: transformers makes no",
    ),
    "another rank": ("lora", changing(r=3), "parameters", r"is \(2, 8\), the model's is \(3, 8\)"),
    "other targets": ("lora", changing(target_modules=["q_proj"]), "parameters", r"no parameter .*down_proj"),
    "no adapter": ("lora", changing(peft_type="unknown"), "parameters", "peft makes no adapter"),
}


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_a_damaged_checkpoint_is_named(make: Make, name: str) -> None:
    method, change, check, message = CHECKPOINTS[name]
    run = make(method)
    change(run)
    expect_damage(checked(run.root), check, message)


def expect_damage(found: SimpleNamespace, check: str, message: str) -> None:
    """One message, by one check, and none after it."""
    assert found.verdict is Verdict.DAMAGED, found.text
    assert found.text.count("DAMAGED") == 1
    where, _, text = found.lines[-2].strip().partition(": DAMAGED: ")
    assert where == check
    assert re.search(message, text), text
    assert found.summary.endswith("1 of 1 damaged")


def spoil(name: str, value: float) -> Callable[[Tensors], None]:
    def change(tensors: Tensors) -> None:
        tensors[name].view(-1)[-1] = value

    return change


def zero_factors(tensors: Tensors) -> None:
    for name, tensor in tensors.items():
        if "lora_B" in name:
            tensor.zero_()


def untie(tensors: Tensors) -> None:
    tensors["lm_head.weight"] = tensors[EMBED] + 1


def vector(value: float) -> torch.Tensor:
    """A moment of the right size for the full model's shards, with one number of a given value."""
    count = sum(parameter.numel() for parameter in model_of("full").parameters())
    return torch.nn.functional.pad(torch.tensor([value]), (3, -(-count // 4) * 2 - 4))


@pytest.mark.parametrize(
    ("method", "made", "check", "message"),
    [
        ("full", {"change": spoil(UP, math.nan)}, "weights", f"'{UP}' holds NaN or infinity"),
        ("full", {"change": spoil(EMBED, -math.inf)}, "weights", f"'{EMBED}' holds NaN or infinity"),
        ("full", {"change": untie}, "parameters", "'lm_head.weight' is tied to .* but not equal"),
        ("full", {"adam": {"exp_avg": vector(math.inf)}}, "moments", "exp_avg of '.*' holds NaN or infinity"),
        (
            "full",
            {"adam": {"exp_avg_sq": vector(-1e-3)}},
            "moments",
            "exp_avg_sq of '.*' holds -0.001, below",
        ),
        ("full", {"adam": {"step": torch.tensor(7.0)}}, "moments", "files are of different steps"),
        ("lora", {"change": zero_factors}, "updates", "all 2 LoRA factors B are zero after 2 steps"),
    ],
    ids=["NaN", "infinity", "untied", "moment", "square", "step", "zero"],
)
def test_numbers_that_no_training_leaves_are_named(
    make: Make, method: str, made: dict[str, Any], check: str, message: str
) -> None:
    expect_damage(checked(make(method, **made).root), check, message)


def test_negative_numbers_are_well_but_in_squares(make: Make) -> None:
    assert checked(make("full", adam={"exp_avg": vector(-1.0)}).root).verdict is Verdict.WELL


def test_factors_are_zero_before_the_first_step(make: Make) -> None:
    found = checked(make("lora", step=0, change=zero_factors).root)
    assert found.verdict is Verdict.WELL, found.text
    assert "2 factors B, 2 of them zero" in found.text


def test_shards_of_another_step_are_found_by_what_they_say(make: Make, zero: Any) -> None:
    run = make("full", step=4)
    (run.checkpoint(4) / "checkpoint.json").unlink()
    run.checkpoint(4).rename(run.checkpoint(STEP))
    facts = {"base": str(run.root.parent / "base"), "world_size": 2}
    zero.record_of(STEP, **facts).write(run.checkpoint(STEP))
    expect_damage(checked(run.root), "layout", "step=4, checkpoint.json states 2")


def rewrite(export: Path) -> None:
    """State the files' sizes and checksums anew, as one who forges an export would."""
    path = export / "provenance.json"
    provenance = json.loads(path.read_text())
    for name, output in provenance["outputs"].items():
        output |= dataclasses.asdict(stored_file(export / name))
    path.write_text(json.dumps(provenance))


def weights(export: Path, change: Callable[[Tensors], Any]) -> None:
    """Change an export's tensors, and its manifest with them."""
    path = next(export.glob("*.safetensors"))
    tensors = {name: tensor.clone() for name, tensor in load_file(path).items()}
    change(tensors)
    save_file(tensors, path, {"format": "pt"})
    rewrite(export)


def changing_weights(change: Callable[[Tensors], Any]) -> Callable[[Path], None]:
    return lambda export: weights(export, change)


def stating(**changes: Any) -> Callable[[Path], None]:
    def change(export: Path) -> None:
        path = export / "provenance.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def cut_weights(export: Path) -> None:
    path = export / "model.safetensors"
    os.truncate(path, path.stat().st_size - 4)


def cut_all(export: Path) -> None:
    cut_weights(export)
    rewrite(export)


def indexed(text: str) -> Callable[[Path], None]:
    """Put an index of the weights in the place of the tokenizer, and state it."""

    def change(export: Path) -> None:
        (export / "tokenizer.json").unlink()
        (export / "model.safetensors.index.json").write_text(text)
        path = export / "provenance.json"
        path.write_text(path.read_text().replace("tokenizer.json", "model.safetensors.index.json"))
        rewrite(export)

    return change


EXPORTS: dict[str, tuple[Callable[[Path], Any], str, str]] = {
    "flipped bit": (
        lambda export: flip(export / "model.safetensors"),
        "contents",
        r"model\.safetensors: not what was written, by its checksum",
    ),
    "cut": (cut_weights, "manifest", r"model\.safetensors: \d+ bytes where \d+ were written"),
    "missing": (lambda export: (export / "config.json").unlink(), "manifest", r"config\.json: missing"),
    "not JSON": (
        lambda export: (export / "provenance.json").write_text("{"),
        "manifest",
        r"provenance\.json: malformed",
    ),
    "wrong types": (stating(outputs={"a": 5}), "manifest", r"provenance\.json: malformed \(outputs\.a"),
    "another step": (stating(step=7), "manifest", "states step 7"),
    "unknown dtype": (stating(dtype="fp8"), "manifest", "dtype 'fp8' is not known"),
    "another dtype": (stating(dtype="bf16"), "parameters", "is F32, provenance.json states BF16"),
    "cut, and stated": (cut_all, "parameters", "not a whole safetensors file"),
    "index": (
        indexed('{"weight_map": {"x": "model.safetensors"}}'),
        "parameters",
        r"index\.json: 'x' is not in model\.safetensors",
    ),
    "malformed index": (indexed('{"weight_map": [1]}'), "parameters", r"index\.json: malformed"),
    "tensor missing": (changing_weights(lambda t: t.pop(UP)), "parameters", f"'{UP}' is missing"),
    "tensor more": (changing_weights(lambda t: t.update(x=torch.ones(1))), "parameters", "no parameter 'x'"),
    "untied": (changing_weights(untie), "parameters", "'lm_head.weight' is tied to"),
    "NaN": (changing_weights(spoil(UP, math.nan)), "weights", f"'{UP}' holds NaN"),
    "one weight": (changing_weights(spoil(UP, 1.0)), "logits", r"difference 0\.0\d+, largest"),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_a_damaged_export_is_named(make: Make, name: str) -> None:
    change, check, message = EXPORTS[name]
    run = make("full")
    (run.model / "tokenizer.json").write_text("{}")
    change(consolidate(run, STEP))
    expect_damage(checked(run.export(STEP), reload=True), check, message)


def test_a_tied_head_may_be_stored_twice(make: Make) -> None:
    run = make("full")
    weights(consolidate(run, STEP), lambda ts: ts.update({"lm_head.weight": ts[EMBED].clone()}))
    assert checked(run.export(STEP)).verdict is Verdict.WELL


def test_an_adapter_is_not_the_checkpoints(make: Make) -> None:
    run = make("lora")
    weights(consolidate(run, STEP), lambda tensors: [tensor.mul_(1.5) for tensor in tensors.values()])
    expect_damage(checked(run.export(STEP), reload=True), "logits", "logits are not the trained model's")


def test_others_are_checked_after_a_damaged_one(make: Make) -> None:
    full, lora = make("full"), make("lora")
    consolidate(full, STEP)
    consolidate(lora, STEP)
    flip_data(full)
    (lora.export(STEP) / "more.txt").write_text("more")
    found = checked(full.root, lora.root)
    assert found.summary == "2 checkpoints, 2 exports: 2 of 4 damaged"
    assert found.text.count("weights: OK") == 2
    assert [line for line in found.lines if "DAMAGED" in line] == [
        line for line in found.lines if SHARD in line or "more.txt" in line
    ]


def test_fast_reads_no_weights(make: Make) -> None:
    run = make("full", change=spoil(UP, math.nan))
    flip_data(run)
    found = checked(run.root, fast=True)
    assert found.verdict is Verdict.WELL, found.text
    assert not [line for line in found.lines if line.startswith(("  contents", "  weights", "  moments"))]


def test_what_cannot_be_checked_here_is_said(make: Make) -> None:
    run = make("lora")
    consolidate(run, STEP)
    (run.root.parent / "base").rename(run.root.parent / "elsewhere")
    found = checked(run.root, reload=True)
    assert found.verdict is Verdict.WELL
    assert found.summary == "1 checkpoint, 1 export: all well (3 checks not made)"
    assert found.text.count("not checked, the base model is not at") == 3
    shutil.rmtree(run.checkpoints)
    assert "logits: not checked, its checkpoint is not at" in checked(run.root, reload=True).text


def test_a_checkpoint_away_from_its_run_is_checked_as_far_as_possible(make: Make, tmp_path: Path) -> None:
    copy = shutil.copytree(make("full").checkpoint(STEP), tmp_path / "a" / "b" / "copy")
    found = checked(copy)
    assert found.summary == "1 checkpoint: all well (1 checks not made)"
    assert "parameters: not checked, no configuration in" in found.text


def test_a_folder_without_manifest_is_no_checkpoint(make: Make, tmp_path: Path) -> None:
    run = make("full")
    shutil.copytree(run.checkpoint(STEP), run.checkpoint(3), ignore=lambda *_: ["checkpoint.json"])
    found = checked(run.root)
    assert found.lines[0].startswith(f"{run.checkpoint(3)}: left out, not complete")
    assert found.summary == "1 checkpoint: all well"
    for path in (run.checkpoint(3), tmp_path / "absent", run.model):
        with pytest.raises(UserError, match=r"nothing to verify; give a checkpoint"):
            find(path, print)


def test_a_long_check_says_how_far_it_is(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    run = make("full")
    monkeypatch.setattr("rankdrift.verify.verify.byte_lines", partial(byte_lines, pause=0))
    monkeypatch.setattr("rankdrift.zero_checkpoint.checksums._CHUNK", 500)
    lines = [line for line in checked(run.root).lines if "% of " in line]
    shares = [int(line.split()[1].rstrip("%")) for line in lines if line.startswith("  contents")]
    assert len(shares) > 9
    assert shares == sorted(shares)
    assert shares[-1] < 100


def test_exit_codes(make: Make, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    run = make("full")
    export = consolidate(run, STEP)
    assert main(["verify", str(run.root), "--reload"]) == 0
    assert capsys.readouterr().out.endswith("1 checkpoint, 1 export: all well\n")
    assert main(["verify", str(run.root / "model")]) == 2
    assert "nothing to verify" in capsys.readouterr().err
    monkeypatch.setattr("rankdrift.verify.checkpoint_checks.read_shards", unreadable)
    assert main(["verify", str(run.root)]) == 2
    output = capsys.readouterr().out
    assert "layout: CANNOT BE CHECKED: no permission" in output
    assert output.endswith("1 of 2 could not be checked\n")
    flip(export / "model.safetensors")
    assert main(["verify", str(run.root)]) == 3
    assert capsys.readouterr().out.endswith("1 of 2 damaged, 1 of 2 could not be checked\n")


def unreadable(folder: Path) -> None:
    raise UserError("no permission")
