"""What is analysed: one checkpoint of one run, or the base model itself, and the columns that identify it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

IDENTITY = ("run", "method", "rank", "tasks", "seed", "step")
"""The columns every table of a study begins with."""


@dataclass(frozen=True)
class Subject:
    """A checkpoint beside the base model it was tuned from."""

    run: str
    """Folder name of the run; ``base`` for the base model."""
    method: str
    """``base``, ``full`` or ``lora``."""
    rank: int
    """LoRA rank; 0 for full fine-tuning and for the base model."""
    tasks: tuple[str, ...]
    """Tasks it was trained on."""
    seed: int
    step: int
    """Optimizer step of the checkpoint; 0 for the base model."""
    base: Path
    """Hugging Face folder of the base model."""
    tuned: Path | None = None
    """Folder of a model, a PEFT adapter, or a sharded checkpoint of either; None for the base model."""
    run_dir: Path | None = None
    """The run's folder (or the study's ``base`` folder); None for a checkpoint from elsewhere."""
    initial: Path | None = None
    """The adapter before training, of a method that subtracts it from the base weights; None: beside it."""

    def identity(self) -> dict[str, Any]:
        """Return the identity columns of this checkpoint's rows, in the order of ``IDENTITY``."""
        return {
            "run": self.run,
            "method": self.method,
            "rank": self.rank,
            "tasks": "+".join(self.tasks),
            "seed": self.seed,
            "step": self.step,
        }


def base_subject(base: Path, run_dir: Path | None = None) -> Subject:
    """Return the base model as a subject of its own: run ``base``, step 0, nothing tuned."""
    return Subject(run="base", method="base", rank=0, tasks=(), seed=0, step=0, base=base, run_dir=run_dir)
