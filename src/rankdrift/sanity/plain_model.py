"""What a model is made of, read off its plain modules before a method has touched it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

OUTSIDE = -1
"""Block of what is in none."""


@dataclass(frozen=True)
class PlainModel:
    """Sizes and places of a model's parameters; a weight that is shared has the name of its first module."""

    matrices: dict[str, tuple[int, int]]
    """Module -> what goes in and comes out: of linear layers and embeddings."""
    numels: dict[str, int]
    """Parameter -> elements."""
    of_modules: dict[str, int]
    """Module -> elements of all its parameters."""
    blocks: dict[str, int]
    """Parameter -> the block it is in, -1 outside."""
    count: int
    """Blocks."""
    norms: frozenset[str]
    """Parameters of norms."""
    embeddings: frozenset[str]
    """Parameters of embeddings."""
    head: frozenset[str]
    """Parameters of the output layer, where it has its own."""
    new: frozenset[str]
    """Parameters without a pre-trained counterpart."""
    new_modules: tuple[str, ...]
    """Their modules."""
    tied: bool
    """Whether the output layer shares the embedding's weight."""


def read_plain(model: PreTrainedModel) -> PlainModel:
    """Return what a model is made of."""
    numels = {name: param.numel() for name, param in model.named_parameters()}
    modules = dict(model.named_modules())
    path, stack = _blocks(modules)
    new_modules = tuple(getattr(model, "new_modules", ()))
    embeddings = _below(
        numels, [name for name, module in modules.items() if isinstance(module, nn.Embedding)]
    )
    outputs = [name for name, module in modules.items() if module is model.get_output_embeddings()]
    return PlainModel(
        matrices={name: size for name, module in modules.items() if (size := _size(module))},
        numels=numels,
        of_modules={name: sum(p.numel() for p in module.parameters()) for name, module in modules.items()},
        blocks={name: _block(name, path) for name in numels},
        count=len(stack),
        norms=_below(numels, [name for name, module in modules.items() if "norm" in _kind(module)]),
        embeddings=embeddings,
        head=_below(numels, [*outputs, *new_modules]) - embeddings,
        new=_below(numels, new_modules),
        new_modules=new_modules,
        tied=model.config.tie_word_embeddings,
    )


def _size(module: nn.Module) -> tuple[int, int] | None:
    if isinstance(module, nn.Linear):
        return module.in_features, module.out_features
    if isinstance(module, Conv1D):
        return module.nx, module.nf
    if isinstance(module, nn.Embedding):
        return module.num_embeddings, module.embedding_dim
    return None


def _blocks(modules: dict[str, nn.Module]) -> tuple[str, nn.ModuleList]:
    """Return the list of the blocks, the one that holds most, and its name."""
    lists = {name: module for name, module in modules.items() if isinstance(module, nn.ModuleList)}
    name = max(lists, key=lambda at: sum(p.numel() for p in lists[at].parameters()), default="")
    return name, lists.get(name, nn.ModuleList())


def _block(name: str, path: str) -> int:
    return (
        int(name.removeprefix(f"{path}.").split(".")[0]) if path and name.startswith(f"{path}.") else OUTSIDE
    )


def _below(names: dict[str, int], modules: list[str] | tuple[str, ...]) -> frozenset[str]:
    starts = tuple(f"{module}." for module in modules)
    return frozenset(name for name in names if name.startswith(starts))


def _kind(module: nn.Module) -> str:
    return type(module).__name__.lower()
