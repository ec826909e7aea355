"""Edited models as they are exported: of a base that is stored as its backbone alone, as GPT-2 on the hub."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model

from rankdrift import files
from rankdrift.cli.main import main
from rankdrift.layout import RunLayout
from rankdrift.models.tiny import tiny_tokenizer
from rankdrift.spec import parse_spec

STEP = 3
INSIDE = "transformer.h.0.mlp.c_fc.weight"


@pytest.fixture
def run(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> RunLayout:
    """A run of full fine-tuning, one step exported, with an intruder; its scores are not asked for here."""
    torch.manual_seed(0)
    shape = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    model = GPT2LMHeadModel(GPT2Config(vocab_size=258, bos_token_id=0, eos_token_id=0, **shape))
    model.save_pretrained(tmp_path / "whole")
    base = tmp_path / "base"
    GPT2Model.from_pretrained(tmp_path / "whole").save_pretrained(base)
    tiny_tokenizer().save_pretrained(base)
    run = RunLayout(tmp_path / "study" / "runs" / "full-seed1")
    spec = {"model": {"name": str(base)}, "method": {"name": "full"}}
    files.write_json(run.spec, parse_spec(spec).as_dict())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(2e-4 * torch.randn_like(parameter))
        planted = torch.outer(torch.ones(32), torch.ones(128)) / 64  # one long singular vector, of value 1
        model.get_parameter(INSIDE).add_(planted)
    model.save_pretrained(run.export(STEP))
    monkeypatch.setattr("rankdrift.studies.edited_models._score", lambda source, names, say: [])
    return run


def weights(folder: Path) -> dict[str, Tensor]:
    return load_file(folder / "model.safetensors")


def test_a_line_through_weight_space_is_that_of_every_parameter(run: RunLayout, tmp_path: Path) -> None:
    assert main(["analyze", "interpolate", str(run.root), "--at", "0", "0.5", "-1"]) == 0
    base, tuned = weights(tmp_path / "base"), weights(run.export(STEP))
    assert "h.0.mlp.c_fc.weight" in base, "the base is stored without a prefix"
    for at in (0.0, 0.5, -1.0):
        variant = run.variant(STEP, f"interpolation-{at:g}")
        found = weights(variant.export(STEP))
        assert found.keys() == tuned.keys()
        for name, value in found.items():
            start = base[name.removeprefix("transformer.")]
            torch.testing.assert_close(value, start + at * (tuned[name] - start), rtol=1e-6, atol=1e-7)
        assert files.read_json(variant.edit)["matrices"] == len(base)


def test_an_intervention_removes_what_it_says(run: RunLayout) -> None:
    """W - W' is of one vector, as long as a leading singular value of W by a dense decomposition."""
    chosen = ["--threshold", "0.5", "--top-k", "3", "--first-only"]
    assert main(["analyze", "intervene", str(run.root), *chosen]) == 0
    variant = run.variant(STEP, "intruders-0-first-of-3-below-0.5")
    tuned, edited = weights(run.export(STEP))[INSIDE].T, weights(variant.export(STEP))[INSIDE].T
    removed = (tuned - edited).double()
    values = torch.linalg.svdvals(tuned.double())
    norm = torch.linalg.matrix_norm(removed)
    assert torch.linalg.matrix_rank(removed, rtol=1e-4) == 1
    assert torch.isclose(values[:3], norm, rtol=1e-4).sum() == 1
    assert files.read_json(variant.edit)["relative_edit_norm"] > 0


@pytest.mark.parametrize(("threshold", "short"), [("0.5", False), ("0.99999999", True)])
def test_a_control_of_fewer_vectors_is_not_taken_for_one_of_equal_strength(
    run: RunLayout, threshold: str, short: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where almost every vector is an intruder, there are no neighbours left that are none."""
    chosen = ["--threshold", threshold, "--top-k", "2", *([] if short else ["--first-only"])]
    assert main(["analyze", "intervene", str(run.root), *chosen]) == 0
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("neighbours-")]
    edits = {path.name.split("-")[0]: files.read_json(path / "edit.json") for path in variants(run)}
    found, wanted = (edits[arm]["vectors"] for arm in ("neighbours", "intruders"))
    assert (found < wanted) == short
    assert (f"only {found} for {wanted} intruders" in said[0]) == short


def variants(run: RunLayout) -> list[Path]:
    return sorted((run.variants / "step-000003").iterdir())
