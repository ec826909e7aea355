"""Adapters of a trained one's shape with other values: many that can be told apart, where there is one."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "adapter_model.safetensors"
SIZE = 0.02
"""Root mean square of B's elements where the trained B is zero."""


def plant(adapter: Path, folder: Path, seed: int) -> Path:
    """Write an adapter with drawn B, as large as the trained one matrix by matrix; return its folder.

    A stays, and so does the speed: only the values differ.
    """
    folder.mkdir(parents=True)
    for path in adapter.iterdir():
        if path.suffix == ".json":
            shutil.copy(path, folder / path.name)
    generator = torch.Generator().manual_seed(seed)
    tensors = load_file(adapter / WEIGHTS)
    for name in sorted(name for name in tensors if ".lora_B." in name or ".lora_embedding_B" in name):
        drawn = torch.randn(tensors[name].shape, generator=generator)
        size = float(tensors[name].float().square().mean().sqrt()) or SIZE
        tensors[name] = (size * drawn).to(tensors[name].dtype)
    save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
    return folder
