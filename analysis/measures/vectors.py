"""What tuning did to biases and norms: every stored vector of a model, before and after.

They have no spectrum, and LoRA leaves them alone unless it is told otherwise (``bias``, ``modules_to_save``).
"""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from torch import Tensor

from rankdrift.analysis.contract import Analysis, Params
from rankdrift.analysis.sources.opened_weights import weights_of
from rankdrift.analysis.sources.subjects import Subject
from rankdrift.models.families import cell_of

TABLE = "vector_updates"
COLUMNS = {
    "parameter": "name in the base model",
    "layer": "block, 0-based; -1 outside the blocks",
    "group": "attention, mlp, embed, norm or head",
    "numel": "elements",
    "base_norm": "||b0||, Euclidean",
    "update_norm": "||b - b0||",
    "relative_update_norm": "||b - b0|| / ||b0||; NaN where b0 is zero",
    "largest_change": "largest |b_i - b0_i|",
    "cosine": "b · b0 / (||b|| ||b0||); NaN where one is zero",
    "reason": "why values are NaN; else empty",
}


def compute(subject: Subject, params: Params) -> dict[str, pd.DataFrame]:
    """Return a row a vector that the checkpoint stores and its base has; none where an adapter has none."""
    if subject.tuned is None:
        return {}
    rows = [_row(name, base, tuned) for name, base, tuned in weights_of(subject).vectors()]
    return {TABLE: pd.DataFrame(rows, columns=list(COLUMNS))} if rows else {}


def _row(name: str, base: Tensor, tuned: Tensor) -> dict[str, Any]:
    before, after = base.double(), tuned.double()
    change, norm, length = after - before, float(before.norm()), float(after.norm())
    cell, nan = cell_of(name), float("nan")
    return {
        "parameter": name,
        "layer": cell.layer,
        "group": cell.group,
        "numel": before.numel(),
        "base_norm": norm,
        "update_norm": float(change.norm()),
        "relative_update_norm": float(change.norm()) / norm if norm else nan,
        "largest_change": float(torch.max(change.abs())),
        "cosine": float(before @ after) / (norm * length) if norm and length else nan,
        "reason": "" if norm and length else "a vector of zeros has no direction",
    }


ANALYSIS = Analysis(name="vectors", columns={TABLE: COLUMNS}, per="checkpoint", compute=compute)
