"""AdaLoRA: its budget against PEFT's allocator, its penalty against automatic differentiation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import AdaLoraConfig
from peft.tuners.adalora.layer import AdaLoraLayer, RankAllocator
from torch import Tensor

from rankdrift.errors import UserError
from rankdrift.methods import adalora
from rankdrift.models.base import load_model
from rankdrift.spec import ModelSpec, parse_spec
from rankdrift.training.rank_budget import RankBudget

IDS = torch.tensor([[5, 9, 30, 31, 7]])
SETTINGS = adalora.Settings(
    rank=2, initial_rank=4, full_until=0.2, fixed_from=0.8, every=3, orthogonality=0.7
)


@pytest.fixture
def model(tiny: Path) -> Any:
    adapted: Any = adalora.prepare(load_model(tiny, ModelSpec()), SETTINGS, tiny)
    for layer in layers(adapted):
        torch.nn.init.normal_(layer.lora_E["default"])
    return adapted


def layers(model: Any) -> list[Any]:
    return [module for module in model.modules() if isinstance(module, AdaLoraLayer)]


def triplets(model: Any) -> dict[str, Tensor]:
    return {name: param for name, param in model.named_parameters() if param.requires_grad}


def test_a_layer_computes_what_pefts_does(model: Any) -> None:
    layer = layers(model)[0]
    x = torch.randn(3, layer.in_features)
    torch.testing.assert_close(layer(x), type(layer).forward(layer, x))


def test_the_budget_is_pefts(model: Any) -> None:
    """Twenty steps of random gradients: the same triplets go, at the same steps."""
    config = AdaLoraConfig(init_r=4, target_r=2, tinit=4, tfinal=4, deltaT=3, total_step=20)
    peft = RankAllocator(model, config, "default")
    names = {name: tuple(param.shape) for name, param in triplets(model).items()}
    ours, seen = RankBudget(SETTINGS, 20, names), 0
    for step in range(1, 21):
        for param in triplets(model).values():
            param.grad = torch.randn_like(param)
        theirs = None
        before = {name: param.detach().clone() for name, param in triplets(model).items()}
        if step <= 16:
            ours.observe({name: (p * p.grad).detach().abs() for name, p in triplets(model).items()})
            peft.update_ipt(model)
            budget, due = peft.budget_schedule(step)
            assert ours.triplets(step) == budget or step == 16
            if (due and 4 < step < 16) or step == 16:
                theirs = peft.mask_to_budget(model, 42 if step == 16 else budget)
        kept = ours.kept(step)
        assert (kept is not None) == (theirs is not None or step > 16)
        if theirs is not None:
            seen += 1
            for name, values in theirs.items():
                assert kept is not None
                assert kept[name].flatten().tolist() == values
        with torch.no_grad():
            for name, param in triplets(model).items():
                param.copy_(before[name])
    assert seen == 5  # steps 6, 9, 12, 15, 16
    assert sum(int(each.sum()) for each in kept.values()) == 2 * 21


def test_the_budget_goes_down_by_the_cube() -> None:
    budget = RankBudget(SETTINGS, 100, {f"m{n}.lora_E.default": (4, 1) for n in range(10)})
    assert [budget.triplets(step) for step in (1, 20, 50, 80, 100)] == [40, 40, 22, 20, 20]


@pytest.mark.parametrize("passes", [1, 3])
def test_backward_passes_of_a_step_add_the_penalty_once(model: Any, passes: int) -> None:
    model.penalty.share = 1 / passes
    base: Any = model.get_base_model()  # PEFT's wrapping adds the penalty to a loss of its own
    for _ in range(passes):
        (base(input_ids=IDS, labels=IDS).loss / passes).backward()
    found = {name: param.grad.clone() for name, param in triplets(model).items()}
    for param in triplets(model).values():
        param.grad = None
    for layer in layers(model):
        del layer.forward  # PEFT's own
    apart = [
        torch.linalg.matrix_norm(product - torch.eye(4))
        for layer in layers(model)
        for a, b in [(layer.lora_A["default"], layer.lora_B["default"])]
        for product in (a @ a.T, b.T @ b)
    ]
    (base(input_ids=IDS, labels=IDS).loss + 0.7 * torch.stack(apart).mean()).backward()
    for name, param in triplets(model).items():
        torch.testing.assert_close(found[name], param.grad, rtol=1e-4, atol=1e-6)


def test_a_matrix_that_is_orthogonal_has_no_penalty() -> None:
    from rankdrift.methods._orthogonal import penalty_gradient

    assert not penalty_gradient(torch.eye(3, 5)).any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"initial_rank": 3}, "initial_rank=3 is below rank=8"),
        ({"full_until": 0.8}, r"full_until=0.8 is not before fixed_from=0.7"),
        ({"rank_pattern": {"q_proj": 2}}, "rank_pattern: AdaLoRA has none"),
        ({"schedule": "mlp->attn"}, "schedule: what rests has no importance"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_spec({"method": {"name": "adalora", **settings}})


def test_an_embedding_is_refused(tiny: Path) -> None:
    with pytest.raises(UserError, match=r"AdaLoRA cannot adapt the embedding 'model.embed_tokens'"):
        adalora.prepare(load_model(tiny, ModelSpec()), adalora.Settings(targets="all"), tiny)
