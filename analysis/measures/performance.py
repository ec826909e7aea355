"""Scores of a run's checkpoints, or of the base model, on the tasks and on general text."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from rankdrift import files
from rankdrift.analysis.contract import Analysis, Params
from rankdrift.analysis.measures._performance_findings import FINDINGS, HEADLINE
from rankdrift.analysis.sources.subjects import Subject
from rankdrift.errors import UserError
from rankdrift.layout import RunLayout, steps_in

TABLE = "performance_metrics"
COLUMNS = {
    "task": "task, or general_text for held-out text that was not trained on",
    "metric": "of general_text: nll (nats a token), perplexity, kl_from_base = E[KL(base || tuned)] and "
    "kl_to_base = E[KL(tuned || base)] (nats a token), top1_agreement",
    "value": "the metric over all items",
    "stderr": "standard error over items; NaN where the metric is not a mean over items",
    "n": "items scored",
    "higher_is_better": "direction of the metric",
}


def compute(subject: Subject, params: Params) -> dict[str, pd.DataFrame]:
    """Return the table with a ``step`` column; no rows where nothing is scored yet."""
    if subject.run_dir is None:
        return {}
    run = RunLayout(subject.run_dir)
    rows = [row for step in steps_in(run.scores, ".json") for row in _rows(run.score(step), step)]
    if not rows:
        return {}
    table = pd.DataFrame(rows, columns=["step", *COLUMNS])
    return {TABLE: table.astype({"value": "float64", "stderr": "float64"})}


def _rows(path: Path, step: int) -> Iterator[dict[str, Any]]:
    scores = files.read_json(path)
    try:
        if scores["step"] != step:
            raise UserError(f"{path}: holds the scores of step {scores['step']}; score the run again")
        for task, result in scores["tasks"].items():
            yield from (_row(step, task, metric, result) for metric in result["metrics"])
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a score file ({error!r}); delete it and score again") from None


def _row(step: int, task: str, metric: str, result: Mapping[str, Any]) -> dict[str, Any]:
    measured = result["metrics"][metric]
    return {
        "step": step,
        "task": task,
        "metric": metric,
        "value": measured["value"],
        "stderr": measured["stderr"],
        "n": result["n"],
        "higher_is_better": measured["higher_is_better"],
    }


ANALYSIS = Analysis(
    name="performance",
    columns={TABLE: COLUMNS},
    per="run",
    compute=compute,
    findings=FINDINGS,
    headline=(HEADLINE,),
)
