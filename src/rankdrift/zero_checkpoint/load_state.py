"""Put a checkpoint into a freshly initialised DeepSpeed engine of any ZeRO stage and number of ranks.

Each rank copies what it owns of the fp32 masters and of Adam's moments from the checkpoint's mapped files,
whichever ranks and stage wrote them; the weights the model computes with are the masters too, rounded to its
dtype. Where an engine keeps what (read from DeepSpeed 0.19.8):

- without ZeRO the optimizer is torch's, and updates the parameters themselves;
- at stages 1 and 2, and in ``BF16_Optimizer``, it updates one flat vector a group; a parameter's
  ``_hp_mapping`` says which run of the vector is which run of the parameter;
- at stage 3 it updates one flat vector a sub-group; every parameter's part there is as long on each rank.

Between the vectors' parameters lies padding, whose moments are zero, as its gradients are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from rankdrift.errors import UserError
from rankdrift.zero_checkpoint import zero_layouts
from rankdrift.zero_checkpoint.optimizer_state import MOMENTS, TrainingState
from rankdrift.zero_checkpoint.shards import ShardedTensor

Parameters = Sequence[tuple[str, Any]]  # DeepSpeed hangs its own attributes on a parameter


@dataclass(frozen=True)
class Place:
    """Where an engine keeps this rank's part of a parameter's master; its moments lie likewise."""

    name: str
    start: int
    """The part's first element in the parameter."""
    count: int
    """The part's elements."""
    vector: Tensor
    """What the optimizer updates."""
    offset: int
    """The part's first element in the vector."""


def restore(engine: Any, parameters: Parameters, state: TrainingState) -> None:
    """Put masters, moments and counters into an engine that has not trained yet; every rank must call it.

    Parameters
    ----------
    engine
        DeepSpeed's engine.
    parameters
        The parameters that train, by name.
    state
        The checkpoint. What it lacks of the frozen parameters stays as the base model has it.

    Raises
    ------
    UserError
        Where the checkpoint trains other parameters, or the engine keeps its state where it is not known.

    """
    optimizer = engine.optimizer
    _require_memory(optimizer)
    masters = _masters(state)
    for stored in (masters, *state.moments.values()):
        _require_parameters(parameters, stored, state.weights.folder)
    _require_buffers(engine.module, state)
    places = list(_kind(optimizer).places(optimizer, parameters))
    for place in places:
        _fill(place, place.vector, masters[place.name])
    for vector in _kind(optimizer).vectors(optimizer):
        start_adam(optimizer, vector, _steps_of(vector, places, state))
    for key in MOMENTS:
        for place in places:
            _fill(place, optimizer.state[place.vector][key], state.moments[key][place.name])
    _kind(optimizer).set_weights(optimizer, parameters, masters)
    _set_counters(engine, state)


def vectors_of(optimizer: Any, group: int) -> list[Tensor]:
    """Return what the optimizer updates of one of its groups on this rank."""
    if hasattr(optimizer, "sub_group_to_group_id"):
        owners = optimizer.sub_group_to_group_id
        flat = optimizer.fp32_partitioned_groups_flat
        return [vector for number, vector in enumerate(flat) if owners[number] == group]
    return list(optimizer.param_groups[group]["params"])


def places_of(optimizer: Any, parameters: Parameters) -> Iterator[Place]:
    """Return where this rank's parts of the parameters' masters are; they must be in memory."""
    return _kind(optimizer).places(optimizer, parameters)


def set_masters(engine: Any, parameters: Parameters, values: Mapping[str, Tensor]) -> None:
    """Put fp32 values into an engine's masters, which DeepSpeed makes of weights already rounded to bf16.

    Without it an update would begin with that rounding, 0.17 % of a base model stored in fp32. Masters that
    are not in memory (NVMe) stay as they are.
    """
    optimizer = engine.optimizer
    if optimizer is None or not _in_memory(optimizer):
        return
    for place in _kind(optimizer).places(optimizer, parameters):
        target = place.vector.detach().view(-1)[place.offset : place.offset + place.count]
        target.copy_(values[place.name].reshape(-1)[place.start : place.start + place.count])


def _fill(place: Place, vector: Tensor, stored: ShardedTensor) -> None:
    """Copy a part straight from the mapped files into its place in a vector."""
    target = vector.detach().view(-1)[place.offset : place.offset + place.count]
    spans = zero_layouts.cut(stored.spans, place.start, place.count)
    for part, span in zip(target.split([span.count for span in spans]), spans, strict=True):
        part.copy_(span.load())


def _steps_of(vector: Tensor, places: Sequence[Place], state: TrainingState) -> int:
    """Return the updates that a vector has had: those of each of its parameters, if this rank has any."""
    counts = {state.adam_steps[place.name] for place in places if place.vector is vector}
    if len(counts) > 1:
        raise UserError(
            f"{state.weights.folder}: parameters that one vector holds here have been updated "
            f"{' and '.join(map(str, sorted(counts)))} times; resume with the schedule it was trained with"
        )
    return counts.pop() if counts else state.updates


def start_adam(optimizer: Any, vector: Tensor, steps: int) -> None:
    """Give a vector the state that torch's fused AdamW would give it at its first step, and the count."""
    count = torch.tensor(steps, dtype=torch.float32, device=vector.device)
    zeros = {key: torch.zeros_like(vector, requires_grad=False) for key in MOMENTS}
    optimizer.state[vector] = {"step": count, **zeros}


def _set_counters(engine: Any, state: TrainingState) -> None:
    """Set what DeepSpeed counts; it ends an accumulation where micro-steps are a multiple of its length."""
    engine.global_steps = state.global_steps
    engine.skipped_steps = state.global_steps - state.updates
    engine.global_samples = state.global_steps * engine.train_batch_size()
    engine.micro_steps = state.global_steps * engine.gradient_accumulation_steps()


def _masters(state: TrainingState) -> dict[str, ShardedTensor]:
    """Return the masters of what trains, by the names that the moments have."""
    tensors, aliases = state.weights.tensors, state.weights.aliases
    owners = {name: aliases.get(name, name) for name in state.moments[MOMENTS[0]]}
    return {name: tensors[owner] for name, owner in owners.items() if owner in tensors}


@dataclass(frozen=True)
class _Kind:
    """How one class of DeepSpeed's optimizers keeps its state."""

    places: Callable[[Any, Parameters], Iterator[Place]]
    vectors: Callable[[Any], list[Tensor]]
    set_weights: Callable[[Any, Parameters, Mapping[str, ShardedTensor]], None]
    """Make the model's weights from the masters, where they are not the same."""


def _whole(optimizer: Any, parameters: Parameters) -> Iterator[Place]:
    return (Place(name, 0, param.numel(), param, 0) for name, param in parameters)


def _fragments(optimizer: Any, parameters: Parameters) -> Iterator[Place]:
    vectors = _group_vectors(optimizer)
    for name, param in parameters:
        if (mapping := param._hp_mapping) is not None:
            held, lies = mapping.lp_fragment_address, mapping.hp_fragment_address
            yield Place(name, held.start, held.numel, vectors[mapping.param_group_index], lies.start)


def _parts(optimizer: Any, parameters: Parameters) -> Iterator[Place]:
    for name, param in parameters:
        group, offset, part = optimizer.grad_position[optimizer.get_param_id(param)]
        start = torch.distributed.get_rank(param.ds_process_group) * part
        # the last parts are padded to equal length
        count = max(min(part, param.ds_numel - start), 0)
        yield Place(name, start, count, optimizer.fp32_partitioned_groups_flat[group], offset)


def _group_vectors(optimizer: Any) -> list[Tensor]:
    return [param for group in optimizer.param_groups for param in group["params"]]


def _set_whole(optimizer: Any, parameters: Parameters, masters: Mapping[str, ShardedTensor]) -> None:
    for place in _whole(optimizer, parameters):
        _fill(place, place.vector, masters[place.name])


def _set_parts(optimizer: Any, parameters: Parameters, masters: Mapping[str, ShardedTensor]) -> None:
    optimizer.checkpoint_event_prologue()
    for number in range(len(optimizer.fp32_partitioned_groups_flat)):
        optimizer._reassign_or_swap_out_partitioned_parameters(number)
    optimizer.checkpoint_event_epilogue()  # parameters that are never released are gathered anew


def _sub_group_vectors(optimizer: Any) -> list[Tensor]:
    return list(optimizer.fp32_partitioned_groups_flat)


_FLAT_GROUPS = _Kind(_fragments, _group_vectors, _set_whole)
_KINDS: Mapping[str, _Kind] = {
    "AdamW": _Kind(_whole, _group_vectors, lambda *_: None),
    "DeepSpeedZeroOptimizer": _FLAT_GROUPS,
    "BF16_Optimizer": _FLAT_GROUPS,
    "DeepSpeedZeroOptimizer_Stage3": _Kind(_parts, _sub_group_vectors, _set_parts),
}


def _kind(optimizer: Any) -> _Kind:
    name = type(optimizer).__name__
    if name not in _KINDS:
        raise UserError(
            f"DeepSpeed's optimizer {name} keeps its state in a way that is not known, so no checkpoint can "
            "be put into it; resume with zero_optimization of plain stages 0 to 3"
        )
    return _KINDS[name]


def _require_memory(optimizer: Any) -> None:
    """Raise UserError where masters, moments or weights are not all in memory, with one optimizer."""
    if not _in_memory(optimizer):
        raise UserError(
            "a run with offload to NVMe cannot resume from a checkpoint: masters and moments are not in "
            "memory; resume with device 'cpu' in zero_optimization.offload_optimizer and offload_param"
        )
    if hasattr(optimizer, "backup_optimizer"):
        raise UserError(
            "a run with zero_optimization.offload_optimizer.ratio below 1 has two optimizers and cannot "
            "resume from a checkpoint; resume with ratio 1"
        )


def _in_memory(optimizer: Any) -> bool:
    on_disk = ("swap_optimizer", "params_in_nvme_and_cpu")
    return not any(getattr(optimizer, name, False) for name in on_disk)


def _require_parameters(parameters: Parameters, stored: Mapping[str, ShardedTensor], folder: Path) -> None:
    """Raise UserError unless the checkpoint trains these parameters, in these shapes."""
    wanted = {name: tuple(getattr(param, "ds_shape", param.shape)) for name, param in parameters}
    found = {name: tensor.shape for name, tensor in stored.items()}
    different = sorted(name for name in {**wanted, **found} if wanted.get(name) != found.get(name))
    if different:
        name = different[0]
        raise UserError(
            f"{folder}: trains other parameters than this run ({len(different)} differ): "
            f"'{name}' has shape {found.get(name, 'none')} there and {wanted.get(name, 'none')} here; "
            "resume with the same base model and method, or train into another folder"
        )


def _require_buffers(module: Any, state: TrainingState) -> None:
    """Raise UserError where training has changed a buffer, which only one rank has saved."""
    buffers = dict(module.named_buffers())
    for name, stored in state.buffers.items():
        if name not in buffers or not torch.equal(buffers[name].cpu(), stored.load()):
            raise UserError(
                f"{state.weights.folder}: training has changed the buffer '{name}', which is not restored; "
                "train into another folder"
            )
