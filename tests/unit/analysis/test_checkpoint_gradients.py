"""Gradients at checkpoints of tiny random models, against autograd of transformers' and peft's own losses."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
)

from rankdrift.analysis.contract import Params
from rankdrift.analysis.mathematics.gradients import noise
from rankdrift.analysis.measures import checkpoint_gradients
from rankdrift.analysis.measures.checkpoint_gradients import ANALYSIS, Settings
from rankdrift.analysis.sources import activations, loss_gradients
from rankdrift.analysis.sources.differentiable import open_model
from rankdrift.analysis.sources.subjects import Subject, base_subject
from rankdrift.errors import UserError
from rankdrift.models.families import cell_of

VOCABULARY, IGNORED = 101, -100
PADDING = 3
"""Of the configuration. No row holds it, because transformers keeps its embedding without gradient."""
SPACES = ("weight", "factor", "image")
ADAPTED = ["q_proj", "v_proj", "down_proj"]
CAUSAL: dict[str, Any] = {"task_type": "CAUSAL_LM"}
Tables = dict[str, pd.DataFrame]


def config(**changes: Any) -> LlamaConfig:
    sizes = {"hidden_size": 32, "intermediate_size": 48, "vocab_size": VOCABULARY, "pad_token_id": PADDING}
    depth = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    return LlamaConfig(**{**sizes, **depth, "initializer_range": 0.2, **changes})


def language_rows(vocabulary: int = VOCABULARY) -> pd.DataFrame:
    """Two tasks: short answers after a prompt, and whole texts, in which the first label has no loss."""
    generator = np.random.default_rng(0)
    rows = []
    for length in (9, 4, 17, 6, 5, 11, 8, 12, 3, 7):
        ids = generator.integers(PADDING + 1, vocabulary, size=length).tolist()
        answer = int(generator.integers(1, 3))
        labels = [IGNORED] * (length - answer) + ids[-answer:]
        rows.append({"task": "answer", "input_ids": ids, "labels": labels})
        rows.append({"task": "text", "input_ids": ids[::-1], "labels": ids[::-1]})
    return pd.DataFrame(rows)


def class_rows() -> pd.DataFrame:
    rows = language_rows()
    return rows.assign(task="topic", labels=[[index % 3] for index in range(len(rows))])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    LlamaForCausalLM(config(tie_word_embeddings=True)).save_pretrained(folder)
    return folder


@pytest.fixture
def inputs(tmp_path: Path) -> Path:
    return written(language_rows(), tmp_path)


def written(rows: pd.DataFrame, folder: Path) -> Path:
    path = folder / "gradient_inputs.parquet"
    rows.to_parquet(path)
    return path


def tables(base: Path, tuned: Path | None, inputs: Path | None) -> Tables:
    run = Subject("run", "lora", 4, ("text",), 1, 5, base=base, tuned=tuned)
    subject = run if tuned else base_subject(base)
    return ANALYSIS.compute(subject, Params(cache=base / "cache", gradient_inputs=inputs))


def gradients(model: nn.Module, rows: pd.DataFrame, task: str) -> dict[str, Tensor]:
    """Autograd of the mean loss over a task's targets: transformers' own loss, a row at a time, unpadded."""
    model.zero_grad()
    chosen = rows[rows["task"] == task]
    counts = [max(sum(label != IGNORED for label in row[1:]), 1) for row in chosen["labels"]]
    for row, count in zip(chosen.itertuples(), counts, strict=True):
        ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
        (model(input_ids=ids, labels=labels).loss * count / sum(counts)).backward()
    found = {name: p.grad for name, p in model.named_parameters() if p.requires_grad and p.grad is not None}
    return {name: gradient.double().clone() for name, gradient in found.items()}


def cells(found: dict[str, Tensor]) -> dict[tuple[int, str, str], Tensor]:
    """All elements of each cell, group (layer -2) and of the model, as the online probe groups names."""
    parts = defaultdict(list)
    for name, gradient in found.items():
        cell = cell_of(name)
        for key in {(cell.layer, cell.group, cell.factor), (-2, cell.group, cell.factor), (-2, "", "")}:
            parts[key].append(gradient.flatten())
    return {key: torch.cat(values) for key, values in parts.items()}


def compare(table: pd.DataFrame, task: str, space: str, expected: dict[tuple[int, str, str], Tensor]) -> None:
    """Assert that the table's rows are the statistics of the expected gradients, cell by cell."""
    rows = table[(table["task"] == task) & (table["space"] == space) & (table["level"] != "layer")]
    assert len(rows) == len(expected)
    for row in rows.itertuples():
        layer = row.layer if row.level == "cell" else -2
        gradient = expected[layer, row.group, row.factor]
        assert row.numel == gradient.numel()
        assert row.l2_norm == pytest.approx(float(gradient.norm()), rel=1e-4)
        assert row.mean_abs == pytest.approx(float(gradient.abs().mean()), rel=1e-4)
        assert row.std == pytest.approx(float(gradient.std(correction=0)), rel=1e-4)
        assert row.zero_fraction == pytest.approx(float((gradient == 0).double().mean()), abs=1e-12)


def value(table: pd.DataFrame, column: str, **where: Any) -> float:
    query = {"level": "global", "space": "weight", **where}
    chosen = table[np.logical_and.reduce([table[name] == wanted for name, wanted in query.items()])]
    assert len(chosen) == 1
    return float(chosen[column].iloc[0])


@pytest.mark.parametrize("tied", [True, False])
def test_a_models_gradients_are_those_of_transformers_loss(tmp_path: Path, inputs: Path, tied: bool) -> None:
    torch.manual_seed(1)
    model = LlamaForCausalLM(config(tie_word_embeddings=tied)).eval()
    model.save_pretrained(tmp_path / "model")
    found = tables(tmp_path / "model", None, inputs)
    own = {task: gradients(model, language_rows(), task) for task in ("answer", "text")}
    for task in own:
        compare(found["checkpoint_gradients"], task, "weight", cells(own[task]))
    flat = {task: torch.cat([g.flatten() for g in own[task].values()]) for task in own}
    inner = float(flat["answer"] @ flat["text"])
    pair = {"task": "answer", "other_task": "text"}
    norms = float(flat["answer"].norm() * flat["text"].norm())
    assert value(found["task_gradients"], "inner_product", **pair) == pytest.approx(inner, rel=1e-3)
    assert value(found["task_gradients"], "cosine", **pair) == pytest.approx(inner / norms, rel=1e-3)


def test_the_tables_hold_every_task_pair_level_and_count(base: Path, tmp_path: Path) -> None:
    found = tables(base, None, written(language_rows().iloc[:-1], tmp_path))
    rows = {"answer": 10, "text": 9}
    for name, columns in ANALYSIS.columns.items():
        assert list(found[name].columns) == list(columns)
        assert set(found[name]["level"]) == {"cell", "layer", "group", "global"}
        assert (found[name]["n"] == found[name]["task"].map(rows)).all()
    pairs = found["task_gradients"]
    assert set(zip(pairs["task"], pairs["other_task"], strict=True)) == {
        (i, j) for i in ("answer", "text") for j in ("answer", "text")
    }
    assert (pairs["n_other"] == pairs["other_task"].map(rows)).all()
    assert set(found["gradient_noise"]["shards"]) == {8}
    forth, back = ({"task": i, "other_task": j} for i, j in (("answer", "text"), ("text", "answer")))
    for column in ("inner_product", "cosine", "inner_product_stderr"):
        assert value(pairs, column, **forth) == pytest.approx(value(pairs, column, **back))


@pytest.mark.parametrize("tokens", [1, 40])
def test_how_rows_are_put_together_changes_nothing(
    base: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch, tokens: int
) -> None:
    expected = tables(base, None, inputs)["checkpoint_gradients"]
    monkeypatch.setattr(activations, "BATCH_TOKENS", tokens)  # 1: every row alone, without padding
    found = tables(base, None, inputs)["checkpoint_gradients"]
    pd.testing.assert_frame_equal(found, expected, rtol=1e-4, atol=1e-7)


NARROW = {"hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.mark.parametrize(
    ("held", "sizes", "vocabulary"), [(1, NARROW, 24), (4 * 18 * 5000, {}, VOCABULARY)], ids=["row", "part"]
)
def test_how_many_passes_there_are_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, held: int, sizes: dict[str, int], vocabulary: int
) -> None:
    """One a row of a parameter, and one for several parameters."""
    torch.manual_seed(0)
    model, inputs = tmp_path / "model", written(language_rows(vocabulary), tmp_path)
    LlamaForCausalLM(config(tie_word_embeddings=True, vocab_size=vocabulary, **sizes)).save_pretrained(model)
    expected = tables(model, None, inputs)
    monkeypatch.setattr(loss_gradients, "HELD_BYTES", held)
    found = tables(model, None, inputs)
    for name, table in expected.items():  # float32 gradients, and estimates that cancel some digits
        pd.testing.assert_frame_equal(found[name], table, rtol=1e-5, atol=1e-6)


def test_dropout_is_off(tmp_path: Path, inputs: Path) -> None:
    torch.manual_seed(1)
    model = LlamaForCausalLM(config(attention_dropout=0.5)).eval()
    model.save_pretrained(tmp_path / "model")
    table = tables(tmp_path / "model", None, inputs)["checkpoint_gradients"]
    compare(table, "answer", "weight", cells(gradients(model, language_rows(), "answer")))
    model.train()
    parts = gradients(model, language_rows(), "answer")
    norm = float(torch.cat([g.flatten() for g in parts.values()]).norm())
    assert abs(norm / value(table, "l2_norm", task="answer") - 1) > 0.02


def perturbed(model: PeftModel, seed: int = 1) -> PeftModel:
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model.eval()


def saved(base: Path, folder: Path, **settings: Any) -> tuple[Path, PeftModel]:
    """Save an adapter with random factors on a causal model; return its folder and the model it is in."""
    lora = LoraConfig(**{"r": 4, "lora_alpha": 12, "target_modules": ADAPTED, **CAUSAL, **settings})
    model = perturbed(get_peft_model(LlamaForCausalLM.from_pretrained(base), lora))
    model.save_pretrained(folder)
    return folder, model


def merged_gradients(
    model: PeftModel, rows: pd.DataFrame, task: str, names: Iterable[str]
) -> dict[str, Tensor]:
    """Autograd with respect to the full weights that an adapter changes, at their merged values."""
    whole = model.merge_and_unload().requires_grad_(False)
    for name, parameter in whole.named_parameters():
        parameter.requires_grad_(any(part in name for part in names))
    return gradients(whole, rows, task)


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"alpha_pattern": {"q_proj": 3}}])
def test_loras_factors_have_the_gradients_that_autograd_gives_them(
    base: Path, tmp_path: Path, inputs: Path, settings: dict[str, Any]
) -> None:
    folder, model = saved(base, tmp_path / "lora", **settings)
    table = tables(base, folder, inputs)["checkpoint_gradients"]
    factors = gradients(model, language_rows(), "answer")
    compare(table, "answer", "factor", cells(factors))
    scales = {name: module.scaling["default"] for name, module in lora_modules(model).items()}
    own = {name: p.detach().double().clone() for name, p in model.named_parameters() if "lora_" in name}
    whole = merged_gradients(model, language_rows(), "answer", ADAPTED)
    compare(table, "answer", "weight", cells(whole))
    images = {}
    for name, scale in scales.items():
        a, b = (f"{name}.lora_{factor}.default.weight" for factor in "AB")
        images[name] = scale * (factors[b] @ own[a] + own[b] @ factors[a])
    compare(table, "answer", "image", cells(images))


def lora_modules(model: PeftModel) -> dict[str, Any]:
    return {name: module for name, module in model.named_modules() if hasattr(module, "lora_A")}


def rescaled(folder: Path, copy: Path, factor: float) -> Path:
    """(B, A) -> (c B, A / c): the same model."""
    copy.mkdir()
    (copy / "adapter_config.json").write_text((folder / "adapter_config.json").read_text())
    factors = load_file(folder / "adapter_model.safetensors")
    changed = {name: f * factor if "lora_B" in name else f / factor for name, f in factors.items()}
    save_file(changed, copy / "adapter_model.safetensors")
    return copy


def test_factor_gradients_depend_on_the_factors_scales(base: Path, tmp_path: Path, inputs: Path) -> None:
    folder, _ = saved(base, tmp_path / "lora")
    first = tables(base, folder, inputs)
    second = tables(base, rescaled(folder, tmp_path / "rescaled", 4.0), inputs)
    pair = {"task": "answer", "other_task": "text"}
    for table, column, where in (
        ("checkpoint_gradients", "l2_norm", {"task": "text"}),
        ("task_gradients", "cosine", pair),
    ):
        values = {
            space: [value(found[table], column, space=space, **where) for found in (first, second)]
            for space in SPACES
        }
        assert values["weight"][0] == pytest.approx(values["weight"][1], rel=1e-3)
        for space in ("factor", "image"):
            assert abs(values[space][1] / values[space][0] - 1) > 0.02, (space, column)


@pytest.mark.parametrize("backbone", [False, True])
def test_an_adapter_on_a_tied_embedding_leaves_the_head_as_it_was(
    base: Path, tmp_path: Path, inputs: Path, backbone: bool
) -> None:
    folder, model = saved(base, tmp_path / "lora", target_modules=["embed_tokens", "v_proj"])
    if backbone:  # saved without its head, so without the prefix of names
        LlamaForCausalLM.from_pretrained(base).model.save_pretrained(tmp_path / "backbone")
    source = tmp_path / "backbone" if backbone else base
    table = tables(source, folder, inputs)["checkpoint_gradients"]
    factors = gradients(model, language_rows(), "text")
    compare(table, "text", "factor", cells(factors))
    assert {"A", "B"} <= set(table[table["group"] == "embed"]["factor"])


def test_matrices_saved_whole_are_the_same_in_every_space(base: Path, tmp_path: Path, inputs: Path) -> None:
    folder, model = saved(base, tmp_path / "lora", target_modules=["v_proj"], modules_to_save=["norm"])
    table = tables(base, folder, inputs)["checkpoint_gradients"]
    compare(table, "text", "factor", cells(gradients(model, language_rows(), "text")))
    norms = [value(table, "l2_norm", task="text", level="group", group="norm", space=s) for s in SPACES]
    assert norms[0] == norms[1] == norms[2]


def test_gpt2_whose_weights_are_stored_transposed(tmp_path: Path, inputs: Path) -> None:
    torch.manual_seed(2)
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 32}
    settings = GPT2Config(vocab_size=VOCABULARY, pad_token_id=PADDING, **sizes)
    GPT2LMHeadModel(settings).save_pretrained(tmp_path / "gpt2")
    targets = ["c_attn", "c_fc"]
    lora = LoraConfig(r=4, lora_alpha=12, target_modules=targets, fan_in_fan_out=True, **CAUSAL)
    model = perturbed(get_peft_model(GPT2LMHeadModel.from_pretrained(tmp_path / "gpt2"), lora))
    model.save_pretrained(tmp_path / "lora")
    table = tables(tmp_path / "gpt2", tmp_path / "lora", inputs)["checkpoint_gradients"]
    compare(table, "answer", "factor", cells(gradients(model, language_rows(), "answer")))
    whole = merged_gradients(model, language_rows(), "answer", ["c_attn.weight", "c_fc.weight"])
    compare(table, "answer", "weight", cells(whole))


def test_dora_has_gradients_of_its_weights_alone(base: Path, tmp_path: Path, inputs: Path) -> None:
    folder, model = saved(base, tmp_path / "dora", use_dora=True)
    table = tables(base, folder, inputs)["checkpoint_gradients"]
    assert set(table["space"]) == {"weight"}
    compare(table, "text", "weight", cells(merged_gradients(model, language_rows(), "text", ADAPTED)))


def classifier(folder: Path, **changes: Any) -> LlamaForSequenceClassification:
    torch.manual_seed(3)
    model = LlamaForSequenceClassification(config(num_labels=3, **changes)).eval()
    model.save_pretrained(folder)
    return model


def class_gradients(model: nn.Module, rows: pd.DataFrame) -> dict[str, Tensor]:
    model.zero_grad()
    for row in rows.itertuples():
        loss = model(input_ids=torch.tensor([row.input_ids]), labels=torch.tensor(row.labels)).loss
        (loss / len(rows)).backward()
    return {name: p.grad.double() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("padding", [PADDING, None])
def test_a_classifiers_loss_has_one_target_a_row(base: Path, tmp_path: Path, padding: int | None) -> None:
    inputs = written(class_rows(), tmp_path)
    model = classifier(tmp_path / "model", pad_token_id=padding)
    found = tables(base, tmp_path / "model", inputs)
    compare(found["checkpoint_gradients"], "topic", "weight", cells(class_gradients(model, class_rows())))
    assert "head" in set(found["checkpoint_gradients"]["group"])
    assert tables(base, None, inputs) == {}  # the base has no such head


@pytest.mark.parametrize("tied", [True, False])
def test_an_adapter_brings_its_own_classification_head(tmp_path: Path, tied: bool) -> None:
    base = tmp_path / "base"
    LlamaForCausalLM(config(tie_word_embeddings=tied)).save_pretrained(base)
    model = LlamaForSequenceClassification.from_pretrained(base, num_labels=3)
    lora = LoraConfig(r=4, lora_alpha=12, target_modules=ADAPTED, task_type=TaskType.SEQ_CLS)
    adapted = perturbed(get_peft_model(model, lora))
    adapted.save_pretrained(tmp_path / "lora")
    table = tables(base, tmp_path / "lora", written(class_rows(), tmp_path))["checkpoint_gradients"]
    own = class_gradients(adapted, class_rows())
    compare(table, "topic", "factor", cells(own))


def test_without_rows_there_is_nothing(base: Path) -> None:
    assert tables(base, None, None) == {}


def row(**changes: Any) -> pd.DataFrame:
    return pd.DataFrame([{"task": "t", "input_ids": [1, 2, 3], "labels": [IGNORED, 2, 3], **changes}])


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (row().drop(columns="labels"), "no column labels"),
        (row().head(0), "no rows"),
        (row(input_ids=[]), "row 0: input_ids"),
        (row(input_ids="abc"), "row 0: input_ids"),
        (row(input_ids=[1, -2, 3]), "row 0: input_ids"),
        (row(labels=[1.5, 2.0, 3.0]), "row 0: labels"),
        (row(labels=[1, 2]), "row 0: 2 labels, 3 tokens"),
        (row(labels=[1, IGNORED, IGNORED]), "row 0: every label is -100"),
        (row(input_ids=[1, VOCABULARY, 3]), f"row 0: {VOCABULARY} is no token"),
        (row(labels=[IGNORED, 2, VOCABULARY]), f"row 0: {VOCABULARY} is no token"),
        (row(labels=[IGNORED, 2, -7]), "row 0: -7 is no token"),
        (pd.concat([row(), row(labels=[1])]), "classes in some rows"),
    ],
)
def test_rows_that_cannot_be_used_are_named(
    base: Path, tmp_path: Path, rows: pd.DataFrame, message: str
) -> None:
    path = written(rows, tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        tables(base, None, path)
    assert str(path) in str(caught.value)


def test_a_head_that_the_rows_are_not_for_gives_no_rows(base: Path, tmp_path: Path, inputs: Path) -> None:
    classifier(tmp_path / "classifier", tie_word_embeddings=True)
    LlamaForCausalLM(config()).save_pretrained(tmp_path / "model")
    assert tables(base, tmp_path / "classifier", inputs) == {}
    assert tables(base, tmp_path / "model", written(class_rows(), tmp_path)) == {}
    with pytest.raises(UserError, match=r"score.weight .* an LM head"):
        open_model(base, tmp_path / "classifier", classifies=False)
    with pytest.raises(UserError, match="a classification head"):
        open_model(base, tmp_path / "model", classifies=True)


def test_a_gradient_that_is_not_finite_is_named(tmp_path: Path, inputs: Path) -> None:
    model = LlamaForCausalLM(config())
    nn.init.constant_(model.lm_head.weight, 3e38)  # finite, but no logit is
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match="NaN or infinite") as caught:
        tables(tmp_path / "model", None, inputs)
    assert str(tmp_path / "model") in str(caught.value)


def test_an_adapter_on_a_tied_head_is_refused(base: Path, tmp_path: Path, inputs: Path) -> None:
    folder, _ = saved(base, tmp_path / "lora", target_modules=["q_proj", "lm_head"])
    with pytest.raises(UserError, match=r"lm_head.weight.*of its own"):
        tables(base, folder, inputs)


def test_noise_is_of_the_mean_over_targets_not_over_rows(
    base: Path, inputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its estimator is told how many targets each shard has; what it makes of them has its own tests."""
    told: list[tuple[int, int]] = []

    def sample(gram: np.ndarray, sizes: np.ndarray, targets: np.ndarray) -> Any:
        told.append((int(sizes.sum()), int(targets.sum())))
        return noise.sample(gram, sizes, targets)

    monkeypatch.setattr(checkpoint_gradients, "sample", sample)
    tables(base, None, inputs)
    expected = {
        (len(rows), sum(label != IGNORED for labels in rows["labels"] for label in labels[1:]))
        for _, rows in language_rows().groupby("task")
    }
    assert set(told) == expected
    assert all(targets > rows for rows, targets in expected)


def test_products_in_bf16_differ_from_fp32_by_its_rounding(base: Path, inputs: Path) -> None:
    exact, rounded = (
        ANALYSIS.compute(
            base_subject(base),
            Params(base / "cache", gradient_inputs=inputs, settings=(Settings(precision=precision),)),
        )["checkpoint_gradients"]["l2_norm"]
        for precision in ("fp32", "bf16")
    )
    assert not np.array_equal(exact, rounded)
    np.testing.assert_allclose(rounded, exact, rtol=0.05)
