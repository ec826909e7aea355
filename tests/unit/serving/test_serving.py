"""What is served, what it costs by its shapes, and that what is timed is what was asked."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from rankdrift.serving.bank import Bank, Place
from rankdrift.serving.benchmark import Asked, measure
from rankdrift.serving.cost import cost_of
from rankdrift.serving.deployed import Deployed, Tuned, bytes_on_disk, ways_of
from rankdrift.serving.footprint import footprint
from rankdrift.serving.passes import generate
from rankdrift.serving.planted import WEIGHTS, plant
from rankdrift.spec import ModelSpec

TEXTS = [list(range(1, 120))]


def test_the_ways_to_serve_models(tiny: Path, adapter: Tuned, make_adapter: Callable[..., Tuned]) -> None:
    models = [Tuned("full", tiny), adapter, make_adapter("dora", use_dora=True)]
    names = [way.name for way in ways_of(models)]
    assert names[:5] == ["base", "full", "lora-r4, merged", "lora-r4, unmerged", "lora-r4, mixed"]
    assert names[5:] == ["dora, merged", "dora, unmerged"]
    assert "lora-r4, mixed" not in [way.name for way in ways_of(models, mixes=False)]


def test_planted_adapters_have_the_shape_and_size_of_the_trained_one(adapter: Tuned, tmp_path: Path) -> None:
    trained = load_file(adapter.export / WEIGHTS)
    one, other = (load_file(plant(adapter.export, tmp_path / str(seed), seed) / WEIGHTS) for seed in (1, 2))
    assert set(one) == set(trained)
    for name, tensor in trained.items():
        if "lora_A" in name:
            assert torch.equal(one[name], tensor)
        else:
            assert not torch.equal(one[name], other[name])
            assert float(one[name].norm() / tensor.norm()) == pytest.approx(1, abs=0.3)


def test_generation_is_that_of_transformers(bank: Bank, adapter: Tuned, prompt: Tensor) -> None:
    served = bank.served(Deployed("merged", adapter))
    found = generate(served, prompt, 5, iter(range(100)).__next__)
    served.model.config.use_cache = True
    expected = served.model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=5, do_sample=False, eos_token_id=None
    )
    assert torch.equal(found.tokens, expected[:, prompt.shape[1] :])
    assert (found.first, found.further, found.seconds) == (1, (1, 1, 1, 1), 5)


def test_operations_are_those_that_torch_counts(bank: Bank, adapter: Tuned, prompt: Tensor) -> None:
    """Of the matrices: products of attention are counted apart, and the last positions' logits as a batch."""
    for way in ("base", "merged", "unmerged"):
        served = bank.served(Deployed(way, None if way == "base" else adapter))
        served.activate()
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            served(prompt, logits_to_keep=1)
        counted = counter.get_flop_counts()["Global"]
        matrices = sum(
            flops
            for operation, flops in counted.items()
            if str(operation) in ("aten.mm", "aten.addmm", "aten.bmm")
        )
        assert cost_of(served.model, prompt.numel(), len(prompt), served.adapters).flops == matrices


def test_bytes_are_those_of_the_weights(bank: Bank, adapter: Tuned) -> None:
    served = bank.served(Deployed("mixed", adapter))
    alone, all_three = (cost_of(served.model, 1, 1, served.adapters[:count]).bytes for count in (1, 3))
    stored = sum(tensor.numel() * 4 for tensor in load_file(adapter.export / WEIGHTS).values())
    assert all_three - alone == 2 * stored
    assert alone - cost_of(served.model, 1, 1).bytes == stored


def test_a_folder_of_an_adapter_needs_the_base_beside_it(tiny: Path, adapter: Tuned) -> None:
    size = {way: bytes_on_disk(Deployed(way, adapter), tiny) for way in ("merged", "unmerged")}
    base = bytes_on_disk(Deployed("base"), tiny)
    assert size["merged"] == base == bytes_on_disk(Deployed("full", Tuned("full", tiny)), tiny)
    assert size["unmerged"] == base + (adapter.export / WEIGHTS).stat().st_size


def test_a_model_is_loaded_in_a_process_of_its_own(tiny: Path, adapter: Tuned) -> None:
    found = footprint(Place(tiny, ModelSpec(name="tiny")), Deployed("merged", adapter), [[5, 6, 7]], 3)
    assert found.cold_load > 0
    assert found.peak_memory >= found.loaded_memory > bytes_on_disk(Deployed("base"), tiny) / 2


def test_every_model_answers_every_request_in_every_round(bank: Bank, adapter: Tuned, tiny: Path) -> None:
    asked = Asked(batches=(1, 2), prompts=(3, 5), tokens=4, rounds=3, warm_ups=1, footprints=1)
    ways = list(ways_of([Tuned("full", tiny), adapter]))
    said: list[str] = []
    found = measure(bank, ways, TEXTS, asked, said.append)
    samples = found.samples
    requests = samples[samples["batch"] > 0]
    counts = requests.groupby(["arm", "way", "quantity", "batch", "prompt_tokens", "round"]).size()
    assert counts.xs("first_token", level="quantity").eq(1).all()
    assert counts.xs("further_token", level="quantity").eq(3).all()
    assert len(counts) == 5 * 3 * 4 * 3  # ways, quantities, requests, rounds
    assert (samples["value"] > 0).all()
    adapters = samples[samples["quantity"].str.startswith("adapter_")]
    assert adapters.groupby("quantity").size().to_dict() == dict.fromkeys(
        ("adapter_load", "adapter_swap", "adapter_switch"), 3
    )
    loads = samples[samples["quantity"] == "cold_load"]
    assert sorted(loads["way"]) == ["base", "full", "merged", "unmerged"]
    assert {each["way"] for each in found.disk} == {way.way for way in ways}
    assert len(found.costs) == 5 * 4 * 2
    assert said[-1] == "round 3/3"


def test_the_order_is_drawn_and_another_one_each_round(bank: Bank, adapter: Tuned) -> None:
    asked = Asked(batches=(1, 2), prompts=(3,), tokens=2, rounds=6, warm_ups=1, footprints=1)
    samples = measure(bank, list(ways_of([adapter])), TEXTS, asked, lambda line: None).samples
    firsts = samples[samples["quantity"] == "first_token"]
    orders = {
        tuple(zip(rows["way"], rows["batch"], strict=True)) for _, rows in firsts.groupby("round", sort=False)
    }
    assert len(orders) > 3
