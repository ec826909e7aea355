"""Which folders belong together: other architectures and bases, heads and tokens of one side, bad weights."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForCausalLM,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    MistralConfig,
    MistralForCausalLM,
)

from rankdrift import files
from rankdrift.analysis.contract import Params
from rankdrift.analysis.measures.spectra import measure
from rankdrift.analysis.sources.base_spectra import unit_name
from rankdrift.analysis.sources.rounding import length_rounding_norm, rounding_norm
from rankdrift.analysis.sources.subjects import Subject
from rankdrift.analysis.sources.tensors import TensorFolder
from rankdrift.analysis.sources.updates import DenseUpdate
from rankdrift.analysis.sources.weights import Projection, open_weights
from rankdrift.errors import IntegrityError, UserError
from rankdrift.layout import RunLayout

EMBED, HEAD, SCORE = (Projection(-1, module) for module in ("embed_tokens", "lm_head", "score"))
QUERY = Projection(0, "q_proj")
Edit = Callable[..., Path]
NAME = "model.layers.0.self_attn.q_proj.weight"
Q_PROJ = NAME.replace(".", "__")  # as a keyword


@pytest.fixture
def untied(models: Any, tmp_path: Path) -> Path:
    """A base model whose LM head is a matrix of its own."""
    model = LlamaForCausalLM.from_pretrained(models.base, tie_word_embeddings=False)
    torch.nn.init.normal_(model.lm_head.weight)
    model.save_pretrained(tmp_path / "untied")
    return tmp_path / "untied"


def test_another_type_of_model_is_refused_by_name(models: Any, tmp_path: Path) -> None:
    """Mistral's matrices have Llama's names and shapes: only the configuration tells them apart."""
    settings = json.loads((models.base / "config.json").read_text())
    del settings["model_type"]
    MistralForCausalLM(MistralConfig(**settings)).save_pretrained(tmp_path / "mistral")
    with pytest.raises(UserError, match=r"mistral: a model of type 'mistral', but .*base is 'llama'"):
        open_weights(models.base, tmp_path / "mistral")


def test_a_model_of_other_depth_is_refused(models: Any, edited: Edit) -> None:
    names = load_file(models.full / "model.safetensors")
    gone = {name.replace(".", "__"): None for name in names if ".layers.1." in name}
    with pytest.raises(UserError, match=r"layer 1 q_proj, layer 1 k_proj, layer 1 v_proj .of 7. in only one"):
        open_weights(models.base, edited(models.full, **gone))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_is_named(models: Any, lora: Path, edited: Edit, value: float) -> None:
    base = edited(models.base, **{Q_PROJ: torch.full((32, 32), value)})
    with pytest.raises(IntegrityError, match=r"edited/model.safetensors: .*q_proj.weight holds NaN"):
        open_weights(base, models.full).pair(QUERY)
    shutil.rmtree(base)
    factor = "base_model__model__" + Q_PROJ.replace("__weight", "__lora_A__weight")
    with pytest.raises(IntegrityError, match=r"edited/adapter_model.safetensors: .*lora_A.weight holds NaN"):
        open_weights(models.base, edited(lora, **{factor: torch.full((4, 32), value)})).pair(QUERY)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_pair_says_what_rounding_left_of_it(models: Any, tmp_path: Path, dtype: torch.dtype) -> None:
    exact = load_file(models.full / "model.safetensors")
    LlamaForCausalLM.from_pretrained(models.full, dtype=dtype).save_pretrained(tmp_path)
    weights = open_weights(models.base, tmp_path)
    for projection, name in weights.base.names.items():
        pair = weights.pair(projection)
        error = float((pair.tuned - exact[name].double()).norm())
        assert pair.stored_dtype == str(dtype).removeprefix("torch.")
        assert pair.rounding_norm == pytest.approx(error, rel=0.1)  # 1,024 elements: sampling alone is 4 %


def test_factors_have_no_rounding_but_modules_saved_whole_do(models: Any, tmp_path: Path) -> None:
    model = models.adapted(r=2, target_modules=["q_proj"], modules_to_save=["up_proj"])
    model.bfloat16().save_pretrained(tmp_path)
    weights = open_weights(models.base, tmp_path)
    factors, whole = weights.pair(QUERY), weights.pair(Projection(0, "up_proj"))
    assert (factors.stored_dtype, factors.rounding_norm) == ("float32", 0.0)
    assert whole.stored_dtype == "bfloat16"
    assert whole.rounding_norm == pytest.approx(float(whole.update.dense().norm()), rel=0.1)


def test_a_new_classification_head_and_a_lost_lm_head_are_left_out(untied: Path, tmp_path: Path) -> None:
    LlamaForSequenceClassification.from_pretrained(untied, num_labels=3).save_pretrained(tmp_path / "new")
    weights = open_weights(untied, tmp_path / "new")
    assert HEAD in weights.base.places
    assert {p for p in weights.projections if p.layer < 0} == {EMBED}
    with pytest.raises(UserError, match=r"new: no lm_head beside that of .*untied"):
        weights.pair(HEAD)


@pytest.mark.parametrize(("labels", "expected"), [(3, {EMBED, SCORE}), (4, {EMBED})])
def test_heads_of_the_same_classes_are_compared(
    models: Any, tmp_path: Path, labels: int, expected: set[Projection]
) -> None:
    for name, number in (("before", 3), ("after", labels)):
        model = LlamaForSequenceClassification.from_pretrained(models.base, num_labels=number)
        model.save_pretrained(tmp_path / name)
    weights = open_weights(tmp_path / "before", tmp_path / "after")
    assert {p for p in weights.projections if p.layer < 0} == expected


@pytest.mark.parametrize(("task", "expected"), [("CAUSAL_LM", {EMBED, HEAD}), ("SEQ_CLS", {EMBED})])
def test_the_adapter_of_a_classifier_has_no_lm_head(
    untied: Path, tmp_path: Path, task: str, expected: set[Projection]
) -> None:
    kind = LlamaForCausalLM if task == "CAUSAL_LM" else LlamaForSequenceClassification
    settings = LoraConfig(task_type=task, r=2, target_modules=["q_proj"])
    get_peft_model(kind.from_pretrained(untied), settings).save_pretrained(tmp_path / "adapter")
    weights = open_weights(untied, tmp_path / "adapter")
    assert {p for p in weights.projections if p.layer < 0} == expected


def test_an_untied_head_is_a_matrix_of_its_own(untied: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(untied)
    torch.nn.init.zeros_(model.lm_head.weight)
    model.save_pretrained(tmp_path / "after")
    pair = open_weights(untied, tmp_path / "after").pair(HEAD)
    assert torch.equal(pair.update.dense(), -pair.base.double())


def grown(base: Path, folder: Path, tokens: int) -> Path:
    model = AutoModelForCausalLM.from_pretrained(base)
    model.resize_token_embeddings(tokens, mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight[:50].add_(0.5)
    model.save_pretrained(folder)
    return folder


def test_rows_of_new_tokens_are_cut_off(untied: Path, tmp_path: Path) -> None:
    weights = open_weights(untied, grown(untied, tmp_path / "grown", 70))
    pair = weights.pair(EMBED)
    assert isinstance(pair.update, DenseUpdate)
    assert (pair.new_rows, pair.update.shape) == (6, (64, 32))
    torch.testing.assert_close(pair.update.values[:50], torch.full((50, 32), 0.5).double())
    assert not pair.update.values[50:].any()
    assert weights.pair(HEAD).new_rows == 6
    assert weights.pair(QUERY).new_rows == 0


def test_what_is_left_out_is_said(untied: Path, tmp_path: Path) -> None:
    tuned = grown(untied, tmp_path / "grown", 70)
    subject = Subject("run", "full", 0, (), 1, 4, base=untied, tuned=tuned)
    reasons = [
        measure(subject, Params(cache=tmp_path / "cache"), unit_name(place))["svd_analysis_results"]["reason"]
        for place in (EMBED, QUERY)
    ]
    assert reasons[0].item().endswith("6 rows of new tokens are left out")
    assert "new tokens" not in reasons[1].item()


def test_a_smaller_vocabulary_is_refused(models: Any, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"embed_tokens is \(60, 32\), but \(64, 32\)"):
        open_weights(models.base, grown(models.base, tmp_path / "cut", 60)).pair(EMBED)


def recorded(adapter: Path, folder: Path, base: dict[str, Any] | None) -> Path:
    """Copy an adapter, with a provenance that states a base model."""
    shutil.copytree(adapter, folder)
    (folder / "provenance.json").write_text(json.dumps({"step": 4} | ({"base": base} if base else {})))
    return folder


def test_the_base_that_an_export_records_is_accepted(models: Any, lora: Path, tmp_path: Path) -> None:
    shutil.copytree(models.base, tmp_path / "moved")
    digest = files.weights_digest(models.base)
    # other software records none, or no digest
    for number, base in enumerate(({"folder": "/gone", "digest": digest}, None, {"digest": None})):
        export = recorded(lora, tmp_path / str(number), base)
        assert open_weights(tmp_path / "moved", export).pair(QUERY).update.dense().any()


def test_another_base_than_an_export_records_is_refused(models: Any, lora: Path, tmp_path: Path) -> None:
    digest = files.weights_digest(models.base)
    export = recorded(lora, tmp_path / "export", {"folder": str(models.base), "digest": digest})
    shutil.copytree(models.base, tmp_path / "other")
    weights = load_file(tmp_path / "other" / "model.safetensors")
    weights["model.norm.weight"][3] += 1
    save_file(weights, tmp_path / "other" / "model.safetensors", {"format": "pt"})
    message = rf"export: trained from {models.base} \(digest {digest[:12]}\), but .*other holds other weights"
    with pytest.raises(IntegrityError, match=message):
        open_weights(tmp_path / "other", export)


def test_another_base_than_recorded_fails(models: Any, zero: ModuleType, lora: Path, tmp_path: Path) -> None:
    run = RunLayout(tmp_path / "run")
    run.model.mkdir(parents=True)
    shutil.copy(lora / "adapter_config.json", run.model)
    _, model = models.adapter("recorded", r=4, lora_alpha=8, target_modules=["q_proj"])
    trained = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    zero.save_stage_0(run.checkpoint(4), trained)
    zero.record_of(4, base="/models/first", base_digest="f" * 64).write(run.checkpoint(4))
    message = r"step-000004: trained from /models/first \(digest ffffffffffff"
    with pytest.raises(IntegrityError, match=message):
        open_weights(models.base, run.checkpoint(4))


def test_full_fine_tuning_may_be_compared_with_any_model_of_its_shapes(models: Any, tmp_path: Path) -> None:
    export = recorded(models.full, tmp_path / "export", {"folder": "/models/first", "digest": "f" * 64})
    assert open_weights(models.base, export).pair(QUERY).update.dense().any()


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the tensors that are read, as they are."""
    names: list[str] = []
    tensor = TensorFolder.tensor
    monkeypatch.setattr(TensorFolder, "tensor", lambda self, name: names.append(name) or tensor(self, name))
    return names


def test_factors_are_read_without_their_base(models: Any, lora: Path, read: list[str]) -> None:
    weights = open_weights(models.base, lora)
    update = weights.update(QUERY)
    stem = "base_model.model." + NAME.removesuffix("weight")
    assert read == [f"{stem}lora_A.weight", f"{stem}lora_B.weight"]
    assert torch.equal(update.dense(), weights.pair(QUERY).update.dense())


def test_one_matrix_is_read_at_a_time(models: Any, read: list[str]) -> None:
    weights = open_weights(models.base, models.full)
    assert not read
    weights.pair(QUERY)
    assert read == [NAME, NAME]  # of the base and of the tuned model


@pytest.mark.parametrize("target", ["q_proj", "embed_tokens"])
def test_lengths_in_bfloat16_are_noise_of_the_size_of_the_base(
    models: Any, tmp_path: Path, target: str
) -> None:
    """Untrained, DoRA has moved nothing; its rounded lengths say 0.0017 of ||W0||, of full rank."""
    model = models.adapted(r=2, use_dora=True, target_modules=["q_proj", "embed_tokens"])
    projection = QUERY if target == "q_proj" else Projection(-1, "embed_tokens")
    # PEFT's norms in float32 are off by a few roundings, not by one
    for dtype, share, most in ((torch.float32, 2e-7, 4), (torch.bfloat16, 2e-3, 1.3)):
        model.to(dtype).save_pretrained(tmp_path / str(dtype))
        pair = open_weights(models.base, tmp_path / str(dtype)).pair(projection)
        naive = float(pair.update.dense().norm())
        assert share / 20 < naive / float(pair.base.norm()) < share
        assert pair.stored_dtype == str(dtype).removeprefix("torch.")
        assert 0.7 < naive / pair.rounding_norm < most
    assert torch.linalg.matrix_rank(pair.update.dense()) == 32


WEIGHTS = {
    "gaussian": lambda: 0.02 * torch.randn(200, 300),
    "heavy-tailed": lambda: 0.02 * torch.randn(200, 300).pow(3),
    "sizes apart": lambda: torch.randn(200, 300) * torch.logspace(-3, 1, 200)[:, None],
}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", WEIGHTS)
def test_the_norm_is_that_of_the_rounding_error(name: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    exact = WEIGHTS[name]()
    stored = exact.to(dtype).float()
    assert rounding_norm(stored, dtype) == pytest.approx(float((stored - exact).norm()), rel=0.02)


def test_values_below_the_smallest_normal_number_have_its_spacing() -> None:
    exact = 1e-6 * torch.randn(200, 300, generator=torch.Generator().manual_seed(0))
    stored = exact.half().float()
    assert stored.count_nonzero() < stored.numel()  # many were rounded to zero
    assert rounding_norm(stored, torch.float16) == pytest.approx(float((stored - exact).norm()), rel=0.02)


def test_bfloat16_leaves_the_share_measured_on_model_weights() -> None:
    # .0017 of ||W||: docs/architecture.md, bf16_floor_ratio
    weights = torch.randn(400, 400, generator=torch.Generator().manual_seed(1)).bfloat16().float()
    share = rounding_norm(weights, torch.bfloat16) / float(weights.norm())
    assert share == pytest.approx(0.0017, rel=0.03)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_exact_formats_leave_nothing(dtype: torch.dtype) -> None:
    assert rounding_norm(torch.randn(3, 3), dtype) == 0.0


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_rounded_lengths_move_whole_rows(dtype: torch.dtype) -> None:
    directions = torch.nn.functional.normalize(torch.randn(500, 64).double(), dim=1)
    lengths = torch.rand(500, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + 3
    error = lengths.to(dtype).double()[:, None] * directions - lengths[:, None] * directions
    found = length_rounding_norm(lengths.to(dtype).float(), dtype)
    assert found == pytest.approx(float(error.norm()), rel=0.1)
