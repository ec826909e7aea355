"""Safetensors folders read lazily: one tensor in memory at a time, from one file or from several shards."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rankdrift import records
from rankdrift.errors import UserError

MODEL = "model.safetensors"
ADAPTER = "adapter_model.safetensors"


@dataclass(frozen=True)
class TensorFolder:
    """The tensors of a folder: names from the headers, values on demand."""

    folder: Path
    stem: str = MODEL
    """Name of the weights file; shards are listed in ``<stem>.index.json``."""

    @cached_property
    def files(self) -> dict[str, Path]:
        """Tensor name -> file; raises UserError for a folder without weights, a shard absent or cut."""
        single, index = self.folder / self.stem, self.folder / f"{self.stem}.index.json"
        if single.is_file():
            return dict.fromkeys(_names(single), single)
        if not index.is_file():
            raise UserError(f"{self.folder}: no {self.stem} there; {_remedy(self.folder, self.stem)}")
        listed = records.read_json(index).get("weight_map", {})
        present = {shard: _names(self.folder / shard) for shard in sorted(set(listed.values()))}
        absent = [name for name, shard in listed.items() if name not in present[shard]]
        if absent:
            raise UserError(f"{index}: {absent[0]} is not in {listed[absent[0]]}; export it again")
        return {name: self.folder / shard for name, shard in listed.items()}

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, from the header alone."""
        with _open(self.files[name]) as handle:
            return tuple(handle.get_slice(name).get_shape())

    def tensor(self, name: str) -> Tensor:
        """Return a tensor in float32; raise UserError if it is quantised, or holds NaN or infinity."""
        path = self.files[name]
        with _open(path) as handle:
            stored: Tensor = handle.get_tensor(name)
        if stored.dtype not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
            raise UserError(
                f"{path}: {name} is {stored.dtype}, which has no exact update; export float weights"
            )
        value = stored.float()
        if not torch.isfinite(value).all():
            raise UserError(
                f"{path}: {name} holds NaN or infinity; the run diverged, use an earlier checkpoint"
            )
        return value

    def fingerprint(self) -> str:
        """Return a cheap identity of the weights files: names, sizes, times of change."""
        return records.digest_json(
            {path.name: records.fingerprint(path) for path in set(self.files.values())}
        )


def _open(path: Path) -> safe_open:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"{path}: not a complete safetensors file ({error}); copy or export it again"
        ) from None


def _names(path: Path) -> frozenset[str]:
    with _open(path) as handle:
        return frozenset(handle.keys())


def _remedy(folder: Path, stem: str) -> str:
    """Return what to do about a folder without weights, by what is there instead."""
    if not folder.is_dir():
        return "the folder does not exist, check the path"
    if list(folder.glob("*.bin")):
        return "it has .bin weights, save them with safe_serialization=True"
    if stem == MODEL and (folder / "zero_to_fp32.py").exists():
        return "it is a sharded checkpoint, consolidate it first"
    return "give the folder of a saved model or adapter"
