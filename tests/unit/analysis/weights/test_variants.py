"""Updates of LoRA's variants against the weights PEFT merges: W - W0 with the W0 from before PEFT saw it."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig, LoraConfig, LoraGAConfig, PeftModel, get_peft_model
from peft.tuners.lora.config import CordaConfig
from peft.tuners.lora.corda import preprocess_corda
from peft.tuners.lora.loraga import preprocess_loraga
from safetensors.torch import load_file, save_file
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from rankdrift import files
from rankdrift.analysis.contract import Params
from rankdrift.analysis.measures import vectors
from rankdrift.analysis.sources.subjects import Subject
from rankdrift.analysis.sources.updates import DenseUpdate, touched
from rankdrift.analysis.sources.weights import LowRankUpdate, Projection, TunedWeights, open_weights
from rankdrift.errors import IntegrityError, UserError

TARGETS = ["q_proj", "v_proj", "down_proj"]
QUERY = Projection(0, "q_proj")
IDS = torch.arange(60).view(4, 15)
Saved = tuple[Path, PeftModel]


def train(model: PeftModel, scale: float = 0.05) -> None:
    """Stand in for training: move whatever is trained."""
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(scale * torch.randn_like(parameter))


def saved_twice(model: PeftModel, folder: Path) -> tuple[Path, Path]:
    """Return an adapter after training, and before it."""
    model.save_pretrained(folder / "before")
    train(model)
    model.save_pretrained(folder / "after")
    return folder / "after", folder / "before"


def assert_merges_as_peft(weights: TunedWeights, model: PeftModel, tolerance: float = 2e-6) -> None:
    """All matrices and all merged weights; PEFT rounds its sums to float32."""
    base = load_file(weights.base.folder / "model.safetensors")
    merged = model.merge_and_unload().state_dict()
    for projection, name in weights.base.names.items():
        place = weights.base.places[projection]
        expected = place.matrix(merged[name].double()) - place.matrix(base[name].double())
        found = weights.pair(projection).update.dense()
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=tolerance)
    changed = dict(weights.merged())
    assert changed
    for name, value in changed.items():
        torch.testing.assert_close(value, merged[name], rtol=1e-5, atol=tolerance)


DORA: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": TARGETS},
    "rank-stabilised, patterns": {
        "target_modules": TARGETS,
        "use_rslora": True,
        "rank_pattern": {"q_proj": 2},
        "alpha_pattern": {"down_proj": 5},
    },
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
}


@pytest.mark.parametrize("name", DORA)
def test_dora_is_that_of_peft(models: Any, name: str) -> None:
    folder, model = models.adapter(f"dora {name}", r=3, lora_alpha=6, use_dora=True, **DORA[name])
    weights = open_weights(models.base, folder)
    update = weights.pair(QUERY).update
    assert isinstance(update, DenseUpdate)
    assert torch.linalg.matrix_rank(update.values) == 32  # every row has a length of its own
    assert_merges_as_peft(weights, model)


@pytest.fixture
def biased(tmp_path: Path) -> tuple[Path, Callable[..., tuple[Path, PeftModel]]]:
    """A model whose queries, keys and values have biases, and a maker of adapters of it."""
    torch.manual_seed(0)
    config = Qwen2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, vocab_size=64,
        intermediate_size=48, tie_word_embeddings=False,
    )  # fmt: skip
    model = Qwen2ForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "base")

    def make(**settings: Any) -> tuple[Path, PeftModel]:
        base = Qwen2ForCausalLM.from_pretrained(tmp_path / "base")
        adapted = get_peft_model(base, LoraConfig(r=2, target_modules=["q_proj"], **settings))
        train(adapted)
        adapted.save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter", adapted

    return tmp_path / "base", make


@pytest.mark.parametrize(("bias", "count"), [("all", 6), ("lora_only", 2)])
def test_biases_have_rows_of_their_own_and_change_no_matrix(biased: Any, bias: str, count: int) -> None:
    base, make = biased
    folder, model = make(bias=bias)
    weights = open_weights(base, folder)
    subject = Subject("run", "lora", 2, (), 1, 3, base=base, tuned=folder)
    table = vectors.ANALYSIS.compute(subject, Params(cache=folder))["vector_updates"]
    assert len(table) == count
    merged = dict(model.merge_and_unload().named_parameters())
    start = dict(Qwen2ForCausalLM.from_pretrained(base).named_parameters())
    for row in table.itertuples():
        before, after = (of[row.parameter].detach().double() for of in (start, merged))
        assert row.update_norm == pytest.approx(float((after - before).norm()), rel=1e-6)
        relative = float((after - before).norm() / before.norm())
        assert row.relative_update_norm == pytest.approx(relative, rel=1e-6)
        cosine = torch.nn.functional.cosine_similarity(before, after, dim=0)
        assert row.cosine == pytest.approx(float(cosine), rel=1e-9)
    for projection in weights.projections:
        place = weights.base.places[projection]
        expected = merged[place.weight].detach().double() - start[place.weight].detach().double()
        torch.testing.assert_close(weights.update(projection).dense(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("tokens", [[1, 40, 3], {"embed_tokens": [5, 6]}])
def test_rows_of_tokens_are_those_of_peft(biased: Any, tokens: Any) -> None:
    base, make = biased
    folder, model = make(trainable_token_indices=tokens)
    pair = open_weights(base, folder).pair(Projection(-1, "embed_tokens"))
    merged = model.merge_and_unload().get_input_embeddings().weight.detach()
    assert torch.equal(pair.tuned, merged.double())
    rows, columns = touched(pair.update)
    assert rows.nonzero().flatten().tolist() == sorted(tokens if isinstance(tokens, list) else [5, 6])
    assert columns.all()


def test_tokens_that_the_settings_do_not_state_are_refused(biased: Any) -> None:
    base, make = biased
    folder, _ = make(trainable_token_indices=[1, 2])
    settings = files.read_json(folder / "adapter_config.json")
    for tokens, message in (([1], r"\(2, 32\) for 1 tokens"), (None, "names no tokens of")):
        files.write_json(folder / "adapter_config.json", settings | {"trainable_token_indices": tokens})
        with pytest.raises(IntegrityError, match=message):
            open_weights(base, folder).pair(Projection(-1, "embed_tokens"))


def test_an_output_that_is_zero_has_no_direction(models: Any, edited: Callable[..., Path]) -> None:
    folder, _ = models.adapter("dora zero", r=3, use_dora=True, target_modules=["q_proj"])
    base = edited(models.base, **{f"{Q_PROJ}.weight".replace(".", "__"): torch.zeros(32, 32)})
    factor = f"base_model.model.{Q_PROJ}.lora_B.weight"
    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(tensors | {factor: torch.zeros(32, 3)}, folder / "adapter_model.safetensors")
    with pytest.raises(IntegrityError, match=r"dora zero: .*q_proj: an output of W0 \+ s B A is zero"):
        open_weights(base, folder).pair(QUERY)


Q_PROJ = "model.layers.0.self_attn.q_proj"


def forward_backward(model: PreTrainedModel) -> Callable[[], None]:
    return lambda: model(IDS, labels=IDS).loss.backward()


def settings_of(start: str, base: PreTrainedModel, folder: Path) -> LoraConfig:
    """Return the settings of a method that changes the base weights, its preparation done."""
    settings = {"r": 3, "lora_alpha": 6, "target_modules": TARGETS, "init_lora_weights": start}
    if start == "corda":
        config = LoraConfig(**settings, corda_config=CordaConfig(corda_method="kpm"))
        preprocess_corda(base, config, run_model=lambda: [base(row[None]) for row in IDS])
    elif start == "lora_ga":
        config = LoraConfig(**settings, lora_ga_config=LoraGAConfig())
        preprocess_loraga(base, config, train_step=forward_backward(base))
    else:
        config = LoraConfig(**settings)
    return config


STARTS = ["pissa", "pissa_niter_4", "olora", "corda", "lora_ga"]


@pytest.fixture
def subtracted(models: Any, tmp_path: Path) -> Callable[[str], tuple[Path, Path, PeftModel]]:
    """Return make(start): a trained adapter, the same before training, and the model it is in."""

    def make(start: str) -> tuple[Path, Path, PeftModel]:
        torch.manual_seed(3)
        base = LlamaForCausalLM.from_pretrained(models.base)
        model = get_peft_model(base, settings_of(start, base, tmp_path))
        return *saved_twice(model, tmp_path), model

    return make


@pytest.mark.parametrize("start", STARTS)
def test_methods_that_change_the_base_need_their_start(models: Any, subtracted: Any, start: str) -> None:
    after, before, model = subtracted(start)
    weights = open_weights(models.base, after, initial=before)
    update = weights.pair(QUERY).update
    assert isinstance(update, LowRankUpdate)
    assert update.rank == 6  # [B, -B0] [A; A0]
    # B0 A0 was subtracted from the base in float32, and PEFT adds it again with the update
    assert_merges_as_peft(weights, model, tolerance=1e-5)


@pytest.mark.parametrize("start", STARTS)
def test_before_training_nothing_has_changed(models: Any, subtracted: Any, start: str) -> None:
    """S7: read as plain LoRA, the adapter alone would be an update as large as what it took of W0."""
    _, before, _ = subtracted(start)
    weights = open_weights(models.base, before, initial=before)
    for projection in weights.projections:
        update = weights.pair(projection).update
        assert isinstance(update, LowRankUpdate)
        half = update.rank // 2
        alone = LowRankUpdate(update.left[:, :half], update.right[:half], update.scale).dense()
        assert update.dense().norm() <= 1e-14 * alone.norm()
        assert bool(alone.any()) == (projection in weights.factored)


def test_the_start_is_found_beside_the_adapter(models: Any, subtracted: Any) -> None:
    after, before, _ = subtracted("pissa")
    given = open_weights(models.base, after, initial=before).pair(QUERY).update.dense()
    shutil.copytree(before, after / "initial_adapter")
    found = open_weights(models.base, after).pair(QUERY).update.dense()
    assert torch.equal(given, found)


def test_adapters_that_peft_converted_are_plain(models: Any, tmp_path: Path) -> None:
    model = models.adapted(r=3, lora_alpha=6, target_modules=TARGETS, init_lora_weights="pissa")
    model.peft_config["default"].init_lora_weights = True  # as PEFT's documentation has it
    model.save_pretrained(tmp_path / "before")
    model.peft_config["default"].init_lora_weights = "pissa"
    train(model)
    model.save_pretrained(tmp_path / "after")
    start = {"path_initial_model_for_weight_conversion": str(tmp_path / "before")}
    model.save_pretrained(tmp_path / "converted", **start)
    ours = open_weights(models.base, tmp_path / "after", initial=tmp_path / "before")
    converted = open_weights(models.base, tmp_path / "converted")
    for projection in ours.projections:
        one, other = (each.pair(projection).update.dense() for each in (ours, converted))
        torch.testing.assert_close(one, other)


def test_dora_may_start_from_pissa(models: Any, tmp_path: Path) -> None:
    model = models.adapted(r=3, target_modules=TARGETS, init_lora_weights="pissa", use_dora=True)
    after, before = saved_twice(model, tmp_path)
    weights = open_weights(models.base, after, initial=before)
    assert isinstance(weights.pair(QUERY).update, DenseUpdate)
    assert_merges_as_peft(weights, model, tolerance=1e-5)


def test_a_start_that_is_needed_and_absent_is_asked_for(models: Any, subtracted: Any) -> None:
    after, _, _ = subtracted("pissa")
    message = "after: .*init_lora_weights='pissa'.*there is none in .*after/initial_adapter; .*convert"
    with pytest.raises(UserError, match=message):
        open_weights(models.base, after)
    with pytest.raises(UserError, match="there is none in nowhere"):
        open_weights(models.base, after, initial=Path("nowhere"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"target_modules": ["v_proj"]}, "before: no model.layers.0.self_attn.q_proj, which .*after adapts"),
        (
            {"target_modules": TARGETS, "lora_alpha": 1},
            "before: s = 0.333.* for .*q_proj, but 2.0 in .*after",
        ),
    ],
)
def test_the_start_of_another_adapter_is_refused(
    models: Any, subtracted: Any, settings: dict[str, Any], message: str
) -> None:
    after, before, _ = subtracted("pissa")
    shutil.rmtree(before)
    models.adapted(r=3, **settings).save_pretrained(before)
    with pytest.raises(UserError, match=message):
        open_weights(models.base, after, initial=before).pair(QUERY)


def tiny_gpt2(folder: Path) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(n_embd=32, n_layer=1, n_head=4, vocab_size=64, n_positions=16)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return GPT2LMHeadModel.from_pretrained(folder)


def test_pissa_of_transposed_and_fused_weights_is_that_of_peft(tmp_path: Path) -> None:
    settings = LoraConfig(
        r=3, target_modules=["c_attn", "mlp.c_proj"], init_lora_weights="pissa", fan_in_fan_out=True
    )
    model = get_peft_model(tiny_gpt2(tmp_path / "base"), settings)
    after, before = saved_twice(model, tmp_path)
    weights = open_weights(tmp_path / "base", after, initial=before)
    merged = model.merge_and_unload().state_dict()
    assert len(weights.factored) == 4  # q, k, v of c_attn, and down_proj
    for projection, place in weights.base.places.items():
        if projection.layer >= 0:
            expected = place.matrix(merged[place.weight].double())
            torch.testing.assert_close(weights.pair(projection).tuned, expected, rtol=1e-5, atol=1e-5)


def test_olora_of_transposed_weights_is_refused(tmp_path: Path) -> None:
    """PEFT subtracts B A of (inputs, outputs) factors there, and adds their transpose."""
    plain = LoraConfig(r=3, target_modules=["attn.c_proj"], fan_in_fan_out=True)
    model = get_peft_model(tiny_gpt2(tmp_path / "base"), plain)
    model.peft_config["default"].init_lora_weights = "olora"
    model.save_pretrained(tmp_path / "adapter")
    weights = open_weights(tmp_path / "base", tmp_path / "adapter", initial=tmp_path / "adapter")
    with pytest.raises(UserError, match=r"attn.c_proj is a Conv1D, of which PEFT's OLoRA"):
        weights.pair(Projection(0, "o_proj"))


@pytest.mark.parametrize("start", ["mica", "orthogonal", "gaussian"])
def test_starts_that_leave_the_base_alone_are_plain(models: Any, start: str) -> None:
    folder, model = models.adapter(start, r=4, target_modules=TARGETS, init_lora_weights=start)
    assert_merges_as_peft(open_weights(models.base, folder), model)


@pytest.fixture
def adalora(models: Any, tmp_path: Path) -> Saved:
    """An AdaLoRA adapter, pruned as its allocator prunes it."""
    settings = AdaLoraConfig(
        init_r=4, target_r=2, lora_alpha=6, tinit=1, tfinal=2, deltaT=1, total_step=8, target_modules=TARGETS
    )
    model = get_peft_model(LlamaForCausalLM.from_pretrained(models.base), settings)
    train(model, 0.2)
    for step in range(8):
        model(input_ids=IDS, labels=IDS).loss.backward()
        model.base_model.update_and_allocate(step)
        model.zero_grad()
    model.save_pretrained(tmp_path / "adalora")
    return tmp_path / "adalora", model


def test_adalora_is_that_of_peft(models: Any, adalora: Saved) -> None:
    folder, model = adalora
    weights = open_weights(models.base, folder)
    tensors = load_file(folder / "adapter_model.safetensors")
    stored = {len(tensor) for name, tensor in tensors.items() if "lora_A" in name}
    assert stored - {4}, "nothing was pruned: the test would not see that the scale keeps the initial rank"
    assert_merges_as_peft(weights, model)
    again = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(models.base), folder)
    assert_merges_as_peft(weights, again)


@pytest.mark.parametrize("setting", [{"lora_alpha": 0}, {"lora_alpha": None}])
def test_adalora_without_a_scale_is_refused(
    models: Any, adalora: Saved, edited: Callable[..., Path], setting: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match=r"edited/adapter_config.json: lora_alpha is .* which give no scale"):
        open_weights(models.base, edited(adalora[0], config=setting)).pair(QUERY)


def test_a_start_that_is_given_counts_whatever_the_settings_say(models: Any, subtracted: Any) -> None:
    """PEFT's documentation has such an adapter saved with init_lora_weights=true, beside its start."""
    after, before, _ = subtracted("pissa")
    right = open_weights(models.base, after, initial=before).pair(QUERY).update.dense()
    for folder in (after, before):
        config = json.loads((folder / "adapter_config.json").read_text())
        (folder / "adapter_config.json").write_text(json.dumps(config | {"init_lora_weights": True}))
    alone = open_weights(models.base, after).pair(QUERY).update.dense()
    assert (alone - right).norm() > 0.1 * right.norm()  # what it took of W0 counts as learnt
    assert torch.equal(open_weights(models.base, after, initial=before).pair(QUERY).update.dense(), right)
