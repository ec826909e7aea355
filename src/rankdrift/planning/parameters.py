"""What of a prepared model trains: counts, and what the formulas of memory and disk need to know of it."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import nn

from rankdrift.models.families import cell_of, in_block
from rankdrift.planning.activations import Trained


@dataclass(frozen=True)
class ModelSize:
    """Elements of a model's parameters."""

    trained: int
    frozen: int
    largest: int
    """Of the largest parameter that trains."""
    aliases: int
    """Of frozen parameters that a checkpoint without frozen ones has all the same, under a further name."""
    groups: dict[str, int] = field(default_factory=dict)
    """What trains of each group of modules (``models.families``): attention, mlp, embed, norm, head."""

    @property
    def total(self) -> int:
        """All of them."""
        return self.trained + self.frozen


def size_of(model: nn.Module) -> ModelSize:
    """Return the sizes of a prepared model; shapes alone are looked at, so it may be on any device."""
    trained = {name: param for name, param in model.named_parameters() if param.requires_grad}
    frozen = sum(param.numel() for param in model.parameters() if not param.requires_grad)
    groups: dict[str, int] = {}
    for name, param in trained.items():
        group = cell_of(name).group
        groups[group] = groups.get(group, 0) + param.numel()
    sizes = [param.numel() for param in trained.values()]
    return ModelSize(sum(sizes), frozen, max(sizes, default=0), frozen_aliases(model), groups)


def frozen_aliases(model: nn.Module) -> int:
    """Return the elements of frozen parameters under further names than their first: a tied head.

    DeepSpeed leaves frozen parameters out of a checkpoint by the names of ``named_parameters``, of which a
    tied one has one.
    """
    every = model.named_parameters(remove_duplicate=False)
    names = {name for name, _ in model.named_parameters()}
    return sum(param.numel() for name, param in every if name not in names and not param.requires_grad)


def trained_parts(model: nn.Module, blocks: int) -> Trained:
    """Return what of a model of so many blocks trains, as far as it decides what its forward pass keeps."""
    trained = [name for name, param in model.named_parameters() if param.requires_grad]
    cells = [cell_of(name) for name in trained]
    below = any(cell.group == "embed" for cell in cells)
    first = 0 if below else min((cell.layer for cell in cells if cell.layer >= 0), default=blocks)
    downs = sum(
        param.shape[0]
        for name, param in model.named_parameters()
        if ".lora_A." in name and param.requires_grad and in_block(name)
    )
    return Trained(
        norms=any(cell.group == "norm" for cell in cells),
        projections=any(
            cell.group in ("attention", "mlp") and not name.endswith("bias")
            for name, cell in zip(trained, cells, strict=True)
        ),
        embeddings=below,
        blocks=blocks - first,
        low_rank=-(-downs // max(1, blocks - first)),
    )
