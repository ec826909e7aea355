"""Every layout gives back the tensors it was made from; every layout that is not known is refused."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from rankdrift.errors import UserError
from rankdrift.zero_checkpoint.shards import ShardedCheckpoint, ShardedTensor, open_checkpoint

Tensors = dict[str, torch.Tensor]


def halves(tensors: Tensors) -> list[Tensors]:
    items = list(tensors.items())
    return [dict(items[:2]), dict(items[2:])]


def read_in_chunks(tensor: ShardedTensor, buffer_bytes: int) -> torch.Tensor:
    buffer = torch.full((buffer_bytes,), 77, dtype=torch.uint8)
    # each is valid until the next is asked for only
    return torch.cat([torch.empty(0), *(chunk.clone() for chunk in tensor.chunks(itertools.repeat(buffer)))])


def check(checkpoint: ShardedCheckpoint, tensors: Tensors) -> None:
    assert list(checkpoint.tensors) == list(tensors)
    for name, tensor in tensors.items():
        assert checkpoint.tensors[name].shape == tuple(tensor.shape)
        assert torch.equal(checkpoint.tensor(name), tensor.float()), name
        pieces = list(checkpoint.tensors[name].pieces())
        assert torch.equal(torch.cat(pieces), tensor.flatten())
        for buffer_bytes in (4, 19, 1000):
            chunks = read_in_chunks(checkpoint.tensors[name], buffer_bytes)
            assert torch.equal(chunks, tensor.float().flatten())


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
@pytest.mark.parametrize(
    "options", [{}, {"gap": 3}, {"keep_padding": True}, {"gap": 1, "keep_padding": True}], ids=str
)
def test_stages_1_and_2(
    tmp_path: Path, zero: Any, tensors: Tensors, ranks: int, options: dict[str, Any]
) -> None:
    checkpoint = open_checkpoint(zero.save_stage_2(tmp_path, halves(tensors), ranks, **options))
    assert (checkpoint.zero_stage, checkpoint.world_size) == (2, ranks)
    check(checkpoint, tensors)


@pytest.mark.parametrize("ranks", [1, 2, 3, 8])
def test_stage_3(tmp_path: Path, zero: Any, tensors: Tensors, ranks: int) -> None:
    checkpoint = open_checkpoint(zero.save_stage_3(tmp_path, halves(tensors), ranks))
    assert (checkpoint.zero_stage, checkpoint.world_size) == (3, ranks)
    check(checkpoint, tensors)


@pytest.mark.parametrize("ranks", [1, 3])
def test_frozen_parameters_of_stage_3(tmp_path: Path, zero: Any, tensors: Tensors, ranks: int) -> None:
    trained, frozen = halves(tensors)
    check(open_checkpoint(zero.save_stage_3(tmp_path, [trained], ranks, frozen=frozen)), tensors)


def test_stage_0(tmp_path: Path, zero: Any, tensors: Tensors) -> None:
    module = tensors | {"head": tensors["embed"], "counter": torch.tensor(3)}
    checkpoint = open_checkpoint(zero.save_stage_0(tmp_path, module, buffer_names=["counter"]))
    assert dict(checkpoint.aliases) == {"head": "embed"}
    check(checkpoint, tensors)


def test_tensors_stored_with_strides(tmp_path: Path, zero: Any) -> None:
    tensors = {"transposed": torch.randn(5, 3).T, "every second": torch.randn(8)[::2]}
    check(open_checkpoint(zero.save_stage_0(tmp_path, tensors)), tensors)


def test_a_file_that_ends_early_is_an_error(tmp_path: Path, zero: Any, tensors: Tensors) -> None:
    checkpoint = open_checkpoint(zero.save_stage_2(tmp_path, [tensors], 1))
    (tmp_path / "zero_pp_rank_0_mp_rank_00_optim_states.pt").write_bytes(b"PK")
    with pytest.raises(OSError, match="ends early"):
        read_in_chunks(checkpoint.tensors["down"], 64)


def test_masters_kept_in_bf16_are_read_exactly(tmp_path: Path, zero: Any, tensors: Tensors) -> None:
    rounded = {name: tensor.bfloat16() for name, tensor in tensors.items()}
    check(open_checkpoint(zero.save_stage_3(tmp_path, [rounded], 2)), rounded)


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
    check(open_checkpoint(tmp_path), tensors | {"frozen": torch.ones(3)})


def test_a_stored_parameter_is_never_taken_for_an_alias(tmp_path: Path, zero: Any, tensors: Tensors) -> None:
    """DeepSpeed tells shared parameters by their address, which empty ones can share by accident."""
    checkpoint = open_checkpoint(zero.save_stage_2(tmp_path, [tensors], 2, shared={"norm": "embed"}))
    assert not checkpoint.aliases
    check(checkpoint, tensors)


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
