"""Small ZeRO checkpoints written by hand: the layouts as DeepSpeed 0.19.8 saves them, without DeepSpeed."""

from __future__ import annotations

import json
import math
import mmap
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from rankdrift.layout import RunLayout
from rankdrift.zero_checkpoint.direct_io import BLOCK, is_cached
from rankdrift.zero_checkpoint.manifest import Manifest

Tensors = Mapping[str, torch.Tensor]


def save_model_file(path: Path, tensors: Tensors, **changes: Any) -> None:
    state = {
        "module": dict(tensors),
        "buffer_names": [],
        "optimizer": None,
        "param_shapes": None,
        "shared_params": {},
        "frozen_param_shapes": None,
        "frozen_param_fragments": None,
        "dp_world_size": 1,
        "mp_world_size": 1,
    }
    torch.save(state | changes, path)


def save_optimizer_file(folder: Path, rank: int, state: dict[str, Any]) -> None:
    tree = {"optimizer_state_dict": state, "ds_version": "0.19.8"}
    torch.save(tree, folder / f"zero_pp_rank_{rank}_mp_rank_00_optim_states.pt")


def save_stage_0(folder: Path, tensors: Tensors, **changes: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    save_model_file(folder / "mp_rank_00_model_states.pt", tensors, shared_params=None, **changes)
    return folder


def save_stage_2(
    folder: Path,
    groups: list[Tensors],
    ranks: int,
    *,
    gap: int = 0,  # alignment padding after each parameter but a group's last
    keep_padding: bool = False,  # as BF16_Optimizer does
    shared: dict[str, str] | None = None,
    **changes: Any,
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    shapes = [{name: tensor.shape for name, tensor in group.items()} for group in groups]
    module = {name: tensor for group in groups for name, tensor in group.items()}
    path = folder / "mp_rank_00_model_states.pt"
    save_model_file(path, module, param_shapes=shapes, shared_params=shared or {})
    flats, ends = [], []
    for group in groups:
        padded = [torch.cat([tensor.flatten(), torch.full((gap,), 7.0)]) for tensor in group.values()]
        flat = torch.cat(padded)[: -gap or None]
        ends.append(-len(flat) % (2 * ranks))
        flats.append(torch.cat([flat, torch.full((ends[-1],), 9.0)]))
    for rank in range(ranks):
        parts = [flat.chunk(ranks)[rank].clone() for flat in flats]
        after = (ranks - 1 - rank, ranks - rank)  # parts that lie after this one, without and with it
        padding = [
            min(max(end - after[0] * len(part), 0), len(part)) for end, part in zip(ends, parts, strict=True)
        ]
        kept = [
            part if keep_padding else part[: len(part) - pad].clone()
            for part, pad in zip(parts, padding, strict=True)
        ]
        state = {
            "zero_stage": 2,
            "partition_count": [ranks] * len(groups),
            "single_partition_of_fp32_groups": kept,
            "group_paddings": padding,
            "param_alignment_paddings": [[gap] * (len(group) - 1) + [0] for group in groups],
            "base_optimizer_state": {"state": {0: {"exp_avg": torch.zeros(3)}}},
        }
        save_optimizer_file(folder, rank, state | changes)
    return folder


def save_stage_3(
    folder: Path, groups: list[Tensors], ranks: int, *, frozen: Tensors | None = None, **changes: Any
) -> Path:
    folder.mkdir(parents=True, exist_ok=True)

    def part(tensor: torch.Tensor, rank: int) -> torch.Tensor:
        size = math.ceil(tensor.numel() / ranks)
        flat = torch.cat([tensor.flatten(), torch.full((size * ranks - tensor.numel(),), 9.0)])
        return flat[rank * size : (rank + 1) * size].clone()

    shapes = [{name: tensor.shape for name, tensor in group.items()} for group in groups]
    frozen = frozen or {}
    for rank in range(ranks):
        save_model_file(
            folder / f"zero_pp_rank_{rank}_mp_rank_00_model_states.pt",
            {},
            param_shapes=shapes,
            frozen_param_shapes={name: tensor.shape for name, tensor in frozen.items()},
            frozen_param_fragments={name: part(tensor, rank) for name, tensor in frozen.items()},
        )
        flats = [torch.cat([part(tensor, rank) for tensor in group.values()]) for group in groups]
        state = {"zero_stage": 3, "partition_count": ranks, "fp32_flat_groups": flats}
        save_optimizer_file(folder, rank, state | changes)
    return folder


def record_of(step: int, **changes: Any) -> Manifest:
    facts: dict[str, Any] = {
        "step": step,
        "world_size": 1,
        "zero_stage": 2,
        "method": "full",
        "precision": "fp32",
        "spec_digest": "5" * 64,
        "base": "/models/base",
        "base_digest": "b" * 64,
        "data_position": 64,
        "seed": 42,
    }
    return Manifest(**facts | changes)


@pytest.fixture
def tensors() -> dict[str, torch.Tensor]:
    """Parameters of awkward sizes: odd, smaller than the number of ranks, a scalar."""
    torch.manual_seed(3)
    shapes = {"embed": (7, 3), "norm": (3,), "scale": (), "up": (5, 3), "down": (3, 5)}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


@pytest.fixture
def make_run(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> Callable[..., RunLayout]:
    """Return a function that makes a run folder with one recorded stage-2 checkpoint a step."""

    def make(*steps: int, config: dict[str, Any] | None = None, **options: Any) -> RunLayout:
        run = RunLayout(tmp_path / "run")
        run.model.mkdir(parents=True)
        (run.model / "config.json").write_text(json.dumps(config or {"model_type": "llama"}))
        (run.model / "tokenizer.json").write_text("{}")
        for step in steps:
            folder = save_stage_2(run.checkpoint(step), [tensors], 2, **options)
            record_of(step, world_size=2).write(folder)
        return run

    return make


def evicted(path: Path) -> None:
    with open(path, "rb") as handle:
        os.fsync(handle.fileno())
        os.posix_fadvise(handle.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


@pytest.fixture
def evict() -> Callable[[Path], None]:
    """Return a function that asks for a file to leave the page cache."""
    return evicted


@pytest.fixture
def uncached() -> Callable[[Path], None]:
    """Return a function that makes a file leave the page cache; the test is skipped where it does not."""

    def leave(path: Path) -> None:
        evicted(path)
        with open(path, "rb") as handle:
            mapped = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
        if any(is_cached(mapped, at, at + 1) for at in range(0, len(mapped), BLOCK)):
            pytest.skip(f"{path} is on a file system that does not leave the page cache")

    return leave
