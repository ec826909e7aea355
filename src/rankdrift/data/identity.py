"""The identity of a run whose data have been read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from rankdrift import files, registry
from rankdrift.data.token_table import TaskTables
from rankdrift.spec import Spec
from rankdrift.spec.identity import identity


def run_identity(spec: Spec, rows: TaskTables, base: Path) -> dict[str, Any]:
    """Return what makes a run the run it is (``spec.identity``), of its training rows and base folder."""
    tasks = [registry.load("task", name) for name in spec.data.tasks]
    versions = {task.name: task.version for task in tasks}
    return identity(spec, resolved_precision(spec), versions, rows.digest, files.weights_digest(base))


def resolved_precision(spec: Spec) -> str:
    """Return "fp32" or "bf16": bf16 on a GPU and fp32 on a CPU unless the recipe says otherwise."""
    if spec.training.precision != "auto":
        return spec.training.precision
    return "bf16" if torch.cuda.is_available() else "fp32"
