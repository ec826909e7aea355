"""Merged models against the adapted model itself, and against PEFT's own ``merge_and_unload``."""

from __future__ import annotations

import copy
import json
import math
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import families
import pytest
import torch
import transformers as hf
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

from rankdrift import files
from rankdrift.errors import IntegrityError, UserError
from rankdrift.export import base_weights, merge
from rankdrift.export.adapter_update import LowRankUpdate
from rankdrift.export.base_weights import open_base
from rankdrift.export.consolidate import consolidate
from rankdrift.export.contents import Options
from rankdrift.export.merged_tensors import RescaledTensor
from rankdrift.export.peft_names import adapter_tensors
from rankdrift.layout import RunLayout
from rankdrift.zero_checkpoint.checksums import checksum_file
from rankdrift.zero_checkpoint.shards import open_checkpoint

TOKENS = torch.arange(2 * 9).view(2, 9) % 31
MERGE = Options(merge=True)


def llama(tied: bool = False, model_class: Any = hf.LlamaForCausalLM) -> hf.PreTrainedModel:
    return model_class(families.llama(num_hidden_layers=2, tie_word_embeddings=tied))


def gpt2() -> hf.PreTrainedModel:
    return hf.GPT2LMHeadModel(hf.GPT2Config(vocab_size=31, n_embd=8, n_layer=1, n_head=2, n_positions=16))


class Trained:
    """A LoRA run with one stage-0 checkpoint of an adapter with random weights, and its live model."""

    def __init__(self, folder: Path, zero: Any, model: hf.PreTrainedModel, **options: Any) -> None:
        self.run, self.base = RunLayout(folder / "run"), folder / "base"
        base_options = options.pop("base_options", {})
        if model.can_generate():
            model.generation_config.max_length = 23
        model.save_pretrained(self.base, **base_options)
        task = "CAUSAL_LM" if model.can_generate() else "SEQ_CLS"
        settings = {"r": 3, "lora_alpha": 7, "target_modules": ["q_proj", "down_proj"]} | options
        self.model: Any = get_peft_model(model, LoraConfig(task_type=task, **settings)).eval()
        trained = {}
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad:
                parameter.data = torch.randn(parameter.shape) / 4
                trained[name] = parameter.data
        self.model.peft_config["default"].save_pretrained(self.run.model)
        if task == "SEQ_CLS":
            self.model.config.save_pretrained(self.run.model)
        (self.run.model / "tokenizer.json").write_text("{}")
        zero.save_stage_0(self.run.checkpoint(1), trained)
        digest = files.weights_digest(self.base)
        facts = {"method": "lora", "base": str(self.base), "base_digest": digest}
        zero.record_of(1, **facts).write(self.run.checkpoint(1))

    def logits(self) -> torch.Tensor:
        with torch.no_grad():
            return self.model(TOKENS).logits


Train = Callable[..., Trained]


@pytest.fixture
def train(tmp_path: Path, zero: Any, cache: Path) -> Train:
    hf.set_seed(11)
    return lambda model=None, **options: Trained(tmp_path, zero, model or llama(), **options)


CASES: dict[str, tuple[Callable[[], hf.PreTrainedModel], dict[str, Any]]] = {
    "plain": (llama, {}),
    "tied": (lambda: llama(tied=True), {}),
    "rslora": (llama, {"use_rslora": True}),
    "patterns": (
        llama,
        {"alpha_pattern": {"layers.1.mlp.down_proj": 2}, "rank_pattern": {"q_proj": 2, "0.mlp.down_proj": 5}},
    ),
    "saved whole": (llama, {"modules_to_save": ["norm", "lm_head"]}),
    "embedding": (llama, {"target_modules": ["embed_tokens", "q_proj"]}),
    "head": (llama, {"target_modules": ["lm_head", "v_proj"]}),
    "transposed": (gpt2, {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True}),
    "classifier": (lambda: llama(model_class=hf.LlamaForSequenceClassification), {}),
    "rank 1, negative": (llama, {"r": 1, "lora_alpha": -3}),
    "dora": (llama, {"use_dora": True}),
    "dora of an embedding": (llama, {"use_dora": True, "target_modules": ["embed_tokens", "lm_head"]}),
    "dora, transposed": (
        gpt2,
        {"target_modules": ["c_attn", "c_proj"], "fan_in_fan_out": True, "use_dora": True},
    ),
    "tokens": (llama, {"trainable_token_indices": [3, 30, 0]}),
    "tokens of a tied head": (lambda: llama(tied=True), {"trainable_token_indices": [3, 30, 0]}),
    "tokens, dora": (llama, {"trainable_token_indices": {"embed_tokens": [3]}, "use_dora": True}),
}
UNTIED: dict[str, dict[str, Any]] = {
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "head": {"target_modules": ["lm_head", "v_proj"]},
    "embedding saved whole": {"modules_to_save": ["embed_tokens"]},
    "head saved whole": {"modules_to_save": ["lm_head"]},
}


def loaded(
    folder: Path, auto: Any = hf.AutoModelForCausalLM, dtype: torch.dtype = torch.float32
) -> hf.PreTrainedModel:
    """The folder as plain transformers loads it, having found all that it needs and nothing more."""
    model, found = auto.from_pretrained(folder, output_loading_info=True)
    assert not {kind: names for kind, names in found.items() if names}  # missing, unexpected, mismatched
    assert model.dtype == dtype
    return model.eval()


@pytest.mark.parametrize("name", CASES)
def test_a_merged_model_is_the_adapted_one(train: Train, name: str) -> None:
    make, options = CASES[name]
    trained = train(make(), **options)
    folder = consolidate(trained.run, 1, MERGE)
    assert folder == trained.run.merged(1)
    classifier = name == "classifier"
    model = loaded(folder, hf.AutoModelForSequenceClassification if classifier else hf.AutoModelForCausalLM)
    peft = copy.deepcopy(trained.model).merge_and_unload()
    weights = dict(model.named_parameters())
    for key, expected in peft.named_parameters():
        # PEFT rounds B A, s B A and the sum to fp32; ours is rounded once: a few units in the last place
        torch.testing.assert_close(weights[key], expected, rtol=1e-6, atol=1e-6)
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS).logits, trained.logits())
        torch.testing.assert_close(model(TOKENS).logits, peft(TOKENS).logits)


@pytest.mark.parametrize("name", UNTIED)
def test_a_tied_weight_that_is_adapted_is_untied(train: Train, name: str) -> None:
    """PEFT's merge would change the other use of the weight as well: the adapted model is the measure."""
    trained = train(llama(tied=True), **UNTIED[name])
    folder = consolidate(trained.run, 1, MERGE)
    assert json.loads((folder / "config.json").read_text())["tie_word_embeddings"] is False
    model = loaded(folder)
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS).logits, trained.logits())
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_the_sum_is_rounded_once(train: Train) -> None:
    """Against integer arithmetic: exact products and sums, rounded to the nearest fp32."""
    trained = train(r=2, lora_alpha=2, target_modules=["q_proj"])
    weights = load_file(consolidate(trained.run, 1, MERGE) / "model.safetensors")
    layer = trained.model.base_model.model.model.layers[0].self_attn.q_proj
    b, a = layer.lora_B["default"].weight.detach(), layer.lora_A["default"].weight.detach()
    expected = torch.empty(8, 8)
    for row in range(8):
        for column in range(8):
            products = (float(b[row, k]) * float(a[k, column]) for k in range(2))
            expected[row, column] = math.fsum([float(layer.base_layer.weight[row, column]), *products])
    assert torch.equal(weights["model.layers.0.self_attn.q_proj.weight"], expected)


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_other_dtypes_round_the_merged_weights(train: Train, dtype: str) -> None:
    trained = train()
    whole = load_file(consolidate(trained.run, 1, MERGE) / "model.safetensors")
    folder = consolidate(trained.run, 1, Options(dtype, merge=True))
    rounded = load_file(folder / "model.safetensors")
    wanted = torch.bfloat16 if dtype == "bf16" else torch.float16
    assert set(rounded) == set(whole)
    assert all(torch.equal(rounded[name], whole[name].to(wanted)) for name in whole)
    loaded(folder, dtype=wanted)


def test_blocks_of_rows_change_nothing(train: Train, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = train()
    whole = load_file(consolidate(trained.run, 1, MERGE) / "model.safetensors")
    monkeypatch.setattr(base_weights, "_BLOCK", 25)
    folder = consolidate(trained.run, 1, Options(merge=True, shard_size=10**6))
    parts = load_file(folder / "model.safetensors")
    assert all(torch.equal(parts[name], whole[name]) for name in whole)


@pytest.mark.parametrize("options", [{"max_shard_size": "2KB"}, {}], ids=str)
def test_the_base_may_be_sharded_and_bf16(train: Train, options: dict[str, Any]) -> None:
    trained = train(llama(tied=True).bfloat16(), base_options=options)
    assert len(list(trained.base.glob("*.safetensors"))) == (2 if options else 1)
    trained.model.float()
    model = loaded(consolidate(trained.run, 1, Options(merge=True, shard_size=2000)))
    assert (trained.run.merged(1) / "model.safetensors.index.json").exists()
    with torch.no_grad():
        torch.testing.assert_close(model(TOKENS).logits, trained.logits())


def test_what_a_merged_folder_holds(train: Train) -> None:
    trained = train()
    folder = consolidate(trained.run, 1, MERGE)
    assert {path.name for path in folder.iterdir()} == {
        *("config.json", "generation_config.json", "model.safetensors", "provenance.json", "tokenizer.json")
    }
    assert loaded(folder).generation_config.max_length == 23
    provenance = json.loads((folder / "provenance.json").read_text())
    assert (provenance["merged"], provenance["base"]["folder"]) == (True, str(trained.base))
    for name, output in provenance["outputs"].items():
        assert checksum_file(folder / name) == output["checksum"]


def test_the_adapter_stays_beside_the_merged_model(train: Train) -> None:
    trained = train()
    trained.model.config.save_pretrained(trained.run.model)  # what a merged model needs, and an adapter not
    adapter = consolidate(trained.run, 1)
    assert {path.name for path in adapter.iterdir()} == {
        *("adapter_config.json", "adapter_model.safetensors", "provenance.json", "tokenizer.json")
    }
    before = (adapter / "adapter_model.safetensors").stat().st_mtime_ns
    consolidate(trained.run, 1, MERGE)
    lines: list[str] = []
    consolidate(trained.run, 1, MERGE, lines.append)
    consolidate(trained.run, 1, progress=lines.append)
    assert lines == ["step-000001: up to date"] * 2
    assert (adapter / "adapter_model.safetensors").stat().st_mtime_ns == before
    model = PeftModel.from_pretrained(hf.AutoModelForCausalLM.from_pretrained(trained.base), adapter).eval()
    with torch.no_grad():
        assert torch.equal(model(TOKENS).logits, trained.logits())


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"lora_bias": True}, "lora_bias=True"),
        ({"init_lora_weights": "pissa"}, "initial_adapter/adapter_model.safetensors: missing"),
        ({"ensure_weight_tying": True}, "ensure_weight_tying=True"),
        ({"bias": "lora_only"}, "bias='lora_only'"),
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
        ({"task_type": "FEATURE_EXTRACTION"}, "needs; leave out --merge"),
        ({"lora_alpha": None}, "lora_alpha is None"),
        ({"r": 4}, "r is 4 for model.layers.0.self_attn.q_proj, whose factors have rank 3"),
    ],
    ids=str,
)
def test_what_is_not_merged_exactly_is_refused(train: Train, setting: dict[str, Any], message: str) -> None:
    trained = train()
    path = trained.run.model / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | setting))
    with pytest.raises(UserError, match=message):
        consolidate(trained.run, 1, MERGE)
    assert not any(trained.run.root.glob("merged/*"))


def test_an_output_without_a_direction_is_not_rescaled(tmp_path: Path) -> None:
    save_file({"w": torch.eye(3)}, tmp_path / "model.safetensors")
    opposite = LowRankUpdate(torch.tensor([[0.0], [-1.0], [0.0]]), torch.tensor([[0.0, 1.0, 0.0]]), 1.0)
    merged = RescaledTensor(open_base(tmp_path)["w"], opposite, torch.ones(3), outputs=0)
    with pytest.raises(IntegrityError, match=r"'w': an output of W0 \+ s B A is zero"):
        list(merged.chunks(iter(())))


def test_as_many_rows_are_stored_as_tokens_are_named(train: Train) -> None:
    trained = train(trainable_token_indices=[3, 4])
    path = trained.run.model / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"trainable_token_indices": [3]}))
    with pytest.raises(IntegrityError, match="names 1 tokens, of which 2 rows are stored"):
        consolidate(trained.run, 1, MERGE)


def change_weights(base: Path) -> None:
    weights = load_file(base / "model.safetensors")
    weights["model.norm.weight"][3] += 1
    save_file(weights, base / "model.safetensors", {"format": "pt"})


OTHERS = "not those the run started from"


@pytest.mark.parametrize(
    ("change", "kind", "message"),
    [
        (
            lambda base: base.rename(base.with_name("elsewhere")),
            UserError,
            "base: the base model of this run is not there",
        ),
        (lambda base: (base / "model.safetensors").unlink(), IntegrityError, OTHERS),
        (change_weights, IntegrityError, OTHERS),
        (lambda base: os.truncate(base / "model.safetensors", 3000), IntegrityError, OTHERS),
    ],
)
def test_another_base_is_refused(
    train: Train, change: Callable[[Path], None], kind: type[UserError], message: str
) -> None:
    trained = train()
    change(trained.base)
    with pytest.raises(kind, match=message):
        consolidate(trained.run, 1, MERGE)
    assert not any(trained.run.root.glob("merged/*"))


DOWN = "model.layers.1.mlp.down_proj.weight"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda name, tensor: (name.removeprefix("model."), tensor), "hold no 'model.embed_tokens.weight'"),
        (
            lambda name, tensor: (name, torch.zeros(16, 12) if name == DOWN else tensor),
            r"down_proj.weight' is \(16, 12\), the adapter's update \(8, 12\)",
        ),
        (lambda name, tensor: (name, tensor.to(torch.int8)), "is I8, to which an update cannot be added"),
    ],
)
def test_a_base_that_does_not_fit_is_refused(train: Train, change: Any, message: str) -> None:
    trained = train()
    path = trained.base / "model.safetensors"
    save_file(dict(change(*item) for item in load_file(path).items()), path)
    model = merge.architecture(trained.base, "CAUSAL_LM")
    folder = trained.run.checkpoint(1)
    adapter = adapter_tensors(open_checkpoint(folder).tensors, folder)
    settings = trained.run.model / "adapter_config.json"
    with pytest.raises(UserError, match=message):
        merge.merged_model(adapter, files.read_json(settings), settings, trained.base, model)


def test_an_index_that_names_what_is_not_there_is_damage(train: Train) -> None:
    trained = train(base_options={"max_shard_size": "2KB"})
    index = trained.base / "model.safetensors.index.json"
    tree = json.loads(index.read_text())
    tree["weight_map"]["extra"] = tree["weight_map"]["model.norm.weight"]
    index.write_text(json.dumps(tree))
    with pytest.raises(IntegrityError, match="'extra' is in none of its files"):
        base_weights.open_base(trained.base)
    cut = trained.base / tree["weight_map"]["model.norm.weight"]
    cut.write_bytes(cut.read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=cut.name):
        base_weights.open_base(trained.base)
