"""The gradient statistics a run recorded while it trained (``probes/gradients.parquet``)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from rankdrift import files
from rankdrift.errors import UserError

COLUMNS = {
    "level": "what is summed: parameter, cell (layer x group x factor), layer, group, global (all)",
    "layer": "index of the block; -1 outside the blocks and for sums over layers",
    "group": "attention, mlp, embed, norm or head; empty for sums over groups",
    "factor": "LoRA factor A or B; empty for dense weights and for sums over factors",
    "parameter": "its name in the module tree; empty for sums over parameters",
    "numel": "elements",
    "l2_norm": "Euclidean norm of the gradient of the mean loss, before clipping",
    "mean_abs": "mean of |g| over the elements",
    "std": "standard deviation of g over the elements",
    "zero_fraction": "share of elements that are exactly 0",
}
PHASE = {"phase": "of method.schedule, from 0: what rests in it has no rows; 0 without a schedule"}
LEVELS = ("parameter", "cell", "layer", "group", "global")


def read_gradients(path: Path) -> pd.DataFrame:
    """Return ``step``, ``PHASE`` and ``COLUMNS``, a row a probed step and cell, layer, group or whole model.

    Raises
    ------
    UserError
        If the file is missing or unreadable, or lacks a column, or has an unknown level.

    """
    table = files.read_table(path)
    wanted = ["step", *COLUMNS]
    if "parameter" not in table.columns:  # a run before there were rows of single ones
        table = table.assign(parameter="")
    missing = [column for column in wanted if column not in table.columns]
    if missing:
        raise UserError(f"{path}: missing columns {', '.join(missing)}; the run must be trained again")
    unknown = sorted(set(table["level"]) - set(LEVELS))
    if unknown:
        raise UserError(f"{path}: unknown level {unknown[0]!r}; known: {', '.join(LEVELS)}")
    phase = table["phase"] if "phase" in table.columns else 0  # a run before there were any
    return table.assign(phase=phase)[["step", *PHASE, *COLUMNS]]
