"""Counts of parameters against models that transformers and peft build, and against closed forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from rankdrift import registry
from rankdrift.models.base import load_model
from rankdrift.planning.activations import Trained
from rankdrift.planning.parameters import size_of, trained_parts
from rankdrift.spec import ModelSpec

SMOLLM2_135M = LlamaConfig(
    vocab_size=49152,
    hidden_size=576,
    intermediate_size=1536,
    num_hidden_layers=30,
    num_attention_heads=9,
    num_key_value_heads=3,
    tie_word_embeddings=True,
)
PROJECTIONS = [(576, 576), (576, 192), (576, 192), (576, 576), (576, 1536), (576, 1536), (1536, 576)]
"""(in, out) of a block's projections."""


def prepared(model: Any, method: str, **settings: Any) -> Any:
    found = registry.load("method", method)
    return found.prepare(model, found.settings(**settings), Path())


def on_meta() -> Any:
    with torch.device("meta"):
        return LlamaForCausalLM(SMOLLM2_135M)


def test_smollm2_135m_has_the_parameters_it_is_known_for() -> None:
    size = size_of(prepared(on_meta(), "full"))
    assert (size.total, size.trained, size.frozen) == (134_515_008, 134_515_008, 0)
    assert size.largest == size.groups["embed"] == 49152 * 576
    assert sum(size.groups.values()) == size.trained
    assert size.aliases == 0  # of what trains a checkpoint has no second copy


@pytest.mark.parametrize("rank", [8, 64])
def test_lora_trains_r_times_in_plus_out(rank: int) -> None:
    model = prepared(on_meta(), "lora", rank=rank)
    size = size_of(model)
    assert size.trained == 30 * sum(rank * (given + made) for given, made in PROJECTIONS)
    assert size.frozen == 134_515_008
    assert size.aliases == 49152 * 576  # the head, which is the embedding's
    assert trained_parts(model, 30) == Trained(False, True, False, blocks=30, low_rank=7 * rank)


def test_tiny_is_counted_as_peft_counts_it(tiny: Path) -> None:
    own = load_model(tiny, ModelSpec(name="tiny"))
    targets = ["q_proj", "v_proj"]
    theirs = get_peft_model(
        AutoModelForCausalLM.from_pretrained(tiny), LoraConfig(r=3, target_modules=targets)
    )
    size = size_of(prepared(own, "lora", rank=3, targets="qv"))
    assert (size.trained, size.total) == theirs.get_nb_trainable_parameters()


@pytest.mark.parametrize(
    ("method", "settings", "expected"),
    [
        ("full", {}, Trained(True, True, True, blocks=3)),
        ("full", {"freeze": ["embeddings"]}, Trained(True, True, False, blocks=3)),
        ("last_layers", {"last": 1}, Trained(True, True, False, blocks=1)),
        ("bitfit", {"norms": True}, Trained(True, False, False, blocks=3)),
        ("lora", {"layers": [1, 2], "rank": 2}, Trained(False, True, False, blocks=2, low_rank=14)),
    ],
    ids=["full", "frozen-embeddings", "last", "norms", "upper-lora"],
)
def test_what_trains_decides_what_is_kept(
    method: str, settings: dict[str, Any], expected: Trained, tiny: Path
) -> None:
    model = prepared(load_model(tiny, ModelSpec(name="tiny")), method, **settings)
    assert trained_parts(model, 3) == expected
