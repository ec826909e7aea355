"""Adapters that did not begin as zero, as plain LoRA of the base: PiSSA, OLoRA, LoRA-GA.

Their start, s B0 A0, was subtracted from the base weights, so the update is s (B A - B0 A0), which is the
LoRA [B, -B0] [A; A0] of twice the rank at the same scale. It needs no decomposition to be loaded, and no base
but the one that everybody has.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from rankdrift.errors import IntegrityError, UserError
from rankdrift.export import adapter_update
from rankdrift.layout import INITIAL_ADAPTER
from rankdrift.zero_checkpoint.shards import ShardedTensor
from rankdrift.zero_checkpoint.storage_sums import StorageSums

WEIGHTS = "adapter_model.safetensors"


@dataclass(frozen=True)
class JoinedFactor:
    """A factor as it was trained, and as it began, side by side."""

    trained: ShardedTensor
    start: Tensor
    axis: int

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of both together."""
        sizes = list(self.trained.shape)
        sizes[self.axis] += self.start.shape[self.axis]
        return tuple(sizes)

    def load(self) -> Tensor:
        """Return both in fp32."""
        return torch.cat([self.trained.load(), self.start], self.axis)

    def chunks(self, buffers: Iterator[Tensor], sums: StorageSums | None = None) -> Iterator[Tensor]:
        """Yield the elements in row-major order, at once: factors are small."""
        parts = [part.float().clone() for part in self.trained.chunks(buffers, sums)]
        trained = torch.cat(parts).view(self.trained.shape)
        yield torch.cat([trained, self.start], self.axis).reshape(-1)


Factors = dict[str, ShardedTensor | JoinedFactor]


def as_plain_lora(
    tensors: Mapping[str, ShardedTensor], config: Mapping[str, Any], settings: Path
) -> tuple[Factors, dict[str, Any]]:
    """Return an adapter's tensors and settings as those of plain LoRA; both as they are where it is.

    Parameters
    ----------
    tensors
        By their names on disk.
    config
        Its settings.
    settings
        The folder they are from, beside which the adapter as it was before training lies.

    Raises
    ------
    UserError
        If that adapter is not there.
    IntegrityError
        If it does not fit.

    """
    if not adapter_update.subtracts_start(config):
        return dict(tensors), dict(config)
    path = settings / INITIAL_ADAPTER / WEIGHTS
    if not path.is_file():
        raise UserError(
            f"{path}: missing, and the update cannot be told without it; copy the run's folder whole"
        )
    begun = load_file(path)
    joined: Factors = {}
    for name, tensor in tensors.items():
        if ".lora_" not in name:
            joined[name] = tensor
            continue
        if name not in begun or begun[name].shape != tensor.shape:
            raise IntegrityError(f"{path}: '{name}' is not as it was trained; it belongs to another run")
        is_b = adapter_update.is_left_factor(name)
        joined[name] = JoinedFactor(tensor, -begun[name] if is_b else begun[name], axis=1 if is_b else 0)
    return joined, _of_twice_the_rank(config)


def _of_twice_the_rank(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with twice the rank and the same scale."""
    grown = math.sqrt(2) if config.get("use_rslora") else 2
    ranks = {key: 2 * rank for key, rank in (config.get("rank_pattern") or {}).items()}
    alphas = {key: grown * alpha for key, alpha in (config.get("alpha_pattern") or {}).items()}
    return {
        **config,
        "r": 2 * config["r"],
        "lora_alpha": grown * config["lora_alpha"],
        "rank_pattern": ranks,
        "alpha_pattern": alphas,
        "init_lora_weights": True,
    }
