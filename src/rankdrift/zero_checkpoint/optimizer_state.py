"""What a run needs besides its weights to go on: Adam's moments and step count, from a checkpoint's shards.

A vector of moments has the layout of the vector of master weights it belongs to, so ``zero_layouts``, which
knows where the masters lie, also says where the moments lie. Whose state is whose (DeepSpeed 0.19.8):

- stage 0: the module's file keeps the state of torch's AdamW, a tensor a parameter; the parameters' names
  are those the optimizer was given (torch's ``param_names``);
- stages 1 and 2: ``base_optimizer_state``, a vector an optimizer group, with the padding at its end;
- stage 3: ``optimizer_state_dict``, a vector a sub-group, in the order of ``fp32_flat_groups``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from rankdrift.errors import IntegrityError, UserError
from rankdrift.zero_checkpoint import zero_layouts
from rankdrift.zero_checkpoint.shards import ShardedCheckpoint, ShardedTensor, Shards, read_shards, weights_of
from rankdrift.zero_checkpoint.torch_file import StoredTensor, refusing_malformed
from rankdrift.zero_checkpoint.zero_layouts import Parameters, Span

MOMENTS = ("exp_avg", "exp_avg_sq")
"""Adam's running means of the gradient and of its square, as torch names them."""
KEPT = "rankdrift_kept"
"""The key, in the module's file, of what a method keeps."""
_ADAM_KEYS = {"step", *MOMENTS}


class AdamState(NamedTuple):
    """What a checkpoint holds of one vector."""

    moments: Mapping[str, StoredTensor]
    """Each of ``MOMENTS``."""
    steps: int
    """Updates of this vector."""
    updates: int | None
    """Updates of the run, as its group states; None where nobody has counted (other trainers)."""
    rests: bool
    """Whether its group is left out of some of them."""


AdamStates = dict[str, AdamState]  # by parameter at stage 0, else by the flat vector's number


class _Layout(NamedTuple):
    masters: str
    """The key of the flat vectors of masters."""
    adam: str
    """The key of Adam's state."""
    spans: Callable[..., Parameters]


_GROUPS = _Layout("single_partition_of_fp32_groups", "base_optimizer_state", zero_layouts.partitioned_groups)
_SUB_GROUPS = _Layout("fp32_flat_groups", "optimizer_state_dict", zero_layouts.partitioned_parameters)
_LAYOUTS = {1: _GROUPS, 2: _GROUPS, 3: _SUB_GROUPS}


@dataclass(frozen=True)
class TrainingState:
    """A checkpoint as a run that goes on from it needs it; nothing but indices is read."""

    weights: ShardedCheckpoint
    """The fp32 masters of what trains; perhaps what does not train, too."""
    moments: Mapping[str, Mapping[str, ShardedTensor]] = field(repr=False)
    """For each of ``MOMENTS``, the tensor of every parameter that trains, by the parameter's name."""
    updates: int
    """Updates that the optimizer has made."""
    adam_steps: Mapping[str, int] = field(repr=False)
    """Those in which each parameter was updated, by its name: Adam's bias correction depends on them. All of
    them, but of a parameter that rested in some phase of the run."""
    global_steps: int
    """Steps that DeepSpeed has counted: updates, and steps it skipped because a gradient was not finite."""
    buffers: Mapping[str, StoredTensor] = field(repr=False)
    """The module's persistent buffers."""
    kept: Mapping[str, StoredTensor] = field(default_factory=dict, repr=False)
    """What a method keeps beside weights and moments, the same on every rank."""


@refusing_malformed
def open_training_state(folder: Path) -> TrainingState:
    """Open a checkpoint of ZeRO stage 0 to 3 and any number of ranks in order to train on from it.

    Raises
    ------
    IntegrityError
        Where files are of different steps, or the moments do not fit the masters.
    UserError
        Where the optimizer is not AdamW, or the layout is not known (see ``shards.open_checkpoint``).

    """
    shards = read_shards(folder)
    states = [_of_rank(shards, optimizer) for optimizer in shards.optimizers] or [_of_module(shards)]
    moments = {key: _tensors(shards, states, key) for key in MOMENTS}
    model = shards.model
    updates = _common_updates(shards, states)
    return TrainingState(
        weights=weights_of(shards),
        moments=MappingProxyType(moments),
        updates=updates,
        adam_steps=_adam_steps(states, moments[MOMENTS[0]]),
        global_steps=model["global_steps"],
        buffers=MappingProxyType({name: model["module"][name] for name in model["buffer_names"]}),
        kept=MappingProxyType(dict(model.get(KEPT, {}))),
    )


def _of_module(shards: Shards) -> AdamStates:
    """Return the states in the module's file, stage 0: one a parameter."""
    found: AdamStates = {}
    stored = _torch_state(shards, shards.model["optimizer"], "optimizer")
    for group in stored["param_groups"]:
        if len(group.get("param_names", ())) != len(group["params"]):
            raise UserError(
                f"{shards.folder}: its optimizer state does not say which parameter it belongs to (no "
                "'param_names'): no run can go on from it, but it can be consolidated"
            )
        for name, index in zip(group["param_names"], group["params"], strict=True):
            found[name] = _adam_state(shards, stored, group, index)
    return found


def _of_rank(shards: Shards, optimizer: Mapping[str, Any]) -> AdamStates:
    """Return the states in one rank's shard: one a flat vector of masters, in the vectors' order."""
    layout = _LAYOUTS[shards.zero_stage]
    stored = _torch_state(shards, optimizer.get(layout.adam), layout.adam)
    states = {
        str(index): _adam_state(shards, stored, group, index)
        for group in stored["param_groups"]
        for index in group["params"]
    }
    masters = optimizer[layout.masters]
    paddings = optimizer.get("group_paddings", [0] * len(masters))
    fits = len(states) == len(masters) == len(paddings) and all(
        state.moments[key].numel in (master.numel, master.numel + padding)
        for state, master, padding in zip(states.values(), masters, paddings, strict=True)
        for key in MOMENTS
    )
    if not fits:
        raise IntegrityError(f"{shards.folder}: Adam's moments do not fit the masters; use another step")
    return states


def _torch_state(shards: Shards, stored: Any, key: str) -> Mapping[str, Any]:
    if not isinstance(stored, dict) or set(stored) != {"state", "param_groups"}:
        raise UserError(
            f"{shards.folder}: '{key}' is not a torch optimizer's state (elastic_checkpoint writes another "
            "one): no run can go on from it, but it can be consolidated"
        )
    return stored


def _adam_state(shards: Shards, stored: Mapping[str, Any], group: Mapping[str, Any], index: int) -> AdamState:
    state = stored["state"].get(index, {})
    if set(state) != _ADAM_KEYS or not all(isinstance(value, StoredTensor) for value in state.values()):
        raise UserError(
            f"{shards.folder}: vector {index} has the optimizer state {sorted(state)}, AdamW's is "
            f"{sorted(_ADAM_KEYS)} (offload to NVMe, or of a part, keeps it elsewhere): no run can go on "
            "from it, but it can be consolidated"
        )
    moments = {key: state[key] for key in MOMENTS}
    rests = not all(group.get("phases", [True]))
    return AdamState(moments, int(state["step"].load()), group.get("updates"), rests)


def _common_updates(shards: Shards, states: list[AdamStates]) -> int:
    """Return the number of updates, on which all states agree, and the module's file with them.

    A vector that rests has had fewer, but on every rank as many, and its group says how many there were.
    """
    every = [state for rank in states for state in rank.values()]
    counted = {state.steps for state in every if not state.rests}
    counted |= {state.updates for state in every if state.updates is not None}
    steps, skipped = shards.model.get("global_steps"), shards.model.get("skipped_steps")
    if not isinstance(steps, int) or not isinstance(skipped, int):
        raise IntegrityError(f"{shards.folder}: the module's file states no steps; use another step")
    expected = steps - skipped
    of_ranks = zip(*(rank.values() for rank in states), strict=True)
    alike = all(len({state.steps for state in vector}) == 1 for vector in of_ranks)
    if counted != {expected} or not alike or max(state.steps for state in every) > expected:
        counts = ", ".join(map(str, sorted(counted | {state.steps for state in every})))
        raise IntegrityError(
            f"{shards.folder}: its files are of different steps (Adam's states have counted {counts} "
            f"updates, the module's file {expected}); use another step"
        )
    return expected


def _tensors(shards: Shards, states: list[AdamStates], key: str) -> Mapping[str, ShardedTensor]:
    """Return one moment of every parameter that trains."""
    if shards.zero_stage == 0:
        stored = ((name, state.moments[key]) for name, state in states[0].items())
        found: Parameters = {name: (whole.shape, (Span(whole, 0, whole.numel),)) for name, whole in stored}
    else:
        layout = _LAYOUTS[shards.zero_stage]
        in_masters_place = [
            {**optimizer, layout.masters: [state.moments[key] for state in rank.values()]}
            for optimizer, rank in zip(shards.optimizers, states, strict=True)
        ]
        found = layout.spans(shards.model["param_shapes"], in_masters_place, shards.folder)
    return MappingProxyType({name: ShardedTensor(name, *parameter) for name, parameter in found.items()})


def _adam_steps(states: list[AdamStates], moments: Mapping[str, ShardedTensor]) -> Mapping[str, int]:
    """Return the updates of each parameter: those of the vectors that its first moment lies in."""
    of_vector = {id(state.moments[MOMENTS[0]]): state.steps for rank in states for state in rank.values()}
    return MappingProxyType({name: of_vector[id(moment.spans[0].source)] for name, moment in moments.items()})
