"""Folders that others write with DeepSpeed: the Hugging Face Trainer's ``checkpoint-N``, accelerate's states.

Beside the model's files lies ``latest``, which names the folder of shards below (``global_stepN``, or
``pytorch_model``). The fp32 masters are in the shards alone: a ``model.safetensors`` beside them, where there
is one, is rounded to the format of the training.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from rankdrift.zero_checkpoint.manifest import MANIFEST_NAME

SETTINGS = ("config.json", "adapter_config.json")


@dataclass(frozen=True)
class TrainerFolder:
    """A checkpoint that was not written by a run of ours."""

    folder: Path
    """The model's or adapter's settings, the tokenizer."""
    shards: Path
    """What ``engine.save_checkpoint`` wrote."""

    @property
    def step(self) -> int:
        """The step its name ends in (``checkpoint-500``, ``global_step500``); 0 where none does."""
        for name in (self.folder.name, self.shards.name):
            if found := re.search(r"(\d+)$", name):
                return int(found[1])
        return 0


def trainer_folder(folder: Path) -> TrainerFolder | None:
    """Return what a folder, or a folder of shards in one, is; None for our own runs and no checkpoint."""
    latest = folder / "latest"
    if latest.is_file():
        below = folder / latest.read_text(encoding="utf-8").strip()
        found = TrainerFolder(folder, below)
    elif any((folder.absolute().parent / name).is_file() for name in SETTINGS):
        found = TrainerFolder(folder.absolute().parent, folder)
    else:
        return None
    ours = (found.shards / MANIFEST_NAME).exists()
    return found if not ours and any(found.shards.glob("*_states.pt")) else None
