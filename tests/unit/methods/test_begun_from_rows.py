"""Methods that begin from what the model makes of rows: against dense decompositions in float64, and PEFT."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.tuners.lora.config import EvaConfig
from peft.tuners.lora.eva import get_eva_state_dict
from torch import Tensor

from rankdrift.errors import UserError
from rankdrift.methods import eva, lora_ga
from rankdrift.models.base import load_model
from rankdrift.spec import ModelSpec

DRAWN = torch.Generator().manual_seed(3)
IDS = torch.randint(2, 258, (6, 12), generator=DRAWN)
IDS[1, 7:] = IDS[4, 5:] = 1
ROWS = {
    "input_ids": IDS,
    "attention_mask": (IDS != 1).long(),
    "labels": torch.where((IDS != 1) & (torch.arange(12) > 2), IDS, -100),
}
MODULES = ("layers.0.self_attn.k_proj", "layers.1.mlp.down_proj", "layers.2.mlp.up_proj")


def inputs_of(model: Any, module: str) -> np.ndarray:
    """What a module of the base reads, in float64, without what fills rows up: shape (tokens, width)."""
    seen: list[Tensor] = []
    layer = model.double().get_submodule(f"model.{module}")
    hook = layer.register_forward_pre_hook(lambda _, given: seen.append(given[0]))
    with torch.no_grad():
        model(input_ids=IDS, attention_mask=ROWS["attention_mask"])
    hook.remove()
    return seen[0][ROWS["attention_mask"].bool()].numpy()


@pytest.mark.parametrize("module", MODULES)
def test_eva_begins_as_the_principal_directions_of_the_inputs(tiny: Path, module: str) -> None:
    model = eva.prepare(load_model(tiny, ModelSpec()), eva.Settings(rank=4), tiny, ROWS)
    layer = model.get_submodule(f"base_model.model.model.{module}")
    found = layer.lora_A["default"].weight.detach().double().numpy()
    inputs = inputs_of(load_model(tiny, ModelSpec()), module)
    expected = np.linalg.svd(inputs - inputs.mean(0), full_matrices=False)[2][:4]
    np.testing.assert_allclose(np.abs(found @ expected.T), np.eye(4), atol=2e-5)
    assert not layer.lora_B["default"].weight.any()
    assert (found.max(1) == np.abs(found).max(1)).all()


def test_eva_explains_as_much_as_peft_does(tiny: Path) -> None:
    """PEFT goes over the rows until nothing moves any more, by decompositions that are cut and at random."""
    model = eva.prepare(load_model(tiny, ModelSpec()), eva.Settings(rank=3), tiny, ROWS)
    config = LoraConfig(
        r=3,
        target_modules=["q_proj", "down_proj"],
        init_lora_weights="eva",
        eva_config=EvaConfig(rho=1.0, use_label_mask=False, tau=0.999),
    )
    adapted: Any = get_peft_model(load_model(tiny, ModelSpec()), config)
    theirs = get_eva_state_dict(adapted, [ROWS], show_progress_bar=False)
    assert len(theirs) == 6
    for name, expected in theirs.items():
        inputs = inputs_of(load_model(tiny, ModelSpec()), name.removeprefix("base_model.model.model."))
        centred = inputs - inputs.mean(0)
        found = model.get_submodule(name).lora_A["default"].weight.detach().numpy()
        ours, peft = (np.square(centred @ each.T).sum() for each in (found, expected.numpy()))
        assert 0.95 * ours < peft < (1 + 1e-6) * ours


def test_directions_are_those_of_the_inputs_whichever_side_is_longer() -> None:
    inputs = torch.randn(40, 9, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    inputs *= torch.arange(1, 10)
    for given in (inputs, inputs[:7]):
        found = eva.directions(given, 3).numpy()
        expected = np.linalg.svd((given - given.mean(0)).numpy(), full_matrices=False)[2][:3]
        np.testing.assert_allclose(np.abs(found @ expected.T), np.eye(3), atol=1e-7)
    assert eva.directions(inputs[:7], 9).shape == (6, 9)  # less their mean, seven inputs have six
    assert eva.directions(inputs[:1], 9).shape == (0, 9)


def test_more_directions_than_the_rows_have_are_refused(tiny: Path) -> None:
    few = {key: value[:1, :5] for key, value in ROWS.items()}
    message = r"method.rank=8: the inputs of '.*q_proj' have [34] directions on the rows that method.rows"
    with pytest.raises(UserError, match=message):
        eva.prepare(load_model(tiny, ModelSpec()), eva.Settings(), tiny, few)


def gradient_of(model: Any, module: str) -> np.ndarray:
    """The gradient of the mean loss over all targets, in float64, from one pass over all rows."""
    weight = model.double().get_submodule(f"model.{module}").weight
    logits = model(input_ids=IDS, attention_mask=ROWS["attention_mask"]).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), ROWS["labels"][:, 1:].flatten())
    return torch.autograd.grad(losses, weight)[0].numpy()


@pytest.mark.parametrize("module", MODULES)
def test_lora_ga_begins_as_singular_directions_of_the_gradient(tiny: Path, module: str) -> None:
    base: Any = load_model(tiny, ModelSpec())
    settings = lora_ga.Settings(rank=3, alpha=6.0, gamma=9.0)
    model = lora_ga.prepare(load_model(tiny, ModelSpec()), settings, tiny, ROWS)
    layer = model.get_submodule(f"base_model.model.model.{module}")
    a, b = (getattr(layer, f"lora_{kind}")["default"].weight.detach().double().numpy() for kind in "AB")
    left, _, right = np.linalg.svd(gradient_of(base, module), full_matrices=False)
    size = b.shape[0] ** 0.25 / 3
    np.testing.assert_allclose(np.abs(a @ right[:3].T), size * np.eye(3), atol=1e-4 * size)
    np.testing.assert_allclose(np.abs(left[:, 3:6].T @ b), size * np.eye(3), atol=1e-4 * size)
    weight, was = layer.get_base_layer().weight.detach(), base.get_submodule(f"model.{module}").weight
    np.testing.assert_allclose(weight.double().numpy() + 2 * b @ a, was.detach().numpy(), atol=1e-6)
    assert not any(p.requires_grad for p in layer.get_base_layer().parameters())


def test_lora_ga_needs_twice_its_rank(tiny: Path) -> None:
    message = r"method.rank=17: LoRA-GA takes 34 singular directions .*', which has 32; choose at most 16"
    with pytest.raises(UserError, match=message):
        lora_ga.prepare(load_model(tiny, ModelSpec()), lora_ga.Settings(rank=17), tiny, ROWS)
