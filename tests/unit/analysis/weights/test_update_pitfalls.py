"""What goes wrong when an update is read naively: the naive value is wrong, ours is what the model has."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaForCausalLM

from rankdrift.analysis.sources.weights import BaseWeights, Projection, open_weights

QUERY = Projection(0, "q_proj")
NAME = "model.layers.0.self_attn.q_proj"


def product(folder: Path) -> torch.Tensor:
    """B A as it is stored."""
    stored = load_file(folder / "adapter_model.safetensors")
    a, b = (stored[f"base_model.model.{NAME}.lora_{factor}.weight"].double() for factor in "AB")
    return b @ a


def difference(base: Path, model: Any) -> torch.Tensor:
    """W - W0 of the model that PEFT merges."""
    merged = model.merge_and_unload().state_dict()[f"{NAME}.weight"].double()
    return merged - load_file(base / "model.safetensors")[f"{NAME}.weight"].double()


@pytest.mark.parametrize(
    ("settings", "off"),
    [
        ({"r": 4, "lora_alpha": 32}, 8.0),  # no alpha / r at all, as WeightWatcher reads adapters
        ({"r": 16, "lora_alpha": 16, "use_rslora": True}, 4.0),  # alpha / r instead of alpha / sqrt(r)
        ({"r": 4, "lora_alpha": 4, "alpha_pattern": {"q_proj": 20}}, 5.0),  # lora_alpha of other modules
    ],
)
def test_the_scale_of_the_factors(models: Any, settings: dict[str, Any], off: float) -> None:
    folder, model = models.adapter(f"scale {off}", target_modules=["q_proj", "v_proj"], **settings)
    naive = product(folder) * (1 if off == 8 else settings["lora_alpha"] / settings["r"])
    ours = open_weights(models.base, folder).pair(QUERY).update.dense()
    expected = difference(models.base, model)
    assert float(expected.norm() / naive.norm()) == pytest.approx(off, rel=1e-4)
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


def test_the_magnitude_of_dora(models: Any) -> None:
    folder, model = models.adapter("lengths", r=2, use_dora=True, target_modules=["q_proj"])
    layer = model.base_model.model.get_submodule(NAME)
    naive = layer.get_delta_weight("default").detach().double()  # s B A, without the lengths
    ours = open_weights(models.base, folder).pair(QUERY).update.dense()
    expected = difference(models.base, model)
    assert float((naive - expected).norm() / expected.norm()) > 0.5
    assert torch.linalg.matrix_rank(naive, rtol=1e-5) == 2
    torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("target", ["q_proj", "embed_tokens"])
def test_lengths_in_bfloat16_are_noise_of_the_size_of_the_base(
    models: Any, tmp_path: Path, target: str
) -> None:
    """Untrained, DoRA has moved nothing; its rounded lengths say 0.0017 of ||W0||, of full rank."""
    settings = LoraConfig(r=2, use_dora=True, target_modules=["q_proj", "embed_tokens"])
    model = get_peft_model(LlamaForCausalLM.from_pretrained(models.base), settings)
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


def test_the_base_that_pissa_changed(models: Any, tmp_path: Path) -> None:
    """Untrained, it has moved nothing; the adapter alone looks like the largest update there could be."""
    settings = LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj"], init_lora_weights="pissa")
    model = get_peft_model(LlamaForCausalLM.from_pretrained(models.base), settings)
    model.save_pretrained(tmp_path)
    pair = open_weights(models.base, tmp_path, initial=tmp_path).pair(QUERY)
    ratio = torch.linalg.matrix_norm(product(tmp_path), 2) / torch.linalg.matrix_norm(pair.base.double(), 2)
    assert float(ratio) == pytest.approx(1, rel=1e-5)  # sigma_1 of W0 itself
    assert float(pair.update.dense().norm() / pair.base.norm()) < 1e-14


def test_the_rows_of_fused_projections(tmp_path: Path) -> None:
    """GPT-NeoX keeps q, k and v of each head together: the first third of the rows is not q."""
    torch.manual_seed(0)
    config = GPTNeoXConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48, vocab_size=64
    )
    model = GPTNeoXForCausalLM(config)
    fused = model.gpt_neox.layers[0].attention.query_key_value.weight
    with torch.no_grad():  # values of head h are all h + 1; queries and keys are small
        fused.mul_(0.01).view(4, 3, 8, 32)[:, 2] = torch.arange(1.0, 5.0)[:, None, None]
    model.save_pretrained(tmp_path)
    naive, ours = fused.detach()[64:], BaseWeights(tmp_path).matrix(Projection(0, "v_proj"))
    assert sorted(set(ours.flatten().tolist())) == [1.0, 2.0, 3.0, 4.0]
    assert {1.0, 2.0}.isdisjoint(naive.flatten().tolist())  # the last third has no values of heads 0 and 1


def test_a_module_of_one_layer_is_not_the_model(models: Any) -> None:
    """The first name with 'q_proj' in it: one of two layers, and of fifteen matrices."""
    weights = open_weights(models.base, models.full)
    naive = next(p for p, name in weights.base.names.items() if "q_proj" in name)
    squares = {p: float(weights.pair(p).update.dense().square().sum()) for p in weights.projections}
    assert len(squares) == 15
    assert math.sqrt(squares[naive] / sum(squares.values())) < 0.4


def test_a_tied_head_is_not_counted_again(models: Any) -> None:
    """transformers lists the head beside the embedding; its update would count twice."""
    state = LlamaForCausalLM.from_pretrained(models.full).state_dict()
    assert torch.equal(state["lm_head.weight"], state["model.embed_tokens.weight"])
    weights = open_weights(models.base, models.full)
    assert [p.module for p in weights.projections if p.layer < 0] == ["embed_tokens"]
