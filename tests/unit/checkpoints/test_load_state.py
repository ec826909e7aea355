"""What a checkpoint is put into must be what it is of. Real engines of every stage: tests/distributed."""

from __future__ import annotations

import copy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from rankdrift.errors import UserError
from rankdrift.zero_checkpoint.load_state import restore
from rankdrift.zero_checkpoint.optimizer_state import TrainingState, open_training_state

STEPS = 3


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(4, 4), nn.Linear(4, 4)
        self.register_buffer("scale", torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return self.down(torch.tanh(self.up(x)))  # type: ignore[no-any-return]


def adamw(model: nn.Module) -> torch.optim.AdamW:
    """Two groups, matrices before vectors: another order than the module's."""
    named = list(model.named_parameters())
    groups = [
        {"params": [(n, p) for n, p in named if p.ndim > 1], "weight_decay": 0.5},
        {"params": [(n, p) for n, p in named if p.ndim == 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.1, fused=True)


def engine_of(model: nn.Module, optimizer: Any) -> SimpleNamespace:
    return SimpleNamespace(
        module=model, optimizer=optimizer, train_batch_size=lambda: 6, gradient_accumulation_steps=lambda: 2
    )


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: range) -> None:
    for step in steps:
        torch.manual_seed(step)
        optimizer.zero_grad()
        model(torch.randn(5, 4)).square().sum().backward()
        optimizer.step()


@pytest.fixture
def model() -> Model:
    torch.manual_seed(1)
    return Model()


@pytest.fixture
def state(tmp_path: Path, model: Model) -> TrainingState:
    """A checkpoint as DeepSpeed writes it without ZeRO, after some steps of the model."""
    trained = copy.deepcopy(model)
    optimizer = adamw(trained)
    train(trained, optimizer, range(STEPS))
    tree = {
        "module": trained.state_dict(),
        "buffer_names": ["scale"],
        "optimizer": optimizer.state_dict(),
        "global_steps": STEPS + 1,
        "skipped_steps": 1,
        **dict.fromkeys(("param_shapes", "shared_params", "frozen_param_shapes")),
        "dp_world_size": 1,
    }
    torch.save(tree, tmp_path / "mp_rank_00_model_states.pt")
    return open_training_state(tmp_path)


def test_training_goes_on_as_if_nothing_had_been(model: Model, state: TrainingState) -> None:
    whole = copy.deepcopy(model)
    train(whole, adamw(whole), range(2 * STEPS))
    optimizer = adamw(model)
    engine = engine_of(model, optimizer)
    restore(engine, list(model.named_parameters()), state)
    assert not any(entry["exp_avg"].requires_grad for entry in optimizer.state.values())
    train(model, optimizer, range(STEPS, 2 * STEPS))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(model.state_dict()[name], tensor), name
    counters = (engine.global_steps, engine.skipped_steps, engine.global_samples, engine.micro_steps)
    assert counters == (STEPS + 1, 1, 6 * (STEPS + 1), 2 * (STEPS + 1))


def test_frozen_parameters_stay_as_they_are(model: Model, state: TrainingState) -> None:
    """A LoRA checkpoint has no base model; here one that has it all is told that ``up`` is frozen."""
    before = model.up.weight.detach().clone()
    trained = [(name, param) for name, param in model.named_parameters() if name.startswith("down")]
    fewer = {key: {name: tensors[name] for name, _ in trained} for key, tensors in state.moments.items()}
    restore(engine_of(model, adamw(model)), trained, replaced(state, moments=fewer))
    assert torch.equal(model.up.weight, before)
    assert torch.equal(model.down.weight, state.weights.tensor("down.weight"))


def replaced(state: TrainingState, **changes: Any) -> TrainingState:
    return TrainingState(**{**vars(state), **changes})


def test_parameters_that_the_checkpoint_does_not_train_are_named(model: Model, state: TrainingState) -> None:
    parameters = [*model.named_parameters(), ("head", nn.Parameter(torch.ones(2)))]
    with pytest.raises(UserError, match=r"1 differ\): 'head' has shape none there and \(2,\) here"):
        restore(engine_of(model, adamw(model)), parameters, state)


def test_parameters_that_only_the_checkpoint_trains_are_named(model: Model, state: TrainingState) -> None:
    with pytest.raises(UserError, match=r"2 differ\): 'down.bias' has shape \(4,\) there and none here"):
        restore(engine_of(model, adamw(model)), list(model.named_parameters())[:2], state)


def test_other_shapes_are_named(model: Model, state: TrainingState) -> None:
    model.up = nn.Linear(4, 5)
    with pytest.raises(UserError, match=r"2 differ\): 'up.bias' has shape \(4,\) there and \(5,\) here"):
        restore(engine_of(model, adamw(model)), list(model.named_parameters()), state)


def test_a_changed_buffer_is_named(model: Model, state: TrainingState) -> None:
    model.scale += 1
    with pytest.raises(UserError, match="has changed the buffer 'scale'"):
        restore(engine_of(model, adamw(model)), list(model.named_parameters()), state)


class ZenFlowZeroOptimizer:
    """A class of DeepSpeed's that keeps a part of its state elsewhere."""


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        (ZenFlowZeroOptimizer(), "ZenFlowZeroOptimizer keeps its state in a way that is not known"),
        (SimpleNamespace(swap_optimizer=True), "offload to NVMe"),
        (SimpleNamespace(params_in_nvme_and_cpu=True), "offload to NVMe"),
        (SimpleNamespace(backup_optimizer=None), "ratio below 1"),
    ],
)
def test_engines_that_keep_state_elsewhere_are_refused(
    model: Model, state: TrainingState, optimizer: Any, message: str
) -> None:
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UserError, match=message):
        restore(engine_of(model, optimizer), list(model.named_parameters()), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
