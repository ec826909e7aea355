"""A sharded ZeRO checkpoint as a set of named tensors, each read from the shards only when asked for.

Weights are the fp32 master copies the optimizer updates, not the rounded copies the model computes with.
What lies where (read from DeepSpeed 0.19.8's optimizers and its ``zero_to_fp32``):

- stage 0: one file, the module's own state;
- stages 1 and 2: a file a rank; the parameters of an optimizer group lie end to end in one vector, and
  rank r holds its r-th part;
- stage 3: a file a rank; each parameter is cut into one equal part a rank (the last padded), and a rank's
  parts lie end to end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from rankdrift.errors import IntegrityError, UserError, did_you_mean
from rankdrift.zero_checkpoint import zero_layouts
from rankdrift.zero_checkpoint.storage_sums import StorageSums
from rankdrift.zero_checkpoint.torch_file import StoredTensor, read_archive, refusing_malformed
from rankdrift.zero_checkpoint.zero_layouts import Parameters, Span

MODEL_FILE = "mp_rank_00_model_states.pt"
_EXPERT_KEYS = ("ds_autoep_layers", "autoep_layers")  # whose tensors lie elsewhere


@dataclass(frozen=True)
class ShardedTensor:
    """One parameter of the model: the stored runs of elements it is made of, in order."""

    name: str
    shape: tuple[int, ...]
    spans: tuple[Span, ...] = field(repr=False)

    def pieces(self) -> Iterator[torch.Tensor]:
        """Yield the parameter's elements in row-major order: flat views of the files, in the stored dtype."""
        return (span.load() for span in self.spans)

    def chunks(
        self, buffers: Iterator[torch.Tensor], sums: StorageSums | None = None
    ) -> Iterator[torch.Tensor]:
        """Yield the elements in row-major order as ``Span.chunks`` does, in the stored dtype."""
        for span in self.spans:
            yield from span.chunks(buffers, sums)

    def load(self) -> torch.Tensor:
        """Return the whole parameter in fp32: a view of the file where it lies in one piece, else a copy."""
        pieces = [piece.float() for piece in self.pieces()]
        flat = pieces[0] if len(pieces) == 1 else torch.cat([torch.empty(0), *pieces])
        return flat.view(self.shape)


@dataclass(frozen=True)
class ShardedCheckpoint:
    """The parameters of a checkpoint; shared parameters are listed once, under the name that owns them."""

    folder: Path
    zero_stage: int
    world_size: int
    tensors: Mapping[str, ShardedTensor] = field(repr=False)
    """Every stored parameter by its name in the trained module, in the order of the shards; no buffers."""
    aliases: Mapping[str, str] = field(repr=False)
    """Further names of shared parameters, to the name in ``tensors``: ``lm_head.weight`` of a tied model."""

    @property
    def sources(self) -> Iterator[StoredTensor]:
        """All stored vectors and matrices that the parameters are made of."""
        return (span.source for tensor in self.tensors.values() for span in tensor.spans)

    def tensor(self, name: str) -> torch.Tensor:
        """Return a parameter in fp32 by its name or an alias; raise UserError with the near miss."""
        owner = self.aliases.get(name, name)
        if owner not in self.tensors:
            raise UserError(f"{self.folder}: no parameter '{name}': {did_you_mean(name, self.tensors)}")
        return self.tensors[owner].load()


@dataclass(frozen=True)
class Shards:
    """The indices of a checkpoint's files, of one layout: containers as stored, tensors as descriptions."""

    folder: Path
    zero_stage: int
    model: Mapping[str, Any]
    """The module's file; rank 0's at stage 3."""
    optimizers: tuple[Mapping[str, Any], ...]
    """The optimizer's state of every rank; empty at stage 0, where it is in ``model``."""

    @property
    def world_size(self) -> int:
        """The number of ranks that wrote it."""
        return len(self.optimizers) or int(self.model["dp_world_size"])


@refusing_malformed
def read_shards(folder: Path) -> Shards:
    """Read the indices of a folder that ``engine.save_checkpoint`` wrote, of ZeRO stage 0 to 3.

    Raises IntegrityError where a shard is missing, truncated or foreign, UserError where the layout is not
    known.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such checkpoint folder")
    optimizer_files = sorted(path.name for path in folder.glob("*_optim_states.pt"))
    if not optimizer_files and (folder / MODEL_FILE).exists():
        _check_files(folder, {MODEL_FILE})
        return Shards(folder, 0, _model_state(folder / MODEL_FILE), ())
    if not optimizer_files:
        raise UserError(f"{folder}: no *_optim_states.pt in it: not a ZeRO checkpoint, or an incomplete one")
    prefix = "bf16_" if all(name.startswith("bf16_") for name in optimizer_files) else ""
    first = _optimizer_state(folder, prefix, rank=0)
    stage, world_size = zero_layouts.stage_of(first, folder), zero_layouts.world_size_of(first, folder)
    models = _partitioned_model_files(world_size) if stage == 3 else [MODEL_FILE]
    _check_files(folder, {*models, *(_optimizer_file(prefix, rank) for rank in range(world_size))})
    states = [first, *(_optimizer_state(folder, prefix, rank) for rank in range(1, world_size))]
    zero_layouts.check_states(states, stage, world_size, folder)
    return Shards(folder, stage, _model_state(folder / models[0]), tuple(states))


def open_checkpoint(folder: Path) -> ShardedCheckpoint:
    """Open a folder that ``engine.save_checkpoint`` wrote, of ZeRO stage 0 to 3 and any number of ranks.

    Only the files' indices are read. Raises IntegrityError where a shard is missing, truncated or foreign,
    UserError where the layout is not one this module knows: it never guesses at one.
    """
    return weights_of(read_shards(folder))


@refusing_malformed
def weights_of(shards: Shards) -> ShardedCheckpoint:
    """Return the parameters of a checkpoint whose indices are read; raises as ``open_checkpoint``."""
    if shards.zero_stage == 0:
        return _open_stage_0(shards)
    parameters = _stage_3(shards) if shards.zero_stage == 3 else _stages_1_and_2(shards)
    aliases = shards.model["shared_params"].items()
    shared = {alias: owner for alias, owner in aliases if alias not in parameters}
    return _checkpoint(shards, parameters, shared)


def _open_stage_0(shards: Shards) -> ShardedCheckpoint:
    """Open an unpartitioned checkpoint, whose only weights are the module's."""
    folder, state = shards.folder, shards.model
    if state["param_shapes"] is not None:
        raise IntegrityError(
            f"{folder}: its optimizer shards (*_optim_states.pt) are missing; use another step"
        )
    if isinstance(state["optimizer"], dict) and "fp32_groups" in state["optimizer"]:
        raise UserError(
            f"{folder}: ZeRO stage 0 in bf16 or fp16 keeps its masters without names; train at stage 1 to 3"
        )
    tensors = _parameters_of(state)
    owners: dict[StoredTensor, str] = {}
    for name, tensor in tensors.items():
        owners.setdefault(tensor, name)
    shared = {name: owners[tensor] for name, tensor in tensors.items() if owners[tensor] != name}
    return _checkpoint(shards, {name: _whole(tensors[name]) for name in owners.values()}, shared)


def _stages_1_and_2(shards: Shards) -> Parameters:
    model = shards.model
    spans = zero_layouts.partitioned_groups(model["param_shapes"], shards.optimizers, shards.folder)
    known = {*spans, *model["shared_params"]}
    frozen = {name: tensor for name, tensor in _parameters_of(model).items() if name not in known}
    return {**spans, **{name: _whole(tensor) for name, tensor in frozen.items()}}


def _stage_3(shards: Shards) -> Parameters:
    folder, shapes = shards.folder, shards.model["frozen_param_shapes"]
    spans = zero_layouts.partitioned_parameters(shards.model["param_shapes"], shards.optimizers, folder)
    if not shapes:
        return spans
    files = _partitioned_model_files(shards.world_size)
    fragments = [_model_state(folder / name)["frozen_param_fragments"] for name in files]
    return {**spans, **zero_layouts.frozen_parameters(shapes, fragments, folder)}


def _checkpoint(shards: Shards, parameters: Parameters, shared: Mapping[str, str]) -> ShardedCheckpoint:
    # An alias whose owner was left out (a frozen, tied embedding beside adapters) names nothing that is here.
    aliases = {alias: owner for alias, owner in shared.items() if owner in parameters}
    tensors = {name: ShardedTensor(name, *parameter) for name, parameter in parameters.items()}
    return ShardedCheckpoint(
        folder=shards.folder,
        zero_stage=shards.zero_stage,
        world_size=shards.world_size,
        tensors=MappingProxyType(tensors),
        aliases=MappingProxyType(aliases),
    )


def _parameters_of(state: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Return the module's stored tensors that are not buffers."""
    buffers = set(state["buffer_names"])
    return {name: tensor for name, tensor in state["module"].items() if name not in buffers}


def _whole(tensor: StoredTensor) -> tuple[tuple[int, ...], tuple[Span, ...]]:
    return tensor.shape, (Span(tensor, 0, tensor.numel),)


def _partitioned_model_files(world_size: int) -> list[str]:
    return [f"zero_pp_rank_{rank}_{MODEL_FILE}" for rank in range(world_size)]


def _optimizer_file(prefix: str, rank: int) -> str:
    return f"{prefix}zero_pp_rank_{rank}_mp_rank_00_optim_states.pt"


def _optimizer_state(folder: Path, prefix: str, rank: int) -> Mapping[str, Any]:
    path = folder / _optimizer_file(prefix, rank)
    tree = read_archive(path)
    if not isinstance(tree, dict) or not isinstance(tree.get("optimizer_state_dict"), dict):
        raise IntegrityError(f"{path}: not a ZeRO optimizer shard; restore the file or use another step")
    zero_layouts.check_keys(tree["optimizer_state_dict"], path)
    return tree["optimizer_state_dict"]


def _model_state(path: Path) -> Mapping[str, Any]:
    tree = read_archive(path)
    needed = ("module", "buffer_names", "param_shapes", "optimizer", "shared_params", "frozen_param_shapes")
    if not isinstance(tree, dict) or any(key not in tree for key in needed):
        raise IntegrityError(f"{path}: not a DeepSpeed model file; restore the file or use another step")
    if tree.get("mp_world_size", 1) != 1 or tree.get("universal_checkpoint_info") is not None:
        raise UserError(f"{path}: written with tensor parallelism, which is not supported; train without it")
    if any(tree.get(key) is not None for key in _EXPERT_KEYS):
        raise UserError(f"{path}: written with experts of DeepSpeed's, which are not supported")
    return tree


def _check_files(folder: Path, expected: set[str]) -> None:
    """Compare the folder's shards with those its layout calls for.

    Shards beyond them are of another layout (experts, pipeline, tensor parallel) or of an older
    checkpoint with more ranks that was overwritten; in neither case is it known which ones count.
    """
    found = {path.name for path in folder.glob("*_states.pt")}
    if missing := sorted(expected - found):
        raise IntegrityError(
            f"{folder}: shard {missing[0]} is missing ({len(missing)} in all); use another step"
        )
    if extra := sorted(found - expected):
        raise IntegrityError(
            f"{folder}: shard {extra[0]} does not belong to this checkpoint ({len(extra)} in all): it is of "
            "another layout (experts, pipeline, tensor parallel) or of another run; use another step"
        )
