"""A base model's weights read lazily: a folder of safetensors files, one or several, of any float type."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from torch import Tensor

from rankdrift import files
from rankdrift.errors import IntegrityError, UserError
from rankdrift.zero_checkpoint.storage_sums import StorageSums

_WEIGHTS, _INDEX = "model.safetensors", "model.safetensors.index.json"
_FLOATS = ("F64", "F32", "F16", "BF16")
_BLOCK = 2**20  # elements read at once: 8 MiB in float64


@dataclass(frozen=True)
class BaseTensor:
    """One stored tensor, read a few rows at a time."""

    name: str
    shape: tuple[int, ...]
    file: Any = field(repr=False)
    """The open safetensors file."""

    def blocks(self) -> Iterator[tuple[int, int]]:
        """Yield the (first, last + 1) rows of blocks that together are the tensor."""
        rows = self.shape[0]
        step = max(1, _BLOCK // max(1, math.prod(self.shape[1:])))
        return ((start, min(start + step, rows)) for start in range(0, rows, step))

    def rows(self, start: int, stop: int) -> Tensor:
        """Return some rows in float32."""
        rows: Tensor = self.file.get_slice(self.name)[start:stop]
        return rows.float()

    def chunks(self, buffers: Iterator[Tensor], sums: StorageSums | None = None) -> Iterator[Tensor]:
        """Yield the elements in row-major order, flat, in float32; the buffers are not needed."""
        if not self.shape:
            yield self.file.get_tensor(self.name).float().reshape(1)
            return
        yield from (self.rows(start, stop).reshape(-1) for start, stop in self.blocks())


def open_base(folder: Path) -> dict[str, BaseTensor]:
    """Return a base model's tensors by name; only the files' headers are read.

    Raises UserError for a folder without safetensors weights or with quantised ones, IntegrityError for a
    file that is cut or lacks a tensor of the index.
    """
    index = folder / _INDEX
    listed = {} if (folder / _WEIGHTS).is_file() else _listed(index)
    files = {folder / name: _open(folder / name) for name in sorted(set(listed.values())) or [_WEIGHTS]}
    found = {name: _tensor(path, name, file) for path, file in files.items() for name in file.offset_keys()}
    if absent := sorted(set(listed) - set(found)):
        raise IntegrityError(f"{index}: '{absent[0]}' is in none of its files; restore the base model")
    return found


def _listed(index: Path) -> dict[str, str]:
    if not index.is_file():
        raise UserError(f"{index.parent}: the base model's {_WEIGHTS} is not there; put it back where it was")
    listed: dict[str, str] = files.read_json(index)["weight_map"]
    return listed


def _tensor(path: Path, name: str, file: Any) -> BaseTensor:
    stored = file.get_slice(name)
    if stored.get_dtype() not in _FLOATS:
        raise UserError(
            f"{path}: '{name}' is {stored.get_dtype()}, to which an update cannot be added; "
            "export the adapter alone (without --merge)"
        )
    return BaseTensor(name, tuple(stored.get_shape()), file)


def _open(path: Path) -> Any:
    try:
        return safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise IntegrityError(
            f"{path}: not a complete safetensors file ({error}); restore the base model"
        ) from None
