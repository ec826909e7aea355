"""Losses, learning rate, gradient norm, speed, memory and time over a run, as it logged them."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from rankdrift import files
from rankdrift.analysis.contract import Analysis, Params
from rankdrift.analysis.findings import Answer, Finding, Listing, Sentence
from rankdrift.analysis.formats import number
from rankdrift.analysis.sources.observations import (
    BESIDE_STEPS,
    PARTS_OF_STEPS,
    RUN_KEYS,
    times_of_runs,
    with_arms,
)
from rankdrift.analysis.sources.subjects import Subject
from rankdrift.errors import UserError
from rankdrift.layout import RunLayout

TABLE = "training_metrics"
COLUMNS = {
    "split": "train (the step's global batch), validation (mean of the tasks), train/TASK or validation/TASK",
    "loss": "nats a target token",
    "learning_rate": "of this step; NaN for validation",
    "gradient_norm": "global Euclidean norm before clipping, of what trains; NaN for validation",
    "phase": "of method.schedule, from 0; NaN without a schedule and but for train",
    "tokens_per_second": "tokens trained on a second, over all ranks; NaN for validation",
    "teraflops": "10^12 operations a second, by formula, over all ranks; NaN but for train",
    "mfu": "their share of what products of matrices reach on these ranks; NaN but for train",
    "padding": "share of what rank 0 put through the model that is no token; NaN but for train",
    "memory_gib": "largest peak of a rank: of a GPU's tensors or a process's pages, GiB; NaN but for train",
    "seconds": "of the step and its parts; NaN but for train",
    **{
        f"seconds_{part}": f"{said}; NaN where there was none"
        for part, said in (PARTS_OF_STEPS | BESIDE_STEPS).items()
    },
    "tokens": "of the task, trained on so far; NaN but for train/TASK",
    "rows": "of the task, trained on so far; NaN but for train/TASK",
}
REQUIRED = ("step", "split", "loss")


def compute(subject: Subject, params: Params) -> dict[str, pd.DataFrame]:
    """Return the table with a ``step`` column; no rows where nothing was trained (the base model)."""
    path = None if subject.run_dir is None else RunLayout(subject.run_dir).metrics
    lines = files.read_jsonl(path) if path else []
    if path is None or not lines:
        return {}
    table = pd.DataFrame(lines)
    _require(path, table)
    return {TABLE: _with_numbers(table.reindex(columns=["step", *COLUMNS]))}


def _require(path: Path, table: pd.DataFrame) -> None:
    for column in REQUIRED:
        if column not in table.columns or table[column].isna().any():
            raise UserError(f"{path}: a line has no '{column}'; restore the file or train again")


def _with_numbers(table: pd.DataFrame) -> pd.DataFrame:
    # a column that no line has would be of type object, and differ from run to run
    return table.astype({column: "float64" for column in COLUMNS if column != "split"})


TIMES = Listing(
    {
        "run": "{run}",
        "steps": "{steps:count}",
        "seconds a step": "{seconds:number}",
        "tokens / s": "{tokens_per_second:number}",
        "padding": "{padding:percent}",
        "TFLOP/s": "{teraflops:number}",
        "MFU": "{mfu:percent}",
        **{part: f"{{share_{part}:percent}}" for part in PARTS_OF_STEPS},
        "beside the steps (s)": "{beside:number}",
    },
    "Medians over the logged steps; the parts as shares of their seconds; probes, evaluations and saves "
    "together over the run",
)
HOW_TO_READ = Sentence(
    "Operations are counted by formula, of real tokens alone; MFU is their share of what square products of "
    "matrices reached on the same ranks, all at once, when the run began. Times belong to the machine and to "
    "what else it did.",
)


def _cheapest(training: pd.DataFrame) -> str | None:
    """Say which arm has the shortest steps, beside the arm with the longest ones."""
    times = with_arms(times_of_runs(training))
    if times.empty or times["arm"].nunique() < 2:
        return None
    seconds = times.groupby("arm", sort=False)["seconds"].mean()
    memory = with_arms(_memory(training)).groupby("arm", sort=False)["memory_gib"].max()
    least, most = str(seconds.idxmin()), str(seconds.idxmax())
    text = (
        f"{least} is the quickest to train: {number(seconds[least])} s a step, "
        f"{number(seconds[least] / seconds[most], 2)} of what {most} takes"
    )
    if memory.notna().all():
        text += f"; its ranks take {number(memory[least])} GiB at most, {most}'s {number(memory[most])}"
    return f"{text}. Times belong to this machine."


def _memory(training: pd.DataFrame) -> pd.DataFrame:
    """Return the most memory of each run's ranks, GiB."""
    steps = training[training["split"] == "train"]
    return steps.groupby(RUN_KEYS, sort=False)["memory_gib"].max().reset_index()


ANALYSIS = Analysis(
    name="training",
    columns={TABLE: COLUMNS},
    per="run",
    compute=compute,
    version=2,
    findings=(Finding("Time", (TABLE,), times_of_runs, (TIMES, HOW_TO_READ)),),
    answers=(Answer("cost", (TABLE,), _cheapest, "Time"),),
)
