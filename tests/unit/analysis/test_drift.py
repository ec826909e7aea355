"""Hidden states and the drift table of tiny random Llamas, against transformers' and peft's own states."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2Model, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from rankdrift.analysis.analyses import Params
from rankdrift.analysis.analyses.drift import ANALYSIS, TABLE
from rankdrift.analysis.sources import activations
from rankdrift.analysis.sources import models as models_of
from rankdrift.analysis.sources.activations import TokenRows
from rankdrift.analysis.subjects import Subject, base_subject
from rankdrift.errors import UserError

VOCABULARY, WIDTH, LAYERS = 101, 32, 3
ROWS = tuple(
    tuple(torch.randint(VOCABULARY, (length,), generator=torch.Generator().manual_seed(length)).tolist())
    for length in (9, 2, 17, 1, 5, 5, 12, 3, 8, 6)
)


def config(**changes: Any) -> LlamaConfig:
    sizes = {"hidden_size": WIDTH, "intermediate_size": 48, "vocab_size": VOCABULARY, "pad_token_id": 0}
    depth = {"num_hidden_layers": LAYERS, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaConfig(**{**sizes, **depth, "initializer_range": 0.2, **changes})


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    LlamaForCausalLM(config(tie_word_embeddings=True)).save_pretrained(folder)
    return folder


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    path = tmp_path / "inputs.parquet"
    pd.DataFrame({"input_ids": [list(row) for row in ROWS], "task": "topic"}).to_parquet(path)
    return path


def changed(base: Path, folder: Path, change: Callable[[LlamaForCausalLM], None]) -> Path:
    """Save a copy of the base whose weights ``change`` has edited."""
    model = LlamaForCausalLM.from_pretrained(base)
    with torch.no_grad():
        change(model)
    model.save_pretrained(folder)
    return folder


def drift(base: Path, tuned: Path, inputs: Path | None, rows: int = 64) -> pd.DataFrame:
    subject = Subject("run", "full", 0, ("topic",), 1, 5, base=base, tuned=tuned)
    params = Params(cache=tuned.parent / "cache", drift_inputs=inputs, drift_rows=rows)
    return ANALYSIS.compute(subject, params)[TABLE]


def states_of(model: nn.Module, norm: str = "norm") -> Tensor:
    """Mean hidden states row by row, unpadded, from transformers' own output; the last is before the norm."""
    last = getattr(model, norm)
    setattr(model, norm, nn.Identity())
    with torch.inference_mode():
        outputs = [model(torch.tensor([row]), output_hidden_states=True).hidden_states for row in ROWS]
    setattr(model, norm, last)
    return torch.stack([torch.stack([state[0].mean(dim=0) for state in each]) for each in outputs])


def test_states_are_those_of_unpadded_rows_one_at_a_time(base: Path):
    model = models_of.load_backbone(base)
    got = activations.pooled_states(model, TokenRows(base, ROWS))
    assert got.shape == (len(ROWS), LAYERS + 1, WIDTH)
    torch.testing.assert_close(got, states_of(model), atol=1e-5, rtol=1e-5)


def test_absolute_positions_are_counted_without_the_padding():
    torch.manual_seed(0)
    sizes = GPT2Config(n_embd=WIDTH, n_layer=2, n_head=4, vocab_size=VOCABULARY, initializer_range=0.2)
    model = GPT2Model(sizes).eval()
    got = activations.pooled_states(model, TokenRows(Path("gpt2"), ROWS))
    torch.testing.assert_close(got, states_of(model, "ln_f"), atol=1e-5, rtol=1e-5)


def test_what_is_padded_changes_nothing(base: Path, monkeypatch: pytest.MonkeyPatch):
    model = models_of.load_backbone(base)
    before = activations.pooled_states(model, TokenRows(base, ROWS))
    monkeypatch.setattr(activations, "PAD_ID", 57)
    assert torch.equal(activations.pooled_states(model, TokenRows(base, ROWS)), before)


def test_padding_is_not_averaged_even_where_it_is_not_a_number():
    hidden = torch.tensor([[[float("nan")], [1.0], [3.0]], [[5.0], [6.0], [10.0]]])
    mask = torch.tensor([[False, True, True], [True, True, True]])
    assert activations.mean_over_tokens(hidden, mask).tolist() == [[2.0], [7.0]]


@pytest.mark.parametrize("budget", [1, 20, 10_000])
def test_neither_batches_nor_order_change_the_states(
    base: Path, monkeypatch: pytest.MonkeyPatch, budget: int
):
    model = models_of.load_backbone(base)
    expected = activations.pooled_states(model, TokenRows(base, ROWS))
    monkeypatch.setattr(activations, "BATCH_TOKENS", budget)
    got = activations.pooled_states(model, TokenRows(base, ROWS[::-1]))
    torch.testing.assert_close(got.flip(0), expected, atol=1e-5, rtol=1e-5)


def test_batches_hold_every_row_once_within_the_budget(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(activations, "BATCH_TOKENS", 20)
    lengths = [9, 2, 30, 1, 5, 5, 12, 3]
    batches = list(activations.length_batches(lengths))
    assert sorted(itertools.chain(*batches)) == list(range(8))
    assert all(len(each) * max(lengths[i] for i in each) <= 20 for each in batches if 2 not in each)
    assert batches[0] == [3, 1, 7, 4]


def test_dropout_is_off(base: Path, tmp_path: Path):
    model = LlamaForCausalLM.from_pretrained(base, attention_dropout=0.5)
    model.save_pretrained(tmp_path / "dropout")
    loaded = models_of.load_backbone(tmp_path / "dropout")
    expected = states_of(models_of.load_backbone(base))
    got = activations.pooled_states(loaded, TokenRows(base, ROWS))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_the_base_itself_has_not_drifted(base: Path, tmp_path: Path, inputs: Path):
    found = drift(base, changed(base, tmp_path / "same", lambda model: None), inputs)
    assert list(found.columns) == list(ANALYSIS.columns[TABLE])
    assert found["layer"].tolist() == list(range(LAYERS + 1))
    assert set(found["n"]) == {len(ROWS)}
    assert (found["relative_l2"] == 0).all()
    for column in ("cka", "cka_biased", "cosine", "cosine_centered"):
        assert found[column].tolist() == pytest.approx([1.0] * (LAYERS + 1))


def test_drift_begins_at_the_block_that_changed(base: Path, tmp_path: Path, inputs: Path):
    tuned = changed(base, tmp_path / "t", lambda model: model.model.layers[1].mlp.down_proj.weight.mul_(3))
    found = drift(base, tuned, inputs).set_index("layer")
    assert found.loc[[0, 1], "relative_l2"].tolist() == [0, 0]
    assert (found.loc[[2, 3], "relative_l2"] > 0.1).all()
    assert (found.loc[[2, 3], "cka"] < 0.99).all()


def test_the_table_is_deterministic_and_its_base_side_is_computed_once(
    base: Path, tmp_path: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch
):
    tuned = changed(base, tmp_path / "t", lambda model: model.model.embed_tokens.weight.mul_(1.5))
    first = drift(base, tuned, inputs)
    loaded: list[Path] = []
    load = models_of.load_backbone
    monkeypatch.setattr(models_of, "load_backbone", lambda folder: loaded.append(folder) or load(folder))
    pd.testing.assert_frame_equal(drift(base, tuned, inputs), first)
    assert loaded == [tuned]


def test_cached_states_are_the_fresh_ones_and_follow_rows_and_weights(base: Path, tmp_path: Path):
    other = changed(base, tmp_path / "other", lambda model: model.model.embed_tokens.weight.mul_(1.5))
    rows = TokenRows(base, ROWS)
    path = activations.base_states(base, rows, tmp_path)
    fresh = activations.pooled_states(models_of.load_backbone(base), rows)
    assert torch.equal(activations.read_states(path), fresh)
    assert activations.base_states(base, rows, tmp_path) == path
    assert activations.base_states(base, TokenRows(base, ROWS[1:]), tmp_path) != path
    assert activations.base_states(other, rows, tmp_path) != path


@pytest.mark.parametrize(
    "settings",
    [
        {"target_modules": ["q_proj", "v_proj"], "r": 4, "lora_alpha": 16, "lora_dropout": 0.5},
        {"target_modules": ["o_proj", "down_proj", "embed_tokens"], "r": 2, "use_rslora": True},
    ],
    ids=["attention", "with embeddings"],
)
def test_an_adapter_gives_the_states_peft_gives(base: Path, tmp_path: Path, inputs: Path, settings: dict):
    torch.manual_seed(1)
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base), LoraConfig(**settings))
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.2)
    model.save_pretrained(tmp_path / "adapter")
    unmerged = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), tmp_path / "adapter").eval()
    expected = states_of(unmerged.base_model.model.model)
    tuned = models_of.load_tuned(base, tmp_path / "adapter")
    got = activations.pooled_states(tuned, TokenRows(base, ROWS))
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(got, states_of(models_of.load_backbone(base)), atol=1e-2)
    assert drift(base, tmp_path / "adapter", inputs)["relative_l2"].iloc[-1] > 0.1


def test_a_classifier_is_compared_by_its_backbone(base: Path, tmp_path: Path):
    model = LlamaForSequenceClassification.from_pretrained(base, num_labels=3)
    model.save_pretrained(tmp_path / "classifier")
    loaded = models_of.load_tuned(base, tmp_path / "classifier")
    torch.testing.assert_close(states_of(loaded), states_of(models_of.load_backbone(base)))


def test_only_the_first_rows_are_used(base: Path, tmp_path: Path, inputs: Path):
    tuned = changed(base, tmp_path / "t", lambda model: None)
    assert set(drift(base, tuned, inputs, rows=6)["n"]) == {6}


def test_the_base_model_has_no_drift_table(base: Path, tmp_path: Path):
    assert ANALYSIS.compute(base_subject(base), Params(cache=tmp_path)) == {}


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pd.DataFrame({"text": ["a"] * 5}), "no column 'input_ids'"),
        (pd.DataFrame({"input_ids": [[1, 2]] * 3}), "3 rows .* at least 4"),
        (pd.DataFrame({"input_ids": [[1, 2]] * 4 + [[]]}), "row 4: input_ids"),
        (pd.DataFrame({"input_ids": [[1, 2]] * 4 + [None]}), "row 4: input_ids"),
        (pd.DataFrame({"input_ids": ["1 2"] * 5}), "row 0: input_ids"),
        (pd.DataFrame({"input_ids": [[0.5, 2.0]] * 5}), "row 0: input_ids"),
        (
            pd.DataFrame({"input_ids": [[1, VOCABULARY]] * 5}),
            f"token id {VOCABULARY} is not in the",
        ),
    ],
)
def test_inputs_that_cannot_be_used_are_named(base: Path, tmp_path: Path, table: pd.DataFrame, message: str):
    path = tmp_path / "bad.parquet"
    table.to_parquet(path)
    with pytest.raises(UserError, match=message) as caught:
        drift(base, changed(base, tmp_path / "t", lambda model: None), path)
    assert str(path) in str(caught.value)


def test_absent_inputs_are_asked_for(base: Path, tmp_path: Path):
    with pytest.raises(UserError, match="drift_inputs"):
        drift(base, tmp_path / "t", None)
    with pytest.raises(UserError, match="no such table"):
        drift(base, tmp_path / "t", tmp_path / "absent.parquet")


def unlike(folder: Path) -> None:
    LlamaForCausalLM(config(num_hidden_layers=2)).save_pretrained(folder)


def incomplete(folder: Path) -> None:
    model = LlamaForCausalLM(config(num_hidden_layers=2))
    model.save_pretrained(folder)
    model.config.num_hidden_layers = 3
    model.config.save_pretrained(folder)


def diverged(folder: Path) -> None:
    model = LlamaForCausalLM(config())
    nn.init.constant_(model.model.layers[0].mlp.up_proj.weight, float("nan"))
    model.save_pretrained(folder)


def truncated(folder: Path) -> None:
    LlamaForCausalLM(config()).save_pretrained(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (unlike, "2 blocks of width 32"),
        (incomplete, "weights are missing"),
        (diverged, "up_proj.weight holds NaN or infinity"),
        (truncated, "not a complete safetensors file"),
        (Path.mkdir, "no model.safetensors there"),
    ],
)
def test_models_that_cannot_be_compared_are_named(
    base: Path, tmp_path: Path, inputs: Path, make, message: str
):
    make(tmp_path / "bad")
    with pytest.raises(UserError, match=message) as caught:
        drift(base, tmp_path / "bad", inputs)
    assert str(tmp_path / "bad") in str(caught.value)
