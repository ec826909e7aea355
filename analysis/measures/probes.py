"""What a run's probes measured while it trained: drift, size of updates, noise and conflict of gradients."""

from __future__ import annotations

import pandas as pd

from rankdrift import files
from rankdrift.analysis.contract import Analysis, Params
from rankdrift.analysis.findings import Finding, Listing
from rankdrift.analysis.sources.observations import last_checkpoints
from rankdrift.analysis.sources.recorded_gradients import COLUMNS as GRADIENTS
from rankdrift.analysis.sources.recorded_gradients import PHASE
from rankdrift.analysis.sources.subjects import Subject
from rankdrift.errors import UserError
from rankdrift.layout import RunLayout

PLACE = {key: GRADIENTS[key] for key in ("level", "layer", "group", "factor")}
WHOLE = {key: meaning for key, meaning in PLACE.items() if key != "factor"}
COLUMNS = {
    "live_drift": PHASE
    | WHOLE
    | {
        "parameter": "the base's tensor; empty for sums",
        "update_norm": "||dW||_F of the fp32 masters",
        "base_norm": "||W0||_F",
        "relative_update_norm": "||dW||_F / ||W0||_F",
        "sigma1_ratio": "sigma_1(dW) / sigma_1(W0); NaN but for a matrix with an adapter",
        "stable_rank": "sum(sigma^2) / sigma_1^2 of dW; NaN but for a matrix with an adapter",
        "entropy_rank": "exp of the entropy of sigma / sum(sigma) of dW; NaN but for an adapted matrix",
    },
    "live_updates": PHASE
    | PLACE
    | {
        "parameter": "its name in the module tree; empty for sums",
        "update_norm": "Euclidean norm of the step's update, weight decay included",
        "weight_norm": "Euclidean norm of the weights after it",
        "ratio": "update_norm / weight_norm; NaN of weights that are 0",
    },
    "live_noise": PHASE
    | PLACE
    | {
        "micro_batches": "K of the step, over all ranks",
        "targets": "T of the step: target tokens, or rows of a classification head",
        "observed_square": "|g|^2 of the step's mean gradient",
        "gradient_square": "|G|^2 = |g|^2 - S / T, without its noise; NaN if K is 1",
        "noise_trace": "S, trace of the covariance of one target's gradient; NaN if K is 1",
    },
    "live_conflict": PHASE
    | PLACE
    | {
        "task": "i",
        "other_task": "j",
        "inner_product": "<G_i, G_j>, mean over halves; NaN where a half has no rows",
        "square": "|G_i|^2, inner product of its halves",
        "other_square": "|G_j|^2, inner product of its halves",
        "observed_square": "|G_i|^2 with its noise",
        "other_observed_square": "|G_j|^2 with its noise",
        "share": "of the gradients' elements that were read",
    },
}
"""Table -> its columns and what they mean; each is ``probes/NAME.parquet`` of a run, ``live_NAME`` here."""


def compute(subject: Subject, params: Params) -> dict[str, pd.DataFrame]:
    """Return the tables, with a ``step`` column; none of what a run has no probe of."""
    if subject.run_dir is None:
        return {}
    layout = RunLayout(subject.run_dir)
    paths = {table: layout.probe(table.removeprefix("live_")) for table in COLUMNS}
    tables = {}
    for table, path in paths.items():
        if path.exists():
            found, wanted = files.read_table(path), ["step", *COLUMNS[table]]
            if missing := [column for column in wanted if column not in found.columns]:
                raise UserError(f"{path}: missing columns {', '.join(missing)}; train the run again")
            tables[table] = found[wanted]
    return tables


def _last_drift(drift: pd.DataFrame) -> pd.DataFrame:
    """Return the whole model's drift at the last probed step of each run, with medians over adapters."""
    adapted = drift[drift["level"] == "parameter"].groupby(["run", "step"])
    medians = adapted[["stable_rank", "entropy_rank"]].median().reset_index()
    whole = drift[drift["level"] == "global"].drop(columns=["stable_rank", "entropy_rank"])
    return last_checkpoints(whole.merge(medians, on=["run", "step"], how="left"))


LAST = Listing(
    {
        "run": "{run}",
        "step": "{step:count}",
        "relative norm": "{relative_update_norm:number}",
        "stable rank": "{stable_rank:number}",
        "entropy rank": "{entropy_rank:number}",
    },
    "Distance from the base at the last probed step, of all that the run changes; ranks are medians over "
    "matrices with adapters",
)
ANALYSIS = Analysis(
    name="probes",
    columns=COLUMNS,
    per="run",
    compute=compute,
    findings=(Finding("While training", ("live_drift",), _last_drift, (LAST,)),),
)
