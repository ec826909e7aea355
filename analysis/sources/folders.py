"""A tuned model's folder of any kind: a model, a PEFT adapter, or a sharded checkpoint of either."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rankdrift import files
from rankdrift.analysis.sources.checkpoints import CheckpointTensors, is_checkpoint, run_model
from rankdrift.analysis.sources.elsewhere import is_checkpoint_elsewhere
from rankdrift.analysis.sources.tensors import (
    ADAPTER,
    ADAPTER_CONFIG,
    MODEL,
    MODEL_CONFIG,
    PROVENANCE,
    TensorFolder,
    Tensors,
)
from rankdrift.errors import UserError
from rankdrift.zero_checkpoint.manifest import Manifest
from rankdrift.zero_checkpoint.trainer_folder import trainer_folder


@dataclass(frozen=True)
class RecordedBase:
    """The base model that training recorded beside what it made of it."""

    folder: str
    digest: str
    """As ``files.weights_digest`` gives it."""


def config_folder(folder: Path) -> Path:
    """Return where a folder's configuration is: in itself, or in the run of a checkpoint.

    Raises UserError for a checkpoint outside a run.
    """
    if is_checkpoint_elsewhere(folder):
        return folder.parent.parent / "model"
    return run_model(folder) if is_checkpoint(folder) else folder


def model_config(folder: Path) -> Mapping[str, Any]:
    """Return a model's ``config.json``, or an empty mapping where there is none.

    Raises UserError where the file is anything but a JSON object.
    """
    path = config_folder(folder) / MODEL_CONFIG
    config = files.read_json(path) if path.is_file() else {}
    if not isinstance(config, dict):
        raise UserError(f"{path}: not a JSON object, but {type(config).__name__}; restore the model's own")
    return config


def recorded_base(folder: Path) -> RecordedBase | None:
    """Return the base model that a checkpoint or an export of ours was trained from; None if not recorded."""
    if trainer_folder(folder):
        return None
    if is_checkpoint(folder):
        manifest = Manifest.read(folder)
        return RecordedBase(manifest.base, manifest.base_digest)
    path = folder / PROVENANCE
    base = files.read_json(path).get("base") if path.is_file() else None
    if not isinstance(base, dict) or not isinstance(base.get("digest"), str):
        return None  # of other software
    return RecordedBase(str(base.get("folder")), base["digest"])


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter, or the checkpoint of one, rather than a whole model."""
    return (config_folder(folder) / ADAPTER_CONFIG).is_file()


def model_tensors(folder: Path) -> Tensors:
    """Return the tensors of a whole model."""
    return CheckpointTensors(folder, adapter=False) if is_checkpoint(folder) else TensorFolder(folder, MODEL)


def adapter_tensors(folder: Path) -> Tensors:
    """Return the tensors of an adapter."""
    return CheckpointTensors(folder, adapter=True) if is_checkpoint(folder) else TensorFolder(folder, ADAPTER)
