"""Names, fused and transposed weights of each family against what its model does with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf
from peft import LoraConfig, get_peft_model
from torch import nn

from rankdrift.analysis.sources import naming
from rankdrift.analysis.sources.naming import Cut, Place, locate
from rankdrift.analysis.sources.updates import DenseUpdate
from rankdrift.analysis.sources.weights import BaseWeights, LowRankUpdate, Projection, open_weights
from rankdrift.errors import UserError

WIDTH, HIDDEN, HEADS, TOKENS = 32, 48, 4, 64
NAMES = {"num_hidden_layers": 2, "num_attention_heads": HEADS, "hidden_size": WIDTH, "vocab_size": TOKENS}
LLAMA = NAMES | {"intermediate_size": HIDDEN, "num_key_value_heads": 2, "pad_token_id": 0}
GPT = {"n_embd": WIDTH, "n_layer": 2, "n_head": HEADS, "n_inner": HIDDEN, "vocab_size": TOKENS}
NEO = {"num_layers": 2, "num_heads": HEADS, "attention_types": [[["global"], 2]]}
FALCON = NAMES | {"ffn_hidden_size": HIDDEN, "alibi": False, "bias": False}

CONFIGS: dict[str, Callable[[], Any]] = {
    "llama": lambda: hf.LlamaConfig(**LLAMA, tie_word_embeddings=False),
    "llama tied": lambda: hf.LlamaConfig(**LLAMA, tie_word_embeddings=True),
    "qwen3": lambda: hf.Qwen3Config(**LLAMA, head_dim=16),
    "gpt2": lambda: hf.GPT2Config(**GPT, n_positions=8),
    "bigcode multi-query": lambda: hf.GPTBigCodeConfig(**GPT, n_positions=8),
    "bigcode heads": lambda: hf.GPTBigCodeConfig(**GPT, n_positions=8, multi_query=False),
    "gpt neo": lambda: hf.GPTNeoConfig(
        **NEO, hidden_size=WIDTH, intermediate_size=HIDDEN, vocab_size=TOKENS, max_position_embeddings=8
    ),
    "starcoder2": lambda: hf.Starcoder2Config(**LLAMA),
    "neox": lambda: hf.GPTNeoXConfig(**NAMES, intermediate_size=HIDDEN),
    "persimmon": lambda: hf.PersimmonConfig(**NAMES, intermediate_size=HIDDEN),
    "phi": lambda: hf.PhiConfig(**NAMES, intermediate_size=HIDDEN),
    "phi3": lambda: hf.Phi3Config(**LLAMA),
    "glm": lambda: hf.GlmConfig(**LLAMA, head_dim=8),
    "opt": lambda: hf.OPTConfig(**NAMES, ffn_dim=HIDDEN, word_embed_proj_dim=WIDTH),
    "bloom": lambda: hf.BloomConfig(n_layer=2, n_head=HEADS, hidden_size=WIDTH, vocab_size=TOKENS),
    "falcon multi-query": lambda: hf.FalconConfig(**FALCON),
    "falcon groups": lambda: hf.FalconConfig(**FALCON, new_decoder_architecture=True, num_kv_heads=2),
    "falcon heads": lambda: hf.FalconConfig(**FALCON, multi_query=False),
    "bert": lambda: hf.BertConfig(**NAMES, intermediate_size=HIDDEN),
    "roberta": lambda: hf.RobertaConfig(**NAMES, intermediate_size=HIDDEN),
}
ENCODERS = ("bert", "roberta")
GATED = ("llama", "llama tied", "qwen3", "phi3", "glm")
UNTIED = ("llama", "qwen3", "neox", "persimmon", "phi", "phi3", "glm")


def build(family: str) -> hf.PreTrainedModel:
    torch.manual_seed(0)
    auto = hf.AutoModelForSequenceClassification if family in ENCODERS else hf.AutoModelForCausalLM
    model: hf.PreTrainedModel = auto.from_config(CONFIGS[family]()).eval()
    for parameter in model.parameters():  # norms and biases as well: nothing is the identity by chance
        nn.init.normal_(parameter, std=0.3)
    return model


@pytest.fixture(scope="session")
def family_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return save(family): the folder of a family's model, made once."""
    root = tmp_path_factory.mktemp("families")

    def save(family: str) -> Path:
        if not (root / family).exists():
            build(family).save_pretrained(root / family)
        return root / family

    return save


@pytest.mark.parametrize("family", CONFIGS)
def test_every_matrix_is_found_once_and_in_order(family_folder: Any, family: str) -> None:
    block = ["q_proj", "k_proj", "v_proj", "o_proj", "up_proj", "down_proj"]
    if family in GATED:
        block.insert(4, "gate_proj")
    outside = ["embed_tokens"] + ["lm_head"] * (family in UNTIED) + ["score"] * (family == "bert")
    expected = [(-1, module) for module in outside] + [(n, module) for n in (0, 1) for module in block]
    base = BaseWeights(family_folder(family))
    assert [(projection.layer, projection.module) for projection in base.places] == expected
    # of the weights of two dimensions, only these are no matrix of the model's: positions and pooling
    stored = {name for name in base.tensors.names if len(base.tensors.shape(name)) == 2}
    rest = {name.split(".")[-2] for name in stored - {place.weight for place in base.places.values()}}
    positions = {"wpe", "embed_positions", "position_embeddings", "token_type_embeddings"}
    assert rest <= positions | ({"dense", "out_proj"} if family in ENCODERS else set())


def attention_inputs(model: hf.PreTrainedModel) -> list[tuple[torch.Tensor, ...]]:
    """Return q, k, v (heads, head width) of each layer for one token at position 0, where RoPE is nothing."""
    seen = []

    def capture(module: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> Any:
        seen.append(tuple(part[0, :, 0].detach() for part in (query, key, value)))
        return torch.zeros_like(query).transpose(1, 2).contiguous(), None

    hf.AttentionInterface.register("capture", capture)
    model.set_attn_implementation("capture")
    with torch.no_grad():
        model(torch.tensor([[5]]))
    return seen


FUSED = {
    "gpt2": ("transformer.h.1.attn.c_attn", 4),
    "bigcode multi-query": ("transformer.h.1.attn.c_attn", 1),
    "bigcode heads": ("transformer.h.1.attn.c_attn", 4),
    "neox": ("gpt_neox.layers.1.attention.query_key_value", 4),
    "phi3": ("model.layers.1.self_attn.qkv_proj", 2),
}


@pytest.mark.parametrize("family", FUSED)
def test_fused_weights_are_cut_as_their_model_does(family_folder: Any, family: str) -> None:
    name, shared = FUSED[family]
    model = build(family)
    inputs: list[torch.Tensor] = []
    fused = model.get_submodule(name)
    assert isinstance(fused, nn.Module)
    if getattr(fused, "bias", None) is not None:
        nn.init.zeros_(fused.bias)
    fused.register_forward_pre_hook(lambda _, args: inputs.append(args[0][0, 0].detach()))
    expected = attention_inputs(model)[1]
    base = BaseWeights(family_folder(family))
    for module, heads in zip(("q_proj", "k_proj", "v_proj"), expected, strict=True):
        matrix = base.matrix(Projection(1, module))
        assert len(heads) == (HEADS if module == "q_proj" else shared)
        torch.testing.assert_close(matrix @ inputs[0], heads.flatten())


@pytest.mark.parametrize(
    "family", ["bloom", "persimmon", "falcon multi-query", "falcon groups", "falcon heads"]
)
def test_families_with_their_own_attention_are_cut_as_they_split(family_folder: Any, family: str) -> None:
    """Against the method by which the model's attention splits the output of its fused projection."""
    model = build(family)
    attention = next(m for m in model.modules() if hasattr(m, "query_key_value"))
    inputs = torch.randn(WIDTH)
    with torch.no_grad():
        fused = (attention.query_key_value.weight @ inputs).view(1, 1, -1)
        split = attention._reshape(fused) if family == "bloom" else attention._split_heads(fused)
    base = BaseWeights(family_folder(family))
    for module, heads in zip(("q_proj", "k_proj", "v_proj"), split, strict=True):
        rows = base.matrix(Projection(0, module)) @ inputs
        if family == "falcon groups" and module != "q_proj":  # it repeats what the queries of a group share
            heads = heads.view(2, 2, -1)[:, 0]
        torch.testing.assert_close(rows, heads.flatten())


@pytest.mark.parametrize("family", ["phi3", "glm"])
def test_gates_are_the_first_half_of_the_rows(family_folder: Any, family: str) -> None:
    mlp = build(family).get_submodule("model.layers.0.mlp")
    mlp.activation_fn = nn.Threshold(float("inf"), 2.0)  # 2 whatever the gate
    inputs, base = torch.randn(WIDTH), BaseWeights(family_folder(family))
    up, down = (base.matrix(Projection(0, module)) for module in ("up_proj", "down_proj"))
    with torch.no_grad():
        torch.testing.assert_close(mlp(inputs), down @ (2 * up @ inputs))
    gate = base.matrix(Projection(0, "gate_proj"))
    assert torch.equal(torch.cat([gate, up]), mlp.gate_up_proj.weight)


@pytest.mark.parametrize(
    ("family", "block"),
    [
        ("gpt2", "transformer.h.1"),
        ("bigcode heads", "transformer.h.1"),
        ("gpt neo", "transformer.h.1"),
        ("starcoder2", "model.layers.1"),
    ],
)
def test_weights_of_one_name_are_turned_in_gpt2_alone(family_folder: Any, family: str, block: str) -> None:
    """c_fc and c_proj are stored (inputs, outputs) by GPT-2 and the other way round by its successors."""
    model, base = build(family), BaseWeights(family_folder(family))
    for path, module in (("mlp.c_fc", "up_proj"), ("mlp.c_proj", "down_proj")):
        layer = model.get_submodule(f"{block}.{path}")
        assert isinstance(layer.bias, nn.Parameter)
        matrix = base.matrix(Projection(1, module))
        inputs = torch.randn(matrix.shape[1])
        with torch.no_grad():
            torch.testing.assert_close(matrix @ inputs, layer(inputs[None])[0] - layer.bias)


@pytest.mark.parametrize("family", CONFIGS)
def test_an_update_is_the_difference_of_the_parts(family_folder: Any, family: str, tmp_path: Path) -> None:
    model = build(family)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path)
    weights, tuned = open_weights(family_folder(family), tmp_path), BaseWeights(tmp_path)
    squares = 0.0
    for projection in weights.projections:
        pair = weights.pair(projection)
        assert pair.update.shape == pair.base.shape == tuned.matrix(projection).shape
        torch.testing.assert_close(pair.tuned, tuned.matrix(projection).double(), rtol=0, atol=0)
        squares += float(pair.update.dense().square().sum())
    whole = {place.weight for place in weights.base.places.values()}
    differences = (weights.base.tensors.tensor(n) - tuned.tensors.tensor(n) for n in whole)
    assert squares == pytest.approx(sum(float(d.double().square().sum()) for d in differences), rel=1e-6)


TARGETS = {
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "neox": ["query_key_value", "dense", "dense_4h_to_h"],
    "bigcode multi-query": ["c_attn", "c_proj", "c_fc"],
    "gpt neo": ["q_proj", "c_fc", "c_proj"],
    "phi3": ["qkv_proj", "gate_up_proj", "down_proj"],
    "opt": ["q_proj", "out_proj", "fc1", "fc2"],
    "falcon groups": ["query_key_value", "dense"],
    "bert": ["query", "value", "dense"],
    "llama": ["q_proj", "embed_tokens", "lm_head"],
}


@pytest.mark.parametrize("variant", [{}, {"use_dora": True}], ids=["lora", "dora"])
@pytest.mark.parametrize("family", TARGETS)
def test_adapters_of_fused_and_turned_weights_are_cut_as_well(
    family_folder: Any, family: str, variant: dict[str, bool], tmp_path: Path
) -> None:
    """Against the parts of the weights that PEFT merges."""
    settings = LoraConfig(r=3, lora_alpha=7, target_modules=TARGETS[family], **variant)
    model = get_peft_model(build(family), settings)
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(tmp_path / "adapter")
    merged = model.merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    weights = open_weights(family_folder(family), tmp_path / "adapter")
    expected = BaseWeights(tmp_path / "merged")
    changed = 0
    for projection in weights.projections:
        pair = weights.pair(projection)
        change = expected.matrix(projection) - pair.base
        torch.testing.assert_close(pair.update.dense().float(), change, rtol=1e-4, atol=1e-5)
        if isinstance(pair.update, LowRankUpdate) and projection in weights.factored:
            assert pair.update.rank == 3
            assert pair.update.left.is_contiguous()
        changed += bool(pair.update.dense().any())
    assert changed == len(weights.factored) >= 2
    state = merged.state_dict()
    for name, value in weights.merged():
        torch.testing.assert_close(value, state[name], rtol=1e-5, atol=1e-5)


def test_the_parts_of_a_fused_weight_left_alone_are_untouched(family_folder: Any, tmp_path: Path) -> None:
    get_peft_model(build("phi3"), LoraConfig(r=2, target_modules=["o_proj"])).save_pretrained(tmp_path)
    weights = open_weights(family_folder("phi3"), tmp_path)
    for projection in set(weights.projections) - set(weights.factored):
        update = weights.update(projection)
        assert isinstance(update, LowRankUpdate)
        assert (update.rank, update.shape) == (0, weights.base.matrix(projection).shape)


def test_the_parts_of_an_update_have_the_rows_of_the_weight() -> None:
    """The same rows by either way: cutting the factors, and cutting their product."""
    torch.manual_seed(2)
    update = LowRankUpdate(torch.randn(24, 2), torch.randn(2, 5), 0.5)
    for part in range(3):
        for transposed in (False, True):
            place = Place("w", transposed, Cut("w", 2, (2, 1, 1), part))
            stored = update.T if transposed else update
            dense = place.update(DenseUpdate(stored.dense()))
            torch.testing.assert_close(place.update(stored).dense(), dense.dense())
    whole = [Place("w", cut=Cut("w", 2, (2, 1, 1), part)).matrix(update.left) for part in range(3)]
    assert [len(rows) for rows in whole] == [12, 6, 6]
    assert torch.equal(whole[1], update.left[[6, 7, 8, 18, 19, 20]])


@pytest.mark.parametrize("family", ["llama", "gpt2", "neox", "phi3"])
def test_what_is_put_in_a_place_is_there_and_nothing_else_changes(family_folder: Any, family: str) -> None:
    base = BaseWeights(family_folder(family))
    for projection, place in base.places.items():
        stored = base.tensors.tensor(place.weight)
        matrix = torch.randn(base.matrix(projection).shape, dtype=torch.float64)
        before = stored.clone()
        place.put(stored, matrix)
        assert torch.equal(place.matrix(stored), matrix.float())
        assert int((stored != before).sum()) == matrix.numel()


QKV = "gpt_neox.layers.0.attention.query_key_value.weight"


@pytest.mark.parametrize(
    ("names", "config", "message"),
    [
        ([QKV], {}, "query_key_value.weight: its layout .* no config.json beside it states model_type"),
        ([QKV], {"model_type": "gpt_neox"}, "is fused, and no config.json .*num_attention_heads"),
        # ChatGLM keeps q, k and v apart, CodeGen interleaves four groups of q, v and k
        ([QKV], {"model_type": "chatglm"}, "in models of type 'chatglm' is not known, only in gpt_neox"),
        (["h.0.attn.qkv_proj.weight"], {"model_type": "codegen", "n_head": 4}, "'codegen' is not known"),
        (["h.0.mlp.c_fc.weight"], {"model_type": "nanogpt"}, "'nanogpt' is not known, only in gpt2, "),
        (["layers.0.mlp.experts.gate_up_proj"], {}, "mixtures of experts are not read"),
        (["h.0.mlp.experts.3.down_proj.weight"], {}, "mixtures of experts are not read"),
        (["layers.0.q_proj.weight", "encoder.layers.0.q_proj.weight"], {}, "are both layer 0 q_proj"),
    ],
)
def test_names_that_cannot_be_placed_are_refused(names: list[str], config: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"folder: .*{message}"):
        locate(names, config, Path("folder"))


def test_heads_that_do_not_divide_the_rows_are_refused(family_folder: Any, tmp_path: Path) -> None:
    for path in family_folder("neox").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_attention_heads": 5}))
    message = rf"{tmp_path}: gpt_neox.*query_key_value.weight: 96 rows do not divide into 5"
    with pytest.raises(UserError, match=message):
        BaseWeights(tmp_path).matrix(Projection(0, "q_proj"))


@pytest.mark.parametrize(
    "kind", [*naming.UNTIED, "gpt2", "opt", "bloom", "falcon", "bert", "roberta", "gemma"]
)
def test_types_of_model_tie_their_heads_as_transformers_does(kind: str) -> None:
    found = locate(["lm_head.weight"], {"model_type": kind}, Path("folder"))
    assert bool(found) != hf.AutoConfig.for_model(kind).tie_word_embeddings


@pytest.mark.parametrize(
    ("config", "present"),
    [
        ({"model_type": "llama"}, True),
        ({"model_type": "gpt2"}, False),
        ({"model_type": "llama", "tie_word_embeddings": True}, False),
        ({"model_type": "gpt2", "tie_word_embeddings": False}, True),
        ({}, True),
    ],
)
def test_a_tied_head_counts_once(config: dict[str, Any], present: bool) -> None:
    found = locate(["lm_head.weight", "model.embed_tokens.weight"], config, Path("folder"))
    assert (Projection(-1, "lm_head") in found) == present
