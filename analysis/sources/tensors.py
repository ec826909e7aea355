"""Stored tensors, read one at a time: what every source of them offers, and folders of saved models."""

from __future__ import annotations

import pickle
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rankdrift import files
from rankdrift.errors import IntegrityError, UserError

MODEL = "model.safetensors"
MODEL_CONFIG = "config.json"
ADAPTER = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
PICKLED = {MODEL: "pytorch_model.bin", ADAPTER: "adapter_model.bin"}
"""What the same tensors are called in files of torch.save."""
PROVENANCE = "provenance.json"
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""The formats of exact weights, by their names in safetensors files."""


class Tensors(Protocol):
    """Named tensors that lie on a disk."""

    @property
    def names(self) -> Collection[str]:
        """The names of all tensors; raises UserError for a folder that cannot be read."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, which is not read."""

    def dtype(self, name: str) -> torch.dtype:
        """Return the format a tensor is stored in; it is not read."""

    def tensor(self, name: str) -> Tensor:
        """Return a tensor as ``exact_float32`` gives it."""

    def fingerprint(self) -> str:
        """Return a cheap identity of the files that hold the tensors."""


@dataclass(frozen=True)
class TensorFolder:
    """The tensors of a folder: names from the headers, values on demand."""

    folder: Path
    stem: str = MODEL
    """Name of the weights file; shards are listed in ``<stem>.index.json``."""

    @cached_property
    def files(self) -> dict[str, Path]:
        """Tensor name -> file.

        Raises UserError for a folder without weights and an absent shard, IntegrityError for a damaged one.
        """
        for stem in (self.stem, PICKLED[self.stem]):
            single, index = self.folder / stem, self.folder / f"{stem}.index.json"
            if single.is_file():
                return dict.fromkeys(_names(single), single)
            if index.is_file():
                break
        else:
            raise UserError(f"{self.folder}: no {self.stem} there; {_remedy(self.folder, self.stem)}")
        listed = files.read_json(index).get("weight_map", {})
        present = {shard: set(_names(self.folder / shard)) for shard in sorted(set(listed.values()))}
        absent = [name for name, shard in listed.items() if name not in present[shard]]
        if absent:
            raise UserError(f"{index}: {absent[0]} is not in {listed[absent[0]]}; export it again")
        return {name: self.folder / shard for name, shard in listed.items()}

    @property
    def names(self) -> Collection[str]:
        """The names of all tensors."""
        return self.files.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor, from the header alone."""
        with _open(self.files[name]) as handle:
            return tuple(handle.get_slice(name).get_shape())

    def dtype(self, name: str) -> torch.dtype:
        """Return the format a tensor is stored in; raise UserError unless it is one ``FLOATS`` names."""
        path = self.files[name]
        with _open(path) as handle:
            stored = handle.get_slice(name).get_dtype()
        if stored not in FLOATS:
            raise _quantised(path, name, stored)
        return FLOATS[stored]

    def tensor(self, name: str) -> Tensor:
        """Return a tensor as ``exact_float32`` gives it."""
        path = self.files[name]
        with _open(path) as handle:
            return exact_float32(handle.get_tensor(name), path, name)

    def fingerprint(self) -> str:
        """Return a cheap identity of the weights files: names, sizes, times of change."""
        return files.digest_json({path.name: files.fingerprint(path) for path in set(self.files.values())})


def exact_float32(stored: Tensor, path: Path, name: str) -> Tensor:
    """Return a copy of a tensor in float32; raise UserError if it is quantised, else as ``finite``."""
    if stored.dtype not in FLOATS.values():
        raise _quantised(path, name, stored.dtype)
    # A view of a mapped file lies where it lies in the file, and matrix products round by the alignment of
    # their inputs: the same weights would give other last digits from another file.
    return finite(stored.to(torch.float32, copy=True), path, name)


def _quantised(path: Path, name: str, kind: object) -> UserError:
    return UserError(f"{path}: {name} is {kind}, which has no exact update; export float weights")


def finite(value: Tensor, path: Path, name: str) -> Tensor:
    """Return a tensor as it is; raise IntegrityError if it holds NaN or infinity."""
    if not torch.isfinite(value).all():
        raise IntegrityError(
            f"{path}: {name} holds NaN or infinity; the run diverged, use an earlier checkpoint"
        )
    return value


class _Pickled:
    """A file of torch.save, mapped, with what is asked of a safetensors file; nothing in it is run."""

    def __init__(self, path: Path) -> None:
        self._tensors = _loaded(path)

    def __enter__(self) -> _Pickled:
        return self

    def __exit__(self, *error: object) -> None:
        pass

    def keys(self) -> Collection[str]:
        return self._tensors.keys()

    def get_tensor(self, name: str) -> Tensor:
        return self._tensors[name]

    def get_slice(self, name: str) -> _Pickled._Header:
        return self._Header(self._tensors[name])

    @dataclass(frozen=True)
    class _Header:
        tensor: Tensor

        def get_shape(self) -> list[int]:
            return list(self.tensor.shape)

        def get_dtype(self) -> str:
            named = {dtype: name for name, dtype in FLOATS.items()}
            return named.get(self.tensor.dtype, str(self.tensor.dtype))


@lru_cache(maxsize=8)  # a file's index is read for every tensor asked of it
def _loaded(path: Path) -> dict[str, Tensor]:
    try:
        found = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"{path}: holds more than tensors ({reason}); save its state_dict alone") from None
    except RuntimeError as error:
        raise IntegrityError(f"{path}: torch cannot map it ({error}); copy or save it again") from None
    if not isinstance(found, dict) or not all(isinstance(value, Tensor) for value in found.values()):
        raise UserError(f"{path}: not a mapping of names to tensors; save the model's state_dict in it")
    return found


def _open(path: Path) -> safe_open | _Pickled:
    """Open a file; raise UserError if it is absent or cannot be read, IntegrityError if it is damaged."""
    try:
        if path.suffix == ".bin":
            return _Pickled(path)
        return safe_open(path, framework="pt")
    except SafetensorError as error:
        raise IntegrityError(
            f"{path}: not a complete safetensors file ({error}); copy or export it again"
        ) from None
    except FileNotFoundError:
        raise UserError(f"{path}: absent; copy or export it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error}); make it a readable file") from None


def _names(path: Path) -> list[str]:
    """Return the names of a file's tensors, in an order that is always the same."""
    with _open(path) as handle:
        names = sorted(handle.keys())
        empty = [name for name in names if list(handle.get_slice(name).get_shape()) == [0]]
    if empty:
        raise UserError(
            f"{path}: {len(empty)} of {len(names)} tensors are empty ({empty[0]}): it was saved under ZeRO-3 "
            "without gathering them; give the sharded checkpoint it was saved beside, or save it again with "
            "stage3_gather_16bit_weights_on_model_save"
        )
    return names


def _remedy(folder: Path, stem: str) -> str:
    """Return what to do about a folder without weights, by what is there instead."""
    if not folder.is_dir():
        return "the folder does not exist, check the path"
    if stem == MODEL and (folder / "zero_to_fp32.py").exists():
        return "sharded checkpoints lie below it, give one of their folders (step-NNNNNN)"
    if below := _models_below(folder):
        some = ", ".join(below[:3]) + ", ..." * (len(below) > 3)
        return f"models or adapters lie below it, give one of their folders ({some})"
    return "give the folder of a saved model or adapter"


def _models_below(folder: Path) -> list[str]:
    """Return the names of the folders in a folder that hold a model's or an adapter's settings."""
    found = [path for name in (MODEL_CONFIG, ADAPTER_CONFIG) for path in folder.glob(f"*/{name}")]
    return sorted({path.parent.name for path in found})
