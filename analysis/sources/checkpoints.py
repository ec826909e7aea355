"""Sharded ZeRO checkpoints read where they lie: fp32 master weights as named tensors, nothing copied on disk.

A checkpoint holds tensors alone. What they belong to (a whole model, or an adapter and its settings) is in
the folder ``model`` of its run, so a checkpoint is read inside its run's folder; one of the Hugging Face
Trainer or of accelerate lies beside its settings.
"""

from __future__ import annotations

import itertools
import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from rankdrift import files
from rankdrift.analysis.sources.tensors import ADAPTER_CONFIG, MODEL_CONFIG, finite
from rankdrift.errors import IntegrityError, UserError
from rankdrift.export.peft_names import adapter_tensors
from rankdrift.layout import RunLayout
from rankdrift.zero_checkpoint.manifest import MANIFEST_NAME, Manifest
from rankdrift.zero_checkpoint.shards import ShardedTensor, open_checkpoint
from rankdrift.zero_checkpoint.trainer_folder import trainer_folder

CHUNK = 8 * 2**20  # bytes read at once


@dataclass(frozen=True)
class CheckpointTensors:
    """The parameters of a checkpoint, under the names that an export of it gives them."""

    folder: Path
    adapter: bool
    """Whether it is a LoRA run's: then it holds the adapter's tensors, under PEFT's names on disk."""

    def __reduce__(self) -> tuple[object, ...]:
        # mapped files do not travel to the processes that share an analysis: each maps them itself
        return type(self), (self.folder, self.adapter)

    @cached_property
    def stored(self) -> Mapping[str, ShardedTensor]:
        """Where each tensor lies.

        Shared parameters are listed once. Raises UserError where the checkpoint is incomplete or of an
        unknown layout, IntegrityError where it is damaged.
        """
        if others := trainer_folder(self.folder):
            tensors = open_checkpoint(others.shards).tensors
        else:
            Manifest.read(self.folder)
            tensors = open_checkpoint(self.folder).tensors
        return adapter_tensors(tensors, self.folder) if self.adapter else tensors

    @property
    def names(self) -> Collection[str]:
        """The names of all tensors."""
        return self.stored.keys()

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor; nothing of it is read."""
        return self.stored[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Return float32, the format of master weights."""
        return torch.float32

    def tensor(self, name: str) -> Tensor:
        """Return a tensor in float32, in memory of its own; nothing else of the files is read.

        Raises IntegrityError if it holds NaN or infinity, or cannot be read.
        """
        try:
            return finite(_read(self.stored[name]), self.folder, name)
        except OSError as error:
            raise IntegrityError(
                f"{self.folder}: {name} cannot be read ({error}); copy the checkpoint again"
            ) from None

    def fingerprint(self) -> str:
        """Return a cheap identity of the checkpoint: names, sizes, times of change of its files."""
        return files.fingerprint(self.folder)


def _read(stored: ShardedTensor) -> Tensor:
    value = torch.empty(stored.shape)
    flat, position = value.view(-1), 0
    for chunk in stored.chunks(itertools.repeat(torch.empty(CHUNK, dtype=torch.uint8))):
        flat[position : position + len(chunk)] = chunk
        position += len(chunk)
    return value


def is_checkpoint(folder: Path) -> bool:
    """Return whether a folder holds a ZeRO checkpoint, whole or not, rather than an export."""
    known = (folder / MANIFEST_NAME).is_file() or any(folder.glob("*_states.pt"))
    return known or trainer_folder(folder) is not None


def run_model(checkpoint: Path) -> Path:
    """Return the folder of a checkpoint's settings: ``model`` of its run, or beside the shards of others.

    Raises UserError unless a configuration is in it.
    """
    if others := trainer_folder(checkpoint):
        return others.folder
    run = RunLayout(Path(os.path.abspath(checkpoint)).parent.parent)
    if not any((run.model / name).is_file() for name in (MODEL_CONFIG, ADAPTER_CONFIG)):
        raise UserError(
            f"{checkpoint}: what it is a checkpoint of is not known: {run.model} has no {MODEL_CONFIG} or "
            f"{ADAPTER_CONFIG}; keep it in its run's folder (RUN/checkpoints/{checkpoint.name} beside "
            "RUN/model), or consolidate it there and give the export"
        )
    return run.model
