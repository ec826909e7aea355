"""Every layout gives back the weights and moments it was made from; what does not fit is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rankdrift.errors import IntegrityError, UserError
from rankdrift.zero_checkpoint.optimizer_state import MOMENTS, open_training_state
from rankdrift.zero_checkpoint.shards import ShardedCheckpoint, ShardedTensor, open_checkpoint

Tensors = dict[str, torch.Tensor]


def halves(tensors: Tensors) -> list[Tensors]:
    """Two optimizer groups."""
    items = list(tensors.items())
    return [dict(items[:2]), dict(items[2:])]


def read_in_chunks(tensor: ShardedTensor, buffer_bytes: int) -> torch.Tensor:
    buffer = torch.full((buffer_bytes,), 77, dtype=torch.uint8)
    # each is valid until the next is asked for only
    return torch.cat([torch.empty(0), *(chunk.clone() for chunk in tensor.chunks(itertools.repeat(buffer)))])


def check_weights(checkpoint: ShardedCheckpoint, tensors: Tensors) -> None:
    assert list(checkpoint.tensors) == list(tensors)
    for name, tensor in tensors.items():
        assert checkpoint.tensors[name].shape == tuple(tensor.shape)
        assert torch.equal(checkpoint.tensor(name), tensor.float()), name
        pieces = list(checkpoint.tensors[name].pieces())
        assert torch.equal(torch.cat(pieces), tensor.flatten())
        for buffer_bytes in (4, 19, 1000):
            chunks = read_in_chunks(checkpoint.tensors[name], buffer_bytes)
            assert torch.equal(chunks, tensor.float().flatten())


@pytest.mark.parametrize("ranks", [1, 3])
def test_frozen_parameters_of_stage_3(tmp_path: Path, zero: Any, tensors: Tensors, ranks: int) -> None:
    trained, frozen = halves(tensors)
    check_weights(open_checkpoint(zero.save_stage_3(tmp_path, [trained], ranks, frozen=frozen)), tensors)


def test_stage_0(tmp_path: Path, zero: Any, tensors: Tensors) -> None:
    module = tensors | {"head": tensors["embed"], "counter": torch.tensor(3)}
    checkpoint = open_checkpoint(zero.save_stage_0(tmp_path, module, buffer_names=["counter"]))
    assert dict(checkpoint.aliases) == {"head": "embed"}
    check_weights(checkpoint, tensors)


def test_tensors_stored_with_strides(tmp_path: Path, zero: Any) -> None:
    tensors = {"transposed": torch.randn(5, 3).T, "every second": torch.randn(8)[::2]}
    check_weights(open_checkpoint(zero.save_stage_0(tmp_path, tensors)), tensors)


def test_a_file_that_ends_early_is_an_error(tmp_path: Path, zero: Any, tensors: Tensors) -> None:
    checkpoint = open_checkpoint(zero.save_stage_2(tmp_path, [tensors], 1))
    (tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"PK")
    with pytest.raises(OSError, match="ends early"):
        read_in_chunks(checkpoint.tensors["down"], 64)


def test_masters_kept_in_bf16_are_read_exactly(tmp_path: Path, zero: Any, tensors: Tensors) -> None:
    rounded = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    check_weights(open_checkpoint(zero.save_stage_3(tmp_path, [rounded], 2)), rounded)


def test_a_shared_parameter_is_exposed_once(tmp_path: Path, zero: Any, tensors: Tensors) -> None:
    shared = {"head": "embed", "left_out": "frozen"}
    checkpoint = open_checkpoint(zero.save_stage_2(tmp_path, [tensors], 2, shared=shared))
    assert list(checkpoint.tensors) == list(tensors)
    assert dict(checkpoint.aliases) == {"head": "embed"}
    assert torch.equal(checkpoint.tensor("head"), tensors["embed"])


def test_a_frozen_alias_is_no_parameter(tmp_path: Path, zero: Any, tensors: Tensors) -> None:
    """A tied head stays in the module's state where the frozen embedding was left out."""
    zero.save_stage_2(tmp_path, [tensors], 2)
    changes = {"param_shapes": [{name: tensor.shape for name, tensor in tensors.items()}]}
    module = tensors | {"head": torch.ones(2), "frozen": torch.ones(3)}
    path = tmp_path / "mp_rank_00_model_states.pt"
    zero.save_model_file(path, module, shared_params={"head": "left_out"}, **changes)
    check_weights(open_checkpoint(tmp_path), tensors | {"frozen": torch.ones(3)})


def test_a_stored_parameter_is_never_taken_for_an_alias(tmp_path: Path, zero: Any, tensors: Tensors) -> None:
    """DeepSpeed tells shared parameters by their address, which empty ones can share by accident."""
    checkpoint = open_checkpoint(zero.save_stage_2(tmp_path, [tensors], 2, shared={"norm": "embed"}))
    assert not checkpoint.aliases
    check_weights(checkpoint, tensors)


def test_an_unknown_name_suggests_the_near_miss(tmp_path: Path, zero: Any, tensors: Tensors) -> None:
    with pytest.raises(UserError, match="did you mean 'embed'"):
        open_checkpoint(zero.save_stage_2(tmp_path, [tensors], 2)).tensor("embeds")


def test_shards_left_over_from_more_ranks_are_refused(tmp_path: Path, zero: Any, tensors: Tensors) -> None:
    zero.save_stage_2(tmp_path, [tensors], 3)
    zero.save_stage_2(tmp_path, [tensors], 2)
    with pytest.raises(UserError, match=r"rank_2_mp_rank_00_optim_states\.pt does not belong"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize("stage", [2, 3])
@pytest.mark.parametrize("rank", [0, 1])
def test_a_missing_shard_is_named(tmp_path: Path, zero: Any, tensors: Tensors, stage: int, rank: int) -> None:
    save = zero.save_stage_2 if stage == 2 else zero.save_stage_3
    save(tmp_path, [tensors], 2)
    name = f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"
    (tmp_path / name).unlink()
    with pytest.raises(UserError, match=name):
        open_checkpoint(tmp_path)


def test_missing_shards_are_counted(tmp_path: Path, zero: Any, tensors: Tensors) -> None:
    zero.save_stage_3(tmp_path, [tensors], 4)
    for rank in (2, 3):
        (tmp_path / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt").unlink()
    with pytest.raises(UserError, match=r"shard zero_pp_rank_2_\S+ is missing \(2 in all\)"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fancy_layout": [1]}, "unknown layout key 'fancy_layout'"),
        ({"zero_stage": 4}, "stage 4"),
        ({"partition_count": [2, 1]}, "partition_count"),
        ({"partition_count": None}, "partition_count"),
        ({"single_partition_of_fp32_groups": [torch.zeros(40), torch.zeros(9)]}, "2 found"),
        ({"single_partition_of_fp32_groups": [torch.zeros(5, 4)]}, "not a list of flat vectors"),
        ({"single_partition_of_fp32_groups": {}}, "not a list of flat vectors"),
        ({"param_alignment_paddings": [[0, 0]]}, "alignment paddings"),
        ({"param_alignment_paddings": [[0, 0, 0, 2, 0]]}, "take 57 elements but its shards hold 55"),
    ],
)
def test_an_unknown_layout_is_refused(
    tmp_path: Path, zero: Any, tensors: Tensors, changes: dict[str, Any], message: str
) -> None:
    zero.save_stage_2(tmp_path, [tensors], 2, **changes)
    with pytest.raises(UserError, match=message):
        open_checkpoint(tmp_path)


def nvme(zero: Any, folder: Path, tensors: Tensors) -> None:
    zero.save_stage_3(folder, [tensors], 2, fp32_flat_groups=[torch.empty(0)])


def lost_optimizer(zero: Any, folder: Path, tensors: Tensors) -> None:
    zero.save_stage_2(folder, [tensors], 1)
    (folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt").unlink()


def half_precision(zero: Any, folder: Path, tensors: Tensors) -> None:
    zero.save_stage_0(folder, tensors, optimizer={"fp32_groups": [[]]})


def tensor_parallel(zero: Any, folder: Path, tensors: Tensors) -> None:
    zero.save_stage_0(folder, tensors, mp_world_size=2)


def experts(zero: Any, folder: Path, tensors: Tensors) -> None:
    zero.save_stage_0(folder, tensors, ds_autoep_layers=[{"num_experts": 4}])


def expert_files(zero: Any, folder: Path, tensors: Tensors) -> None:
    zero.save_stage_0(folder, tensors)
    torch.save({}, folder / "layer_0_expert_0_mp_rank_00_model_states.pt")


def foreign_shard(zero: Any, folder: Path, tensors: Tensors) -> None:
    zero.save_stage_2(folder, [tensors], 1)
    torch.save({"weights": tensors}, folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt")


def foreign_model(zero: Any, folder: Path, tensors: Tensors) -> None:
    folder.mkdir(exist_ok=True)
    torch.save(tensors, folder / "mp_rank_00_model_states.pt")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (nvme, "NVMe"),
        (lost_optimizer, "optimizer shards .* are missing"),
        (half_precision, "stage 0 in bf16"),
        (tensor_parallel, "tensor parallelism"),
        (experts, "written with experts"),
        (expert_files, "does not belong"),
        (foreign_shard, "not a ZeRO optimizer shard"),
        (foreign_model, "not a DeepSpeed model file"),
        (lambda *_: None, "not a ZeRO checkpoint"),
    ],
)
def test_what_cannot_be_read_is_refused(
    tmp_path: Path, zero: Any, tensors: Tensors, make: Callable[[Any, Path, Tensors], None], message: str
) -> None:
    make(zero, tmp_path, tensors)
    with pytest.raises(UserError, match=message):
        open_checkpoint(tmp_path)


def test_an_absent_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such checkpoint folder"):
        open_checkpoint(tmp_path / "absent")


Tree = dict[str, Any]


MODEL_FILE = "mp_rank_00_model_states.pt"


STEP, SKIPPED = 7, 2


@pytest.fixture
def trained(tensors: Tensors) -> dict[str, Tensors]:
    """Masters and both moments of the same parameters, no two elements alike."""
    rows = {"masters": tensors}
    return rows | {key: {name: torch.rand_like(t) for name, t in tensors.items()} for key in MOMENTS}


def torch_state(vectors: dict[str, list[torch.Tensor]], step: float = STEP) -> Tree:
    """What torch's AdamW gives as its state, a vector of moments a parameter, a parameter a group."""
    number = len(vectors["exp_avg"])
    moments = [{key: vectors[key][i] for key in MOMENTS} for i in range(number)]
    entries = [{"step": torch.tensor(step), **each} for each in moments]
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
        else ("single_partition_of_fp32_groups", "base_optimizer_state")
    )
    for kind, tensors in trained.items():
        if stage == 3:
            zero.save_stage_3(folder / kind, halves(tensors), ranks)
        else:  # of the moments, ZeRO keeps the padding
            padding = {"keep_padding": True} if kind in MOMENTS else {}
            zero.save_stage_2(folder / kind, halves(tensors), ranks, **options | padding)
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


def check(folder: Path, trained: dict[str, Tensors], *place: int) -> None:
    state = open_training_state(folder)
    assert (state.weights.zero_stage, state.weights.world_size) == place
    check_weights(state.weights, trained["masters"])
    assert (state.updates, state.global_steps) == (STEP, STEP + SKIPPED)
    assert state.adam_steps == dict.fromkeys(trained["masters"], STEP)
    for name in trained["masters"]:
        for key in MOMENTS:
            assert torch.equal(state.moments[key][name].load(), trained[key][name]), (key, name)
    assert all(set(state.moments[key]) == set(trained[key]) for key in MOMENTS)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize(
    "options", [{}, {"gap": 3}, {"keep_padding": True}, {"gap": 1, "keep_padding": True}], ids=str
)
def test_stages_1_and_2(
    tmp_path: Path, zero: Any, trained: dict[str, Tensors], ranks: int, options: dict[str, Any]
) -> None:
    check(save_zero(zero, tmp_path, 2, ranks, trained, **options), trained, 2, ranks)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_stage_3(tmp_path: Path, zero: Any, trained: dict[str, Tensors], ranks: int) -> None:
    check(save_zero(zero, tmp_path, 3, ranks, trained), trained, 3, ranks)


def test_stage_0_goes_by_the_optimizers_names(tmp_path: Path, zero: Any, trained: dict[str, Tensors]) -> None:
    """Matrices come first there, so the order is not the module's; "up" and "down" have as many elements."""
    order = ["embed", "down", "up", "norm", "scale"]
    check(save_stage_0(zero, tmp_path, trained, order), trained, 0, 1)


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
