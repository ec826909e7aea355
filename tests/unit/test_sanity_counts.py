"""The closed forms of what trains are what PEFT and the methods make of models of many families."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from rankdrift import registry
from rankdrift.methods import Method, lora
from rankdrift.models.base import load_model
from rankdrift.sanity.expected_counts import expected_count
from rankdrift.sanity.plain_model import read_plain
from rankdrift.spec import MethodSpec, ModelSpec
from rankdrift.spec.sections import method_section

VARIANTS: dict[str, dict[str, object]] = {
    **{name: {} for name in registry.names("method")},
    "bitfit": {"norms": True},
    "bitfit biases": {},
    "full frozen": {"freeze": ["embeddings", "norms"]},
    "full head": {"freeze": ["head"]},
    "last_layers one": {"last": 1},
    "lora patterns": {"rank_pattern": {"layers.1.*": 3}, "layers": [1, 1], "rank": 5},
    "lora saved": {"targets": "attention", "modules_to_save": ["embed_tokens"]},
    "lora all": {"targets": "all", "rank": 2},
    "dora all": {"targets": "all", "rank": 2},
    "lora_fa all": {"targets": "all", "rank": 2},
}
LLAMAS = ("llama", "qwen2", "gemma3")
"""With a head of their own; with biases; with norms of queries and a tied head."""
OF_OTHERS = ("lora", "dora", "lora_fa", "full", "full frozen", "last_layers one", "bitfit")
OTHERS = ("gpt2", "opt", "neox", "falcon", "phi3")
CASES = [(family, variant) for family in LLAMAS for variant in VARIANTS if variant != "bitfit biases"]
CASES += [(family, variant) for family in OTHERS for variant in OF_OTHERS] + [("qwen2", "bitfit biases")]


def settings_of(variant: str) -> MethodSpec:
    name = variant.split()[0]
    return method_section(name)(name=name, **VARIANTS[variant])


def plain(family: str) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return AutoModelForCausalLM.from_config(families.DECODERS[family]())


def trained(model: PreTrainedModel, spec: MethodSpec) -> int:
    method: Method = registry.load("method", spec.name)
    # rows decide how those adapters begin, not how many there are
    prepare: Any = lora.prepare if method.reads(spec) else method.prepare
    prepared = prepare(model, spec, Path("base"))
    return sum(
        param.numel()
        for name, param in prepared.named_parameters()
        if param.requires_grad and not method.rests(name, spec)
    )


@pytest.mark.parametrize(("family", "variant"), CASES)
def test_a_closed_form_is_what_trains(family: str, variant: str) -> None:
    spec = settings_of(variant)
    expected = expected_count(spec, read_plain(plain(family)))
    assert expected
    assert trained(plain(family), spec) == expected


@pytest.mark.parametrize("variant", ["lora", "dora", "full frozen", "last_layers one"])
def test_a_new_head_trains_whole(tiny: Path, variant: str) -> None:
    def classifier() -> PreTrainedModel:
        return load_model(tiny, ModelSpec(head="classifier"), 3)

    spec = settings_of(variant)
    assert expected_count(spec, read_plain(classifier())) == trained(classifier(), spec)


def test_figures_of_the_tiny_model_by_hand(tiny: Path) -> None:
    model = read_plain(load_model(tiny, ModelSpec()))
    # a block: q 64x64, k and v 64x32, o 64x64, gate and up 64x160, down 160x64; three of them
    sums, outs = 2 * 128 + 2 * 96 + 3 * 224, 64 + 32 + 32 + 64 + 160 + 160 + 64
    assert expected_count(settings_of("lora"), model) == 3 * 8 * sums
    assert expected_count(settings_of("dora"), model) == 3 * (8 * sums + outs)
    assert expected_count(settings_of("lora_fa"), model) == 3 * 8 * outs
    assert expected_count(settings_of("bitfit"), model) == 7 * 64
    matrices = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 160
    assert expected_count(settings_of("full"), model) == 258 * 64 + 7 * 64 + 3 * matrices
    assert expected_count(settings_of("last_layers one"), model) == matrices + 3 * 64


def test_a_method_of_ones_own_has_none(tiny: Path) -> None:
    assert expected_count(MethodSpec(name="mine"), read_plain(load_model(tiny, ModelSpec()))) is None
