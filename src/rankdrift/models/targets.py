"""Which modules a method that adapts linear layers adapts: a group's in every block, or as named."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from rankdrift.errors import UserError, did_you_mean
from rankdrift.models.families import ATTENTION, GROUPS, MLP, in_block, roles

PROJECTIONS = (nn.Linear, Conv1D)
SHOWN = 6  # names in a message


def target_modules(model: PreTrainedModel, targets: str | Iterable[str]) -> list[str]:
    """Return how the names of the modules to adapt end: a group's, or as given.

    In the group ``all``, an LM head that shares the embedding's weight is adapted through the embedding
    alone: two adapters on one tied weight could not be merged.

    Raises
    ------
    UserError
        Where a name matches nothing, or a group would leave out a part of what it stands for.

    """
    if isinstance(targets, str):
        return _group_modules(model, targets)
    wanted = list(targets)
    if not wanted:
        raise UserError("method.targets is an empty list; name at least one module or group")
    names = [name for name, _ in model.named_modules()]
    for name in wanted:
        if not any(ends_in(full, name) for full in names):
            present = {full.rpartition(".")[2] for full in names}
            hint = did_you_mean(name, {part for part in present if part and not part.isdigit()})
            raise UserError(f"method.targets: '{name}' matches no module of {type(model).__name__}: {hint}")
    return wanted


def ends_in(full: str, name: str) -> bool:
    """Return whether a module's full name is a name, or ends in it part by part."""
    return full == name or full.endswith(f".{name}")


def _group_modules(model: PreTrainedModel, group: str) -> list[str]:
    """Return the modules of a group, once it is sure that it would leave out none that belongs to it."""
    wanted = set(GROUPS[group])
    if model.config.tie_word_embeddings:
        wanted.discard("lm_head")
    found: list[str] = []
    parts: dict[str, list[str]] = {}
    unknown: dict[str, None] = {}
    for name, module in model.named_modules():
        if isinstance(module, PROJECTIONS) or (isinstance(module, nn.Embedding) and not in_block(name)):
            does = set(roles(name))
            if does and does <= wanted:
                found.append(name)
            elif does & wanted:
                parts[name] = sorted(does - wanted)
            elif not does and (block := in_block(name)):
                unknown[block[1]] = None
    kind = type(model).__name__
    remedy = "name the modules in a list: method.targets=[...]"
    if unknown:
        raise UserError(
            f"method.targets={group!r}: it is not known what {_some(list(unknown))} in the blocks of "
            f"{kind} compute, and the group might leave them out; {remedy}"
        )
    if parts:
        name, others = next(iter(parts.items()))
        raise UserError(
            f"method.targets={group!r}: '{name}' of {kind} computes {', '.join(others)} as well, which the "
            f"group leaves out; choose a group that has them, or {remedy}"
        )
    _require_all_kinds(model, group, found)
    return _endings(found, [name for name, _ in model.named_modules()])


def _require_all_kinds(model: PreTrainedModel, group: str, found: list[str]) -> None:
    """Raise UserError unless every block has each projection of the group; not every MLP has a gate."""
    blocks: dict[int, set[str]] = {}
    for name, _ in model.named_modules():
        if block := in_block(name):
            blocks.setdefault(block[0], set())
    for name in found:
        if block := in_block(name):
            blocks[block[0]].update(roles(name))
    needed = set(GROUPS[group]) & {*ATTENTION, *MLP} - {"gate_proj"}
    lacking = {layer: sorted(needed - has) for layer, has in blocks.items() if needed - has}
    if lacking or not blocks:
        layer, missing = next(iter(lacking.items()), (0, sorted(needed)))
        raise UserError(
            f"method.targets={group!r}: {', '.join(missing)} not found in block {layer} of "
            f"{type(model).__name__}; name its modules in a list: method.targets=[...]"
        )


def _endings(found: list[str], names: list[str]) -> list[str]:
    """Return the shortest ends of names that match what was found and no other module."""
    others = set(names) - set(found)
    ends: list[str] = []
    for name in found:
        if any(ends_in(name, end) for end in ends):
            continue
        parts = name.split(".")
        tails = (".".join(parts[first:]) for first in range(len(parts) - 1, -1, -1))
        ends.append(next(tail for tail in tails if not any(ends_in(other, tail) for other in others)))
    return ends


def _some(names: list[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more
