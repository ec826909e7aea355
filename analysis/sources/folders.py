"""A tuned model's folder of any kind: a model, a PEFT adapter, or a sharded checkpoint of either."""

from __future__ import annotations

from pathlib import Path

from rankdrift.analysis.sources.checkpoints import CheckpointTensors, is_checkpoint, run_model
from rankdrift.analysis.sources.tensors import ADAPTER, ADAPTER_CONFIG, MODEL, TensorFolder, Tensors


def config_folder(folder: Path) -> Path:
    """Return where a folder's configuration is: in itself, or in the run of a checkpoint.

    Raises UserError for a checkpoint outside a run.
    """
    return run_model(folder) if is_checkpoint(folder) else folder


def is_adapter(folder: Path) -> bool:
    """Return whether a folder holds an adapter, or the checkpoint of one, rather than a whole model."""
    return (config_folder(folder) / ADAPTER_CONFIG).is_file()


def model_tensors(folder: Path) -> Tensors:
    """Return the tensors of a whole model."""
    return CheckpointTensors(folder, adapter=False) if is_checkpoint(folder) else TensorFolder(folder, MODEL)


def adapter_tensors(folder: Path) -> Tensors:
    """Return the tensors of an adapter."""
    return CheckpointTensors(folder, adapter=True) if is_checkpoint(folder) else TensorFolder(folder, ADAPTER)
