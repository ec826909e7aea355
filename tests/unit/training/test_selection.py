"""Which step is the best, when a run is to end, and which values select."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from rankdrift.data.length import with_steps
from rankdrift.data.mixture import Mixture
from rankdrift.errors import UserError
from rankdrift.models.base import load_model
from rankdrift.spec import ModelSpec, Recipe, parse_spec
from rankdrift.spec.sections import TrainingSpec
from rankdrift.training.callbacks.guarding import Guarding, is_spike
from rankdrift.training.out_of_memory import explained
from rankdrift.training.selection import best_of, costs, is_exhausted, logged, require_logged

ROWS = [
    {"step": 0, "split": "validation", "loss": 3.0},
    {"step": 4, "split": "validation", "loss": 2.0},
    {"step": 4, "split": "validation/sst2", "loss": 1.0, "accuracy": 0.5},
    {"step": 8, "split": "validation", "loss": 2.5},
    {"step": 8, "split": "validation/sst2", "loss": 1.5, "accuracy": 0.75},
    {"step": 8, "split": "train", "loss": 0.1, "learning_rate": None},
]


def test_values_are_found_by_split_and_key() -> None:
    assert logged(ROWS, "validation/loss") == {0: 3.0, 4: 2.0, 8: 2.5}
    assert logged(ROWS, "validation/sst2/accuracy") == {4: 0.5, 8: 0.75}
    assert logged(ROWS, "train/learning_rate") == {}


def test_what_is_better_is_the_metrics_own_direction() -> None:
    found = {}
    for value in ("validation/loss", "validation/sst2/accuracy"):
        found[value] = best_of(costs(ROWS, value), [4, 8], value)
    assert found["validation/loss"] == {"step": 4, "of": "validation/loss", "value": 2.0}
    assert found["validation/sst2/accuracy"]["step"] == 8
    assert found["validation/sst2/accuracy"]["value"] == 0.75
    assert best_of(costs(ROWS, "validation/loss"), [12], "validation/loss") == {}


@pytest.mark.parametrize(
    ("values", "patience", "delta", "ends"),
    [
        ([3.0, 2.0, 2.1], 1, 0.0, True),
        ([3.0, 2.0, 2.1], 2, 0.0, False),
        ([3.0, 2.0, 2.1, 1.9], 2, 0.0, False),
        ([3.0, 2.0, 1.95, 1.96], 2, 0.1, True),
        ([3.0, 2.0, 1.95, 1.89], 2, 0.1, False),
        ([2.0, 2.0], 1, 0.0, True),
    ],
)
def test_patience(values: list[float], patience: int, delta: float, ends: bool) -> None:
    assert is_exhausted(dict(enumerate(values)), patience, delta) is ends


def test_a_value_that_is_never_logged_is_refused_by_name() -> None:
    metrics = {"sst2": ("accuracy",)}
    assert not require_logged(TrainingSpec(), metrics)
    assert not require_logged(TrainingSpec(best="validation/sst2/accuracy", eval_items=8), metrics)
    problem = require_logged(TrainingSpec(best="validation/sst2/accuracy"), metrics)
    assert "training.best=validation/sst2/accuracy" in problem
    assert "eval_items" in problem
    assert "validation/sst2/loss" in require_logged(TrainingSpec(best="validation/mnli/loss"), metrics)


def test_a_run_has_one_length() -> None:
    for given in ({"steps": 5, "epochs": 1}, {"tokens": 10, "epochs": 2}):
        with pytest.raises(UserError, match="give one of them"):
            parse_spec({"training": given})


def test_spikes() -> None:
    usual = [1.0, 1.1, 0.9, 1.05, 0.95] * 5
    assert not is_spike(1.4, usual)
    assert is_spike(2.0, usual)
    assert not is_spike(0.1, usual)
    assert not is_spike(1.4, [1.0] * 25), "a constant loss has no deviation"


def guarded(model: nn.Module) -> Guarding:
    guard = Guarding()
    guard.watch(model)
    guard.micro_batch = 0
    model.train()
    model(input_ids=torch.arange(6)[None])
    return guard


def test_the_first_output_that_is_no_number_is_named(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rankdrift.training.callbacks.guarding.collectives.rank", lambda: 3)
    model = load_model(tiny, ModelSpec())
    assert guarded(model).first_wrong() == ""
    with torch.no_grad():
        model.get_submodule("model.layers.1.mlp.down_proj").weight[0, 0] = torch.inf
    told = guarded(model).first_wrong()
    assert "'model.layers.1' (rank 3, micro-batch 1)" in told
    with torch.no_grad():
        model.get_submodule("model.embed_tokens").weight[2] = torch.nan
    assert "'model.embed_tokens'" in guarded(model).first_wrong()


def test_out_of_memory_says_what_needs_less() -> None:
    spec = parse_spec({"method": {"name": "full"}, "training": {"micro_batch": 4}})
    with pytest.raises(UserError) as caught, explained(spec, stage=2, ranks=2):
        torch.empty(2**55)
    told = str(caught.value)
    for remedy in ("training.micro_batch (now 4)", "gradient_checkpointing", "zero3", "method.name=lora"):
        assert remedy in told
    with pytest.raises(RuntimeError, match="another"), explained(spec, stage=2, ranks=2):
        raise RuntimeError("another error")


def test_a_length_takes_the_place_of_another() -> None:
    recipe = Recipe(
        shared={"training": {"steps": 7}}, arms={"a": {}}, seeds=(1,), overrides=("training.epochs=2",)
    )
    assert recipe.spec().training.epochs == 2
    assert recipe.spec().training.is_open


def test_epochs_are_decimal_numbers() -> None:
    order = Mixture({"a": 100}, global_batch=10, seed=0)
    spec = parse_spec({"training": {"epochs": 1.1, "global_batch": 10}})
    assert with_steps(spec, order, np.ones(100, np.int64)).training.steps == 11


def test_no_length_leaves_the_one_there_is() -> None:
    recipe = Recipe(
        shared={"training": {"steps": 7}}, arms={"a": {}}, seeds=(1,), overrides=("training.epochs=null",)
    )
    assert recipe.spec().training.steps == 7


@pytest.mark.parametrize("epochs", [0.5, 1, 2.3])
def test_steps_of_epochs_and_tokens(epochs: float) -> None:
    order = Mixture({"a": 10, "b": 13}, global_batch=4, seed=0)
    lengths = np.random.default_rng(0).integers(3, 20, size=23)
    spec = parse_spec({"training": {"epochs": epochs, "global_batch": 4, "warmup_steps": 0}})
    told = with_steps(spec, order, lengths).training
    assert told.steps == math.ceil(epochs * 23 / 4)
    assert not told.is_open
    wanted = 100 * round(epochs + 1)
    spec = parse_spec({"training": {"tokens": wanted, "global_batch": 4, "warmup_steps": 0}})
    steps = with_steps(spec, order, lengths).training.steps
    tokens = [int(lengths[order.rows(step)].sum()) for step in range(steps)]
    assert sum(tokens[:-1]) < wanted <= sum(tokens)


def test_what_does_not_fit_the_steps_is_refused_once_they_are_told() -> None:
    order = Mixture({"a": 8}, global_batch=4, seed=0)
    spec = parse_spec({"training": {"epochs": 1, "global_batch": 4, "warmup_steps": 5}})
    with pytest.raises(UserError, match="warmup_steps=5 leaves no step of steps=2"):
        with_steps(spec, order, np.ones(8, np.int64))
