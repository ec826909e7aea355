"""LoRA's updates while they are trained: factors whole from the ranks' parts, spectra from their cores."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from rankdrift.export.peft_names import disk_name
from rankdrift.training.collectives import device, whole_over_ranks

if TYPE_CHECKING:
    from rankdrift.training.trainer import Trainer

LENGTHS = "lora_magnitude"
"""What DoRA trains beside A and B: its update is no product of them, and of full rank."""
OFFSET = 1e-5
"""PEFT divides by r and as much in AdaLoRA."""
_FACTOR = re.compile(r"^(.*)\.lora_(?:embedding_)?([ABE])\.default(?:\.weight)?$")


@dataclass(frozen=True)
class Adapter:
    """One adapted matrix; its update is ``scale`` (B A - B0 A0), or ``scale`` B diag(lambda) A."""

    module: str
    names: tuple[str, str]
    """Of A and of B, parameters."""
    shapes: tuple[tuple[int, int], tuple[int, int]]
    """(r, inputs) and (outputs, r)."""
    scale: float
    start: tuple[Tensor, Tensor] | None
    """A0 and B0 in fp32, where they do not cancel out; None is zero."""
    values: str | None = None
    """Of lambda, (r, 1), where there is one."""

    @property
    def numels(self) -> dict[str, int]:
        """Elements of its parameters."""
        numels = dict(zip(self.names, map(math.prod, self.shapes), strict=True))
        return numels | ({self.values: self.shapes[0][0]} if self.values else {})


def adapters_of(trainer: Trainer) -> list[Adapter]:
    """Return a run's adapted matrices whose updates are products of their factors: all but DoRA's."""
    model: Any = trainer.engine.module
    params = {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in model.named_parameters()}
    factors: dict[str, dict[str, str]] = {}
    for name in params:
        if found := _FACTOR.match(name):
            factors.setdefault(found[1], {})[found[2]] = name
    scaled = {name.partition(f".{LENGTHS}")[0] for name in params if f".{LENGTHS}" in name}
    kept = trainer.run.initial_adapter / "adapter_model.safetensors"
    starts = load_file(kept) if trainer.setup.method.take_up else {}
    return [
        Adapter(
            module,
            (named["A"], named["B"]),
            (params[named["A"]], params[named["B"]]),
            float(model.get_submodule(module).scaling["default"])
            / (params[named["A"]][0] + OFFSET if "E" in named else 1),
            _start(starts, named),
            named.get("E"),
        )
        for module, named in factors.items()
        if module not in scaled
    ]


def _start(starts: Mapping[str, Tensor], named: Mapping[str, str]) -> tuple[Tensor, Tensor] | None:
    if not starts:
        return None
    first, second = (starts[disk_name(named[factor])].to(device()).float() for factor in "AB")
    return first, second


def whole_masters(trainer: Trainer, numels: Mapping[str, int]) -> dict[str, Tensor]:
    """Return the masters of parameters (name -> elements) whole on every rank, flat, by one exchange."""
    shards = trainer.engine.master_shards()
    parts = ((shard.name, shard.start, shard.weights) for shard in shards if shard.name in numels)
    return whole_over_ranks(numels, parts)


def spectra(
    adapters: Sequence[Adapter], masters: Mapping[str, Tensor]
) -> Iterator[tuple[list[Adapter], Tensor]]:
    """Yield adapters of one shape, n of them, with the singular values of their updates, (n, r)."""
    ordered = sorted(adapters, key=lambda adapter: adapter.shapes)
    for _, alike in itertools.groupby(ordered, key=lambda adapter: adapter.shapes):
        group = list(alike)
        first, second = (torch.stack([_factor(a, masters, side) for a in group]) for side in (0, 1))
        scales = torch.tensor([adapter.scale for adapter in group], device=first.device)
        yield group, product_singular_values(second, first) * scales[:, None]


def _factor(adapter: Adapter, masters: Mapping[str, Tensor], side: int) -> Tensor:
    trained = masters[adapter.names[side]].view(adapter.shapes[side])
    if adapter.values and not side:
        trained = trained * masters[adapter.values][:, None]
    if adapter.start is None:
        return trained
    return torch.cat([trained, -adapter.start[side] if side else adapter.start[side]], dim=side)


def product_singular_values(left: Tensor, right: Tensor) -> Tensor:
    """Return the singular values of products, (n, m, r) by (n, r, k): those of cores of two QR factors.

    Values below the rounding of the product are 0: of factors that cancel, nothing else is left.
    """
    first, second = torch.linalg.qr(left, mode="r").R, torch.linalg.qr(right.mT, mode="r").R
    sigma = torch.linalg.svdvals(first @ second.mT)
    sizes = torch.linalg.matrix_norm(first) * torch.linalg.matrix_norm(second)
    rounding = sigma.shape[-1] * torch.finfo(sigma.dtype).eps * sizes
    return sigma.where(sigma > rounding[:, None], 0.0)
