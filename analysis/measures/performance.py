"""Scores of a run's checkpoints, or of the base model: on tasks, on retention tasks and on texts.

The split that reports and the one that selects have a table each. Beside them stand what tasks score without
a model, and the environments that scores were made in.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from rankdrift import files
from rankdrift.analysis.contract import Analysis, Params, Tables
from rankdrift.analysis.measures._performance_answers import ANSWERS
from rankdrift.analysis.measures._performance_findings import FINDINGS, HEADLINE
from rankdrift.analysis.sources.averages import averages
from rankdrift.analysis.sources.observations import BASE
from rankdrift.analysis.sources.subjects import Subject
from rankdrift.errors import UserError
from rankdrift.layout import REPORTED, RunLayout

SPLITS = {"performance_metrics": REPORTED, "validation_metrics": "validation"}
"""Table -> split."""
BASELINES, ENVIRONMENTS = "baselines", "scoring_environments"
COLUMNS = {
    "task": "task; general_text for held-out text that was not trained on, TASK_prompts for a trained task's "
    "prompts as texts; retention for the mean over hellaswag, arc_challenge and winogrande, trained_tasks "
    "for that over two trained tasks or more",
    "metric": "of texts: nll (nats a token), perplexity, kl_from_base = E[KL(base || tuned)] and kl_to_base "
    "= E[KL(tuned || base)] (nats a token), top1_agreement; of retention mean_accuracy, of trained_tasks "
    "macro_average: the mean of each task's first metric / best, where higher is better and best above 0",
    "role": "trained, retention (scored, not trained on) or text",
    "value": "the metric over all items",
    "stderr": "standard error over items; NaN where it is not known. Of means over tasks sqrt(sum of "
    "squares) / tasks",
    "n": "items scored",
    "higher_is_better": "direction of the metric",
    "best": "value of perfect predictions; NaN where there is none, as of texts",
}
BASELINE_COLUMNS = {
    "task": "task that was scored on the base model",
    "metric": "its metric",
    "rule": "what answers without a model: majority (always the most frequent right answer), random",
    "value": "the metric of these answers; NaN where it is undefined",
}
ENVIRONMENT_COLUMNS = {
    "split": "split that was scored",
    "device": "where the reference model was scored",
    "canary_difference": "largest |difference| of the reference model's log-likelihoods from the stored "
    "ones, nats; NaN where it was not asked or reads other tokens",
    "canary_moved": "whether they moved by more than rounding, or a text that it writes did; NaN: not asked",
    "canary_reason": "what moved; else empty",
    "versions": "packages that scores depend on, with their versions",
    "reference_versions": "those that the stored answers were given by",
}


def compute(subject: Subject, params: Params) -> Tables:
    """Return the tables with a ``step`` column; those of a split that is not scored are left out."""
    if subject.run_dir is None:
        return {}
    run = RunLayout(subject.run_dir)
    scores = {
        split: {step: _read(run.score(step, split), step) for step in run.scored_steps(split)}
        for split in SPLITS.values()
    }
    tables = {
        table: pd.concat(_performance(step, found, run.score(step, split)) for step, found in known.items())
        for table, split in SPLITS.items()
        if (known := scores[split])
    }
    if subject.run == BASE and scores[REPORTED]:
        rows = [row for step, found in scores[REPORTED].items() for row in _baselines(step, found)]
        tables[BASELINES] = pd.DataFrame(rows, columns=["step", *BASELINE_COLUMNS])
        tables[BASELINES] = tables[BASELINES].astype({"value": "float64"})
    made = [
        _environment(step, split, found) for split, known in scores.items() for step, found in known.items()
    ]
    if made:
        tables[ENVIRONMENTS] = pd.DataFrame(made, columns=["step", *ENVIRONMENT_COLUMNS])
    return {name: table.reset_index(drop=True) for name, table in tables.items()}


def _read(path: Path, step: int) -> Mapping[str, Any]:
    scores: Mapping[str, Any] = files.read_json(path)
    if not isinstance(scores, Mapping) or "step" not in scores or "tasks" not in scores:
        raise UserError(f"{path}: not a score file; delete it and score again")
    if scores["step"] != step:
        raise UserError(f"{path}: holds the scores of step {scores['step']}; score the run again")
    return scores


def _performance(step: int, scores: Mapping[str, Any], path: Path) -> pd.DataFrame:
    """Return the rows of one score file, with the averages over its tasks."""
    try:
        rows = [
            _row(task, metric, result)
            for task, result in scores["tasks"].items()
            for metric in result["metrics"]
        ]
    except (KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{path}: not a score file ({error!r}); delete it and score again") from None
    table = _typed(rows)
    derived = [average.row(table) for average in averages(table)]
    return _typed([*rows, *derived]).assign(step=step)[["step", *COLUMNS]]


def _typed(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=list(COLUMNS))
    return table.astype(dict.fromkeys(("value", "stderr", "best"), "float64"))


def _row(task: str, metric: str, result: Mapping[str, Any]) -> dict[str, Any]:
    measured = result["metrics"][metric]
    return {
        "task": task,
        "metric": metric,
        "role": result["role"],
        "n": result["n"],
        **{name: measured[name] for name in ("value", "stderr", "higher_is_better", "best")},
    }


def _baselines(step: int, scores: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for task, result in scores["tasks"].items():
        for metric, rules in result.get("baselines", {}).items():
            for rule, value in rules.items():
                yield {"step": step, "task": task, "metric": metric, "rule": rule, "value": value}


def _environment(step: int, split: str, scores: Mapping[str, Any]) -> dict[str, Any]:
    """Return a row of what a score file says of where it was made."""
    canary = scores.get("canary") or {}
    return {
        "step": step,
        "split": split,
        "device": canary.get("device", ""),
        "canary_difference": _number(canary.get("largest_difference")),
        "canary_moved": _number(canary.get("moved")),
        "canary_reason": canary.get("reason", ""),
        "versions": _listed(canary.get("versions", {})),
        "reference_versions": _listed(canary.get("reference_versions", {})),
    }


def _number(value: float | bool | None) -> float:
    return float("nan") if value is None else float(value)


def _listed(versions: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {version}" for name, version in versions.items())


ANALYSIS = Analysis(
    name="performance",
    columns={
        **dict.fromkeys(SPLITS, COLUMNS),
        BASELINES: BASELINE_COLUMNS,
        ENVIRONMENTS: ENVIRONMENT_COLUMNS,
    },
    per="run",
    compute=compute,
    version=2,
    findings=FINDINGS,
    answers=ANSWERS,
    headline=(HEADLINE,),
)
