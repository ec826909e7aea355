"""Adam's moments come back from every layout as they were put in; what does not fit together is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rankdrift.errors import IntegrityError, UserError
from rankdrift.zero_checkpoint.optimizer_state import MOMENTS, open_training_state

Tensors = dict[str, torch.Tensor]
Tree = dict[str, Any]
MODEL_FILE = "mp_rank_00_model_states.pt"
STEP, SKIPPED = 7, 2
GROUP_SIZES = (2, 3)


@pytest.fixture
def trained(tensors: Tensors) -> dict[str, Tensors]:
    """Masters and both moments of the same parameters, no two elements alike."""
    rows = {"masters": tensors}
    return rows | {key: {name: torch.rand_like(t) for name, t in tensors.items()} for key in MOMENTS}


def groups_of(tensors: Tensors) -> list[Tensors]:
    items = list(tensors.items())
    return [dict(items[: GROUP_SIZES[0]]), dict(items[GROUP_SIZES[0] :])]


def torch_state(vectors: dict[str, list[torch.Tensor]], step: float = STEP) -> Tree:
    """What torch's AdamW gives as its state, a vector of moments a parameter, a parameter a group."""
    number = len(vectors["exp_avg"])
    entries = [
        {"step": torch.tensor(step), **{key: vectors[key][i] for key in MOMENTS}} for i in range(number)
    ]
    return {
        "state": dict(enumerate(entries)),
        "param_groups": [{"lr": 0.1, "params": [i]} for i in range(number)],
    }


def edit(path: Path, change: Callable[[Tree], None]) -> None:
    tree = torch.load(path, weights_only=False)
    change(tree)
    torch.save(tree, path)


def count_steps(tree: Tree) -> None:
    tree.update(global_steps=STEP + SKIPPED, skipped_steps=SKIPPED)


def optimizer_files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*_optim_states.pt"))


def save_zero(
    zero: Any, folder: Path, stage: int, ranks: int, trained: dict[str, Tensors], **options: Any
) -> Path:
    """Write the moments as if they were masters, where they have the same layout, and put them together."""
    masters, state = (
        ("fp32_flat_groups", "optimizer_state_dict")
        if stage == 3
        else (
            "single_partition_of_fp32_groups",
            "base_optimizer_state",
        )
    )
    for kind, tensors in trained.items():
        if stage == 3:
            zero.save_stage_3(folder / kind, groups_of(tensors), ranks)
        else:  # of the moments, ZeRO keeps the padding
            padding = {"keep_padding": True} if kind in MOMENTS else {}
            zero.save_stage_2(folder / kind, groups_of(tensors), ranks, **options | padding)
    for path in optimizer_files(folder / "masters"):
        vectors = {
            key: torch.load(folder / key / path.name)["optimizer_state_dict"][masters] for key in MOMENTS
        }
        edit(path, lambda tree, v=vectors: tree["optimizer_state_dict"].update({state: torch_state(v)}))
    for path in (folder / "masters").glob(f"*{MODEL_FILE}"):
        edit(path, count_steps)
    return folder / "masters"


def save_stage_0(zero: Any, folder: Path, trained: dict[str, Tensors], order: list[str]) -> Path:
    """Write what DeepSpeed writes without ZeRO; ``order`` is that of the optimizer's parameters."""
    optimizer = torch_state({key: [trained[key][name] for name in order] for key in MOMENTS})
    groups = [{"param_names": order[:3], "params": [0, 1, 2]}, {"param_names": order[3:], "params": [3, 4]}]
    optimizer["param_groups"] = groups
    zero.save_stage_0(folder, trained["masters"], optimizer=optimizer)
    edit(folder / MODEL_FILE, count_steps)
    return folder


def check(folder: Path, trained: dict[str, Tensors]) -> None:
    state = open_training_state(folder)
    assert (state.adam_steps, state.global_steps) == (STEP, STEP + SKIPPED)
    for name, tensor in trained["masters"].items():
        assert torch.equal(state.weights.tensor(name), tensor)
        for key in MOMENTS:
            assert torch.equal(state.moments[key][name].load(), trained[key][name]), (key, name)
    assert all(set(state.moments[key]) == set(trained[key]) for key in MOMENTS)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize("options", [{}, {"gap": 3}, {"keep_padding": True}], ids=str)
def test_stages_1_and_2(
    tmp_path: Path, zero: Any, trained: dict[str, Tensors], ranks: int, options: dict[str, Any]
) -> None:
    check(save_zero(zero, tmp_path, 2, ranks, trained, **options), trained)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_stage_3(tmp_path: Path, zero: Any, trained: dict[str, Tensors], ranks: int) -> None:
    check(save_zero(zero, tmp_path, 3, ranks, trained), trained)


def test_stage_0_goes_by_the_names_the_optimizer_was_given(
    tmp_path: Path, zero: Any, trained: dict[str, Tensors]
) -> None:
    """Matrices come first there, so the order is not the module's; "up" and "down" have as many elements."""
    order = ["embed", "down", "up", "norm", "scale"]
    check(save_stage_0(zero, tmp_path, trained, order), trained)


def test_buffers_are_given(tmp_path: Path, zero: Any, trained: dict[str, Tensors]) -> None:
    save_stage_0(zero, tmp_path, trained, list(trained["masters"]))
    module = trained["masters"] | {"counter": torch.tensor(3)}
    edit(tmp_path / MODEL_FILE, lambda tree: tree.update(module=module, buffer_names=["counter"]))
    state = open_training_state(tmp_path)
    assert {name: int(stored.load()) for name, stored in state.buffers.items()} == {"counter": 3}


def state_of(tree: Tree) -> Tree:
    return tree["optimizer_state_dict"]["base_optimizer_state"]  # type: ignore[no-any-return]


def other_step(tree: Tree) -> None:
    state_of(tree)["state"][1]["step"] = torch.tensor(STEP - 1.0)


def other_size(tree: Tree) -> None:
    """The first group's moments give an element to the second's, so that the sum of all is as it was."""
    states = state_of(tree)["state"]
    both = torch.cat([states[0]["exp_avg"], states[1]["exp_avg"]])
    cut = states[0]["exp_avg"].numel() - 5
    states[0]["exp_avg"], states[1]["exp_avg"] = both[:cut].clone(), both[cut:].clone()


def without_a_group(tree: Tree) -> None:
    del state_of(tree)["state"][1]


def fewer_groups(tree: Tree) -> None:
    state_of(tree)["param_groups"].pop()


def amsgrad(tree: Tree) -> None:
    for state in state_of(tree)["state"].values():
        state["max_exp_avg_sq"] = state["exp_avg_sq"]


def elastic(tree: Tree) -> None:
    tree["optimizer_state_dict"]["base_optimizer_state"] = list(state_of(tree)["state"].values())


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (other_step, IntegrityError, r"different steps \(Adam's states have counted 6, 7 updates"),
        (other_size, IntegrityError, "moments do not fit the masters"),
        (fewer_groups, IntegrityError, "moments do not fit the masters"),
        (without_a_group, UserError, r"vector 1 has the optimizer state \[\]"),
        (amsgrad, UserError, "max_exp_avg_sq"),
        (elastic, UserError, "not a torch optimizer's state"),
    ],
)
@pytest.mark.parametrize("rank", [0, 1])
def test_what_does_not_fit_is_refused(
    tmp_path: Path,
    zero: Any,
    trained: dict[str, Tensors],
    rank: int,
    change: Callable[[Tree], None],
    error: type[Exception],
    message: str,
) -> None:
    folder = save_zero(zero, tmp_path, 2, 2, trained)
    edit(optimizer_files(folder)[rank], change)
    with pytest.raises(error, match=message) as caught:
        open_training_state(folder)
    assert str(folder) in str(caught.value)
    assert type(caught.value) is error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tree: tree.update(global_steps=STEP), "counted 7 updates, the module's file 5"),
        (lambda tree: tree.pop("global_steps"), "states no steps"),
    ],
)
def test_a_model_file_of_another_step_is_refused(
    tmp_path: Path, zero: Any, trained: dict[str, Tensors], change: Callable[[Tree], None], message: str
) -> None:
    folder = save_zero(zero, tmp_path, 3, 2, trained)
    edit(folder / f"zero_pp_rank_0_{MODEL_FILE}", change)
    with pytest.raises(IntegrityError, match=message):
        open_training_state(folder)


def test_stage_0_without_names_is_refused(tmp_path: Path, zero: Any, trained: dict[str, Tensors]) -> None:
    save_stage_0(zero, tmp_path, trained, list(trained["masters"]))
    edit(tmp_path / MODEL_FILE, lambda tree: tree["optimizer"]["param_groups"][1].pop("param_names"))
    with pytest.raises(UserError, match="does not say which parameter it belongs to"):
        open_training_state(tmp_path)
