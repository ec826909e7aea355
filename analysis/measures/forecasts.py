"""What a run was expected to take, in memory and on the disk, beside what it took."""

from __future__ import annotations

import math

import pandas as pd

from rankdrift import files
from rankdrift.analysis.contract import Analysis, Params
from rankdrift.analysis.findings import Finding, Listing, Sentence
from rankdrift.analysis.sources.subjects import Subject
from rankdrift.layout import RunLayout

TABLE = "forecasts"
GIB = 2**30
COLUMNS = {
    "stage": "ZeRO stage",
    "ranks": "processes that the run was planned for",
    "memory_least": "what a rank has in use at the fullest moment of a step, predicted, GiB",
    "memory_in_use": "the most that a rank had in use, measured, GiB; NaN of a run that is not done, and "
    "where the C library does not count it",
    "memory_predicted": "peak of a rank, predicted, GiB: of a GPU's tensors; resident on a CPU, whose heap "
    "keeps some of what was freed",
    "memory_measured": "the largest of a rank, GiB, resident on a CPU; NaN of a run that is not done",
    "checkpoint_predicted": "one checkpoint, GiB",
    "checkpoint_measured": "the last one's files, GiB; NaN of a run that is not done",
}


def compute(subject: Subject, params: Params) -> dict[str, pd.DataFrame]:
    """Return a row a run, of its last step; none where nothing was foretold."""
    path = None if subject.run_dir is None else RunLayout(subject.run_dir).forecast
    if path is None or not path.exists():
        return {}
    kept = files.read_json(path)
    predicted, measured = kept["predicted"], kept["measured"] or {}
    stage = predicted["stage"]
    row = {
        "step": measured.get("step", 0),
        "stage": stage,
        "ranks": predicted["batches"]["ranks"],
        "memory_least": predicted["least"][str(stage)] / GIB,
        "memory_in_use": measured.get("in_use_gib", math.nan),
        "memory_predicted": predicted["peaks"][str(stage)] / GIB,
        "memory_measured": measured.get("memory_gib", math.nan),
        "checkpoint_predicted": predicted["disk"]["checkpoint"] / GIB,
        "checkpoint_measured": (measured.get("checkpoint") or math.nan) / GIB,
    }
    return {TABLE: pd.DataFrame([row])}


def _compared(table: pd.DataFrame) -> pd.DataFrame:
    """Return the runs with what was predicted over what was measured of the same, less one."""
    rows = table.dropna(subset=["memory_measured"])
    return rows.assign(
        in_use_error=rows["memory_least"] / rows["memory_in_use"] - 1,
        memory_error=rows["memory_predicted"] / rows["memory_measured"] - 1,
        checkpoint_error=rows["checkpoint_predicted"] / rows["checkpoint_measured"] - 1,
    )


COMPARED = Listing(
    {
        "run": "{run}",
        "ZeRO": "{stage:count}",
        "ranks": "{ranks:count}",
        "memory in use at once, predicted (GiB)": "{memory_least:number}",
        "measured": "{memory_in_use:number}",
        "off by": "{in_use_error:percent}",
        "peak, predicted (GiB)": "{memory_predicted:number}",
        "peak, measured": "{memory_measured:number}",
        "peak is off by": "{memory_error:percent}",
        "checkpoint predicted (GiB)": "{checkpoint_predicted:number}",
        "its files": "{checkpoint_measured:number}",
        "is off by": "{checkpoint_error:percent}",
    },
    "Peak memory of a rank and size of a checkpoint, as predicted before the run trained and as measured",
)
HOW_TO_READ = Sentence(
    "In use at once is what was asked for and not given back at the fullest moment. The peak on a CPU is "
    "that of the process's resident set, larger by what its heap keeps of what was freed; on a GPU it is "
    "that of tensors, as is what is in use."
)
ANALYSIS = Analysis(
    name="forecasts",
    columns={TABLE: COLUMNS},
    per="run",
    compute=compute,
    findings=(Finding("Memory and disk", (TABLE,), _compared, (COMPARED, HOW_TO_READ)),),
)
