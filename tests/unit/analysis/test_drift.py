"""Hidden states and the drift table of tiny random Llamas, against transformers' and peft's own states."""

from __future__ import annotations

import dataclasses
import functools
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import GPT2Config, GPT2Model, LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from rankdrift.analysis.contract import Params
from rankdrift.analysis.mathematics.representation.layer_grid import layer_grid_cka
from rankdrift.analysis.measures.drift import ANALYSIS, GRID, TABLE, VERSION, Settings
from rankdrift.analysis.sources import activations, base_layers
from rankdrift.analysis.sources import models as models_of
from rankdrift.analysis.sources.activations import REPRESENTATIONS, States, TokenRows
from rankdrift.analysis.sources.subjects import Subject, base_subject
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


def tables(base: Path, tuned: Path, inputs: Path | None, **settings: Any) -> dict[str, pd.DataFrame]:
    subject = Subject("run", "full", 0, ("topic",), 1, 5, base=base, tuned=tuned)
    params = Params(cache=tuned.parent / "cache", drift_inputs=inputs, settings=(Settings(**settings),))
    return ANALYSIS.compute(subject, params)


def drift(base: Path, tuned: Path, inputs: Path | None, **settings: Any) -> pd.DataFrame:
    """Return the rows of mean-pooled states with all features."""
    found = tables(base, tuned, inputs, **settings)[TABLE]
    return found[(found["representation"] == "mean") & (found["features"] == "all")].reset_index(drop=True)


def recorded(model: nn.Module, folder: Path, rows: tuple[tuple[int, ...], ...] = ROWS) -> dict[str, Tensor]:
    """Return what the pass stores of each representation, (layers, rows, d)."""
    states = States(folder / "recorded.npy", TokenRows(Path("rows"), rows))
    activations.record_states(model, states.inputs, states.path)
    layers = range(states.shape[0])
    return {name: torch.stack([states.rows(layer, name) for layer in layers]) for name in REPRESENTATIONS}


def states_of(model: nn.Module, norm: str = "norm") -> dict[str, Tensor]:
    """Hidden states row by row, unpadded, from transformers' own output; the last layer is before the norm.

    Tokens are all, but of the row of 17 the middles of 12 parts: 4 d = 128 tokens over 10 rows are 12 each.
    """
    last = getattr(model, norm)
    setattr(model, norm, nn.Identity())
    with torch.inference_mode():
        outputs = [model(torch.tensor([row]), output_hidden_states=True).hidden_states for row in ROWS]
    setattr(model, norm, last)
    states = [torch.cat(output) for output in outputs]  # each (layers, tokens, d)
    middles = [0, 2, 3, 4, 6, 7, 9, 10, 12, 13, 14, 16]
    kept = [each[:, middles] if each.shape[1] == 17 else each for each in states]
    return {
        "mean": torch.stack([each.mean(dim=1) for each in states], dim=1),
        "last_token": torch.stack([each[:, -1] for each in states], dim=1),
        "token": torch.cat(kept, dim=1),
    }


def assert_same_states(got: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("budget", [1, 20, activations.BATCH_TOKENS])
def test_states_are_those_of_unpadded_rows_one_at_a_time(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, budget: int
):
    """Whatever is put together, in whatever order, and whatever is padded."""
    model = models_of.load_backbone(base)
    monkeypatch.setattr(activations, "BATCH_TOKENS", budget)
    got = recorded(model, tmp_path)
    assert got["mean"].shape == (LAYERS + 1, len(ROWS), WIDTH)
    assert_same_states(got, states_of(model))
    turned = recorded(model, tmp_path, ROWS[::-1])
    for name in ("mean", "last_token"):
        torch.testing.assert_close(turned[name].flip(1), got[name], atol=1e-5, rtol=1e-5)
    monkeypatch.setattr(activations, "PAD_ID", 57)
    torch.testing.assert_close(recorded(model, tmp_path), got, atol=0, rtol=0)


def test_absolute_positions_are_counted_without_the_padding(tmp_path: Path):
    torch.manual_seed(0)
    sizes = GPT2Config(n_embd=WIDTH, n_layer=2, n_head=4, vocab_size=VOCABULARY, initializer_range=0.2)
    model = GPT2Model(sizes).eval()
    assert_same_states(recorded(model, tmp_path), states_of(model, "ln_f"))


def test_dropout_is_off(base: Path, tmp_path: Path):
    model = LlamaForCausalLM.from_pretrained(base, attention_dropout=0.5)
    model.save_pretrained(tmp_path / "dropout")
    loaded = models_of.load_backbone(tmp_path / "dropout")
    assert_same_states(recorded(loaded, tmp_path), states_of(models_of.load_backbone(base)))


def test_the_base_itself_has_not_drifted(base: Path, tmp_path: Path, inputs: Path):
    same = changed(base, tmp_path / "same", lambda model: None)
    assert set(drift(base, same, inputs, rows=6)["n"]) == {6}  # the first of them
    found = tables(base, same, inputs)
    rows = found[TABLE]
    assert list(rows.columns) == list(ANALYSIS.columns[TABLE])
    places = itertools.product(range(LAYERS + 1), REPRESENTATIONS, ("all", "without_top"))
    assert rows[["layer", "representation", "features"]].to_numpy().tolist() == [*map(list, places)]
    tokens = sum(min(len(row), 12) for row in ROWS)
    assert set(rows["n"][rows["representation"] == "token"]) == {tokens}
    assert set(rows["n"][rows["representation"] != "token"]) == {len(ROWS)}
    assert (rows[["relative_l2", "procrustes", "cka_stderr"]] == 0).all(axis=None)
    assert (rows[["cka", "cka_biased"]] == 1).all(axis=None)
    zero = rows["reason"].str.contains("cosine: a row is zero")  # the embedding of the padding token, 0
    assert rows.loc[zero, "layer"].tolist() == [0] * 4
    assert set(rows.loc[zero, "representation"]) == {"last_token", "token"}
    assert rows["cosine"].isna().equals(zero)
    assert rows.loc[~zero, "cosine"].tolist() == pytest.approx([1.0] * int((~zero).sum()))
    assert rows["cosine_centered"].tolist() == pytest.approx([1.0] * len(rows))
    grid = found[GRID]
    assert list(grid.columns) == list(ANALYSIS.columns[GRID])
    assert grid["cka"][grid["base_layer"] == grid["tuned_layer"]].tolist() == pytest.approx([1.0] * 4)


def test_the_grid_has_the_layers_own_cka_on_its_diagonal(base: Path, tmp_path: Path, inputs: Path):
    tuned = changed(base, tmp_path / "t", lambda model: model.model.layers[0].mlp.down_proj.weight.mul_(3))
    grid = tables(base, tuned, inputs)[GRID].set_index(["base_layer", "tuned_layer"])["cka"]
    rows = drift(base, tuned, inputs)
    assert [grid[layer, layer] for layer in range(LAYERS + 1)] == pytest.approx(rows["cka"].tolist())
    states = [states_of(models_of.load_backbone(folder))["mean"] for folder in (base, tuned)]
    expected = layer_grid_cka(*([functools.partial(torch.clone, layer) for layer in each] for each in states))
    assert grid[0, 3] == pytest.approx(float(expected[0, 3]), abs=1e-4)
    assert grid[3, 0] == pytest.approx(float(expected[3, 0]), abs=1e-4)
    assert grid[0, 3] != pytest.approx(grid[3, 0], abs=1e-2)


def test_every_representation_is_compared_with_its_own(base: Path, tmp_path: Path, inputs: Path):
    tuned = changed(base, tmp_path / "t", lambda model: model.model.layers[0].mlp.down_proj.weight.mul_(3))
    before, after = (states_of(models_of.load_backbone(folder)) for folder in (base, tuned))
    rows = tables(base, tuned, inputs)[TABLE].set_index(["features", "representation"]).sort_index()
    for name in REPRESENTATIONS:
        x, y = before[name], after[name]
        expected = (y - x).norm(dim=(1, 2)) / x.norm(dim=(1, 2))
        assert rows.loc[("all", name), "relative_l2"].tolist() == pytest.approx(expected.tolist(), rel=1e-4)


def massive(dimension: int) -> Callable[[LlamaForCausalLM], None]:
    return lambda model: model.model.embed_tokens.weight[:, dimension].mul_(1000)


def test_without_top_is_of_the_bases_largest_dimension(base: Path, tmp_path: Path, inputs: Path):
    """One of 32 dimensions is left out. Where the change is in that one alone, nothing else has moved."""

    def other(model: LlamaForCausalLM) -> None:
        massive(5)(model)
        model.model.embed_tokens.weight[:, 5] = model.model.embed_tokens.weight[:, 5].flip(0)

    before, after = changed(base, tmp_path / "b", massive(5)), changed(base, tmp_path / "t", other)
    found = tables(before, after, inputs)[TABLE]
    found = found[found["layer"] == 0].set_index(["representation", "features"])
    for representation in REPRESENTATIONS:
        assert found.loc[(representation, "all"), "cka"] < 0.9
        assert found.loc[(representation, "without_top"), "cka"] == 1
        assert found.loc[(representation, "without_top"), "relative_l2"] == 0


def test_without_top_leaves_in_what_is_large_in_the_tuned_alone(base: Path, tmp_path: Path, inputs: Path):
    found = tables(base, changed(base, tmp_path / "t", massive(9)), inputs)[TABLE]
    found = found[(found["layer"] == 0) & (found["features"] == "without_top")]
    assert (found["relative_l2"] > 10).all()


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
    monkeypatch.setattr(base_layers, "side", None)  # cannot be called
    pd.testing.assert_frame_equal(drift(base, tuned, inputs), first)
    assert loaded == [tuned]


def test_cached_states_are_the_fresh_ones_and_follow_rows_and_weights(base: Path, tmp_path: Path):
    other = changed(base, tmp_path / "other", lambda model: model.model.embed_tokens.weight.mul_(1.5))
    rows = TokenRows(base, ROWS)
    states = activations.base_states(base, rows, tmp_path)
    fresh = recorded(models_of.load_backbone(base), tmp_path)
    assert torch.equal(states.rows(2, "token"), fresh["token"][2])
    assert activations.base_states(base, rows, tmp_path) == states
    assert activations.base_states(base, TokenRows(base, ROWS[1:]), tmp_path).path != states.path
    assert activations.base_states(other, rows, tmp_path).path != states.path


def test_products_in_bf16_differ_from_fp32_by_its_rounding(base: Path, tmp_path: Path, inputs: Path) -> None:
    model = models_of.load_backbone(base)
    found = {}
    for precision in ("fp32", "bf16"):
        states = States(tmp_path / f"{precision}.npy", TokenRows(base, ROWS))
        activations.record_states(model, states.inputs, states.path, precision)
        found[precision] = states.rows(LAYERS, "token")
    with torch.autocast("cpu", torch.bfloat16), torch.inference_mode():
        library = model(torch.tensor([ROWS[0]]), output_hidden_states=True).hidden_states[LAYERS - 1][0]
    states = States(tmp_path / "bf16.npy", TokenRows(base, ROWS))
    ours = states.rows(LAYERS - 1, "token")[: len(library)]
    torch.testing.assert_close(ours, library.float(), rtol=0.01, atol=0.01 * float(library.abs().max()))
    error = (found["bf16"] - found["fp32"]).norm() / found["fp32"].norm()
    assert 1e-4 < error < 2e-2


def test_the_base_has_states_of_its_own_in_each_precision(base: Path, tmp_path: Path, inputs: Path) -> None:
    tuned = changed(base, tmp_path / "t", lambda model: model.model.layers[0].mlp.up_proj.weight.mul_(1.5))
    exact, rounded = (drift(base, tuned, inputs, precision=precision) for precision in ("fp32", "bf16"))
    assert len(list((tmp_path / "cache").iterdir())) == 2
    assert not np.array_equal(exact["relative_l2"], rounded["relative_l2"])
    np.testing.assert_allclose(rounded["relative_l2"], exact["relative_l2"], rtol=0.1)


def test_nothing_of_the_tuned_model_is_left_in_the_cache(base: Path, tmp_path: Path, inputs: Path):
    drift(base, changed(base, tmp_path / "t", lambda model: model.model.norm.weight.mul_(2)), inputs)
    (folder,) = (tmp_path / "cache").iterdir()
    sides = itertools.product(REPRESENTATIONS, ("all", "without_top"), range(LAYERS + 1))
    expected = {f"{name}-{features}-{layer:03d}-v{VERSION}.safetensors" for name, features, layer in sides}
    assert {path.name for path in folder.iterdir()} == expected | {"states.npy", "states.lock"}


def test_representations_are_kept_on_request_in_the_inputs_order(base: Path, tmp_path: Path, inputs: Path):
    tuned = changed(base, tmp_path / "t", lambda model: model.model.embed_tokens.weight.mul_(1.5))
    drift(base, tuned, inputs, keep_representations=True)
    for name, folder in (("base", base), ("run-step-000005", tuned)):
        (path,) = (tmp_path / "cache").glob(f"states-*/representations/{name}.safetensors")
        expected = states_of(models_of.load_backbone(folder))["mean"]
        stored = load_file(path)
        assert sorted(stored) == [f"layer_{layer}" for layer in range(LAYERS + 1)]
        for layer in range(LAYERS + 1):
            torch.testing.assert_close(stored[f"layer_{layer}"], expected[layer], atol=1e-5, rtol=1e-5)


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
    got = recorded(models_of.load_tuned(base, tmp_path / "adapter"), tmp_path)
    torch.testing.assert_close(got["mean"], expected["mean"], atol=1e-5, rtol=1e-5)
    for name in REPRESENTATIONS:  # merging rounds every weight once: relative to the states, not each number
        assert torch.dist(got[name], expected[name]) < 1e-5 * expected[name].norm()
    assert not torch.allclose(got["mean"], states_of(models_of.load_backbone(base))["mean"], atol=1e-2)
    assert drift(base, tmp_path / "adapter", inputs)["relative_l2"].iloc[-1] > 0.1


def test_an_adapter_that_changed_its_base_is_given_its_start(base: Path, tmp_path: Path, inputs: Path):
    """PiSSA takes its first adapter out of the base weights, which peft keeps changed in memory."""
    settings = LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj"], init_lora_weights="pissa")
    model = get_peft_model(LlamaForCausalLM.from_pretrained(base), settings)
    model.save_pretrained(tmp_path / "initial")
    torch.manual_seed(1)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            parameter.data += 0.2 * torch.randn_like(parameter)
    model.save_pretrained(tmp_path / "adapter")
    subject = Subject("run", "lora", 4, ("topic",), 1, 5, base, tmp_path / "adapter")
    params = Params(
        cache=tmp_path / "cache", drift_inputs=inputs, settings=(Settings(keep_representations=True),)
    )
    ANALYSIS.compute(dataclasses.replace(subject, initial=tmp_path / "initial"), params)
    (path,) = (tmp_path / "cache").glob("states-*/representations/run-step-000005.safetensors")
    expected = states_of(model.eval().base_model.model.model)["mean"]
    torch.testing.assert_close(load_file(path)["layer_3"], expected[3], atol=1e-5, rtol=1e-5)
    with pytest.raises(UserError, match="initial"):
        ANALYSIS.compute(subject, params)


def test_a_classifier_is_compared_by_its_backbone(base: Path, tmp_path: Path):
    model = LlamaForSequenceClassification.from_pretrained(base, num_labels=3)
    model.save_pretrained(tmp_path / "classifier")
    loaded = models_of.load_tuned(base, tmp_path / "classifier")
    torch.testing.assert_close(states_of(loaded), states_of(models_of.load_backbone(base)))


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
        (pd.DataFrame({"input_ids": [[1, VOCABULARY]] * 5}), f"token id {VOCABULARY} is not in the"),
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


def of_config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: LlamaForCausalLM(config(**changes)).save_pretrained(folder)


def of_value(name: str, value: float) -> Callable[[Path], None]:
    """Save a model with a weight of one value."""

    def save(folder: Path) -> None:
        model = LlamaForCausalLM(config())
        nn.init.constant_(model.get_parameter(name), value)
        model.save_pretrained(folder)

    return save


def incomplete(folder: Path) -> None:
    LlamaForCausalLM(config(num_hidden_layers=2)).save_pretrained(folder)
    config().save_pretrained(folder)


def truncated(folder: Path) -> None:
    LlamaForCausalLM(config()).save_pretrained(folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (of_config(num_hidden_layers=2), "2 blocks of width 32"),
        (of_config(hidden_size=16), "3 blocks of width 16"),
        (of_value("model.layers.1.mlp.down_proj.weight", 3e38), "hidden states are not finite"),
        (of_value("model.layers.0.mlp.up_proj.weight", torch.nan), "up_proj.weight holds NaN or infinity"),
        (incomplete, "weights are missing"),
        (truncated, "not a complete safetensors file"),
        (Path.mkdir, "no model.safetensors there"),
    ],
)
def test_models_that_do_not_compare_are_named(base: Path, tmp_path: Path, inputs: Path, make, message: str):
    make(tmp_path / "bad")
    with pytest.raises(UserError, match=message) as caught:
        drift(base, tmp_path / "bad", inputs)
    assert str(tmp_path / "bad") in str(caught.value)
