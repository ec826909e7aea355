"""Gradients of every task's loss at a checkpoint, on the same rows at all checkpoints and for all methods.

Unlike the gradients that a run records as it trains (``gradient_analysis_results``), these are taken on many
fixed rows, without dropout, at every stored step and at the base model; the columns they share mean the same.

Spaces: ``weight`` is dL/dW of full weights, which is comparable between full fine-tuning and LoRA group by
group (of an adapter: the matrices it adapts, at their merged values, and what it saves whole). ``factor`` is
dL/dA and dL/dB of LoRA, what the online table records of a LoRA run. ``image`` is the change of W that a step
along the factors' gradients makes, s(dB A + B dA). Factors can be rescaled, (cB, A/c), without a change of
the model: ``weight`` is the same then, ``factor`` and ``image`` are not. Of DoRA and AdaLoRA there is
``weight`` alone.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import pandas as pd

from rankdrift.analysis.contract import Analysis, Params
from rankdrift.analysis.findings import Finding, Listing, Sentence, among
from rankdrift.analysis.mathematics.gradients.noise import Sample, alignment, noise_scale, reliability, sample
from rankdrift.analysis.mathematics.gradients.products import GradientSums, Shards, levels, statistics
from rankdrift.analysis.mathematics.statistics.intervals import t_quantile
from rankdrift.analysis.sources.differentiable import has_classifier, open_model
from rankdrift.analysis.sources.loss_gradients import shard_sums
from rankdrift.analysis.sources.loss_rows import read_rows
from rankdrift.analysis.sources.models import Precision
from rankdrift.analysis.sources.observations import last_checkpoints, whole_gradients
from rankdrift.analysis.sources.recorded_gradients import COLUMNS
from rankdrift.analysis.sources.subjects import Subject
from rankdrift.settings import NonNegativeInt, Section

PLACE = {
    "space": "weight (dL/dW of full weights), factor (dL/dA, dL/dB of LoRA) or image (s(dB A + B dA))",
    **{name: COLUMNS[name] for name in ("level", "layer", "group", "factor")},
}
N = {"n": "rows the task's gradient is the mean loss of"}
GRADIENTS = {"task": "whose mean loss over its rows"} | PLACE | COLUMNS | N
ALIGNMENT = {
    "inner_product": "g_i · g_j, unbiased; of a task with itself |G|², which leaves its noise out",
    "inner_product_stderr": "its jackknife standard error over the shards of both tasks",
    "cosine": "g_i · g_j / (|g_i| |g_j|), which noise draws to 0; of a task with itself |G|² / |g|², the "
    "cosine that as many other rows of it would have: the root of two tasks' product is what cosine lacks",
    "cosine_corrected": "cosine of the gradients without noise, g_i · g_j / (|G_i| |G_j|), not cut off at 1",
    "cosine_corrected_stderr": "its jackknife standard error over the shards of both tasks",
    "conflict": "whether g_i · g_j < 0 (arXiv 2001.06782)",
    "reason": "why values are NaN, or why standard errors alone are, as it then says; empty where none is",
}
PAIRS = (
    {"task": "i", "other_task": "j"}
    | PLACE
    | ALIGNMENT
    | N
    | {
        "n_other": "rows of the other task",
        "shards": "shards of rows that errors come from, the fewer of the two",
    }
)
NOISE = {
    "gradient_square": "|G|², the squared norm of the gradient without noise: it can be negative",
    "gradient_square_stderr": "its jackknife standard error over the shards",
    "noise_trace": "S, the trace of the covariance of one row's part in the gradient of the mean over "
    "targets (a ratio: long rows count more)",
    "noise_trace_stderr": "its jackknife standard error over the shards",
    "noise_scale": "S / |G|², the batch (in rows, not tokens) whose noise is as large as its gradient",
    "noise_scale_stderr": "its jackknife standard error over the shards",
    "reason": "why noise_scale, or else its standard error, is NaN; empty otherwise",
}
SCALES = (
    {"task": "whose rows"} | PLACE | NOISE | N | {"shards": "shards of rows that noise is estimated from"}
)


class Settings(Section):
    """Settings of gradients at checkpoints."""

    rows: NonNegativeInt = 32
    """Validation rows of each task on which gradients are taken; 0 is none."""
    precision: Precision = "fp32"
    """Arithmetic of the model's products; bf16 is faster on a GPU. Gradients are added up in fp32."""


def compute(subject: Subject, params: Params) -> dict[str, pd.DataFrame]:
    """Return the three tables; nothing without rows to take gradients on.

    Nor are there rows for a model whose head is not the one that the labels are for: the base model where
    they are classes, and runs of the other head in a study of both.

    Raises
    ------
    UserError
        If rows or model cannot be used, or they do not fit each other.

    """
    if params.gradient_inputs is None:
        return {}
    inputs = read_rows(params.gradient_inputs)
    if inputs.classifies != (subject.tuned is not None and has_classifier(subject.tuned)):
        return {}
    model = open_model(subject.base, subject.tuned, inputs.classifies, subject.initial)
    found = shard_sums(model, inputs, params.of(Settings).precision)
    places = [
        ({"space": space, "level": level, **dataclasses.asdict(cell)}, sums)
        for space, cells in found.items()
        for (level, cell), sums in levels(cells).items()
    ]
    return {
        table: _frame(columns, rows, inputs.shards, places)
        for table, (columns, rows) in {
            "checkpoint_gradients": (GRADIENTS, _sizes),
            "task_gradients": (PAIRS, _pairs),
            "gradient_noise": (SCALES, _noise),
        }.items()
    }


Rows = Callable[[GradientSums, Shards], Iterator[dict[str, Any]]]


def _frame(
    columns: Mapping[str, str],
    rows: Rows,
    shards: Shards,
    places: list[tuple[dict[str, Any], GradientSums]],
) -> pd.DataFrame:
    found = [place | row for place, sums in places for row in rows(sums, shards)]
    return pd.DataFrame(found, columns=list(columns))


def _sizes(sums: GradientSums, shards: Shards) -> Iterator[dict[str, Any]]:
    for task in shards.names:
        size = dataclasses.asdict(statistics(sums, shards, task))
        yield {"task": task, "n": _count(shards, task), **size}


def _pairs(sums: GradientSums, shards: Shards) -> Iterator[dict[str, Any]]:
    samples = _samples(sums, shards)
    for i in shards.names:
        for j in shards.names:
            cross = sums.gram[shards.of(i)][:, shards.of(j)]
            found = reliability(samples[i]) if i == j else alignment(cross, samples[i], samples[j])
            counts = {
                "n": _count(shards, i),
                "n_other": _count(shards, j),
                "shards": min(len(shards.of(i)), len(shards.of(j))),
            }
            yield {"task": i, "other_task": j, **counts, **dataclasses.asdict(found)}


def _noise(sums: GradientSums, shards: Shards) -> Iterator[dict[str, Any]]:
    for task, found in _samples(sums, shards).items():
        counts = {"n": _count(shards, task), "shards": len(shards.of(task))}
        yield {"task": task, **counts, **dataclasses.asdict(noise_scale(found))}


def _samples(sums: GradientSums, shards: Shards) -> dict[str, Sample]:
    """Return |G|² and S of each task."""
    return {
        task: sample(
            sums.gram[np.ix_(shards.of(task), shards.of(task))], shards.sizes(task), shards.targets_of(task)
        )
        for task in shards.names
    }


def _count(shards: Shards, task: str) -> int:
    return int(shards.sizes(task).sum())


def _alignments(pairs: pd.DataFrame) -> pd.DataFrame:
    """Return the pairs of tasks with the verdict of their cosine's error, by Student's t over shards."""
    rows = last_checkpoints(whole_gradients(pairs)).query("task < other_task")
    cosine, error = rows["cosine_corrected"], rows["cosine_corrected_stderr"]
    clear = cosine.abs() > rows["shards"].map(t_quantile) * error
    verdict = np.where(clear, np.where(cosine < 0, "a conflict", "aligned"), "no direction shown")
    return rows.assign(verdict=np.where(cosine.isna() | error.isna(), rows["reason"], verdict))


def _scales(noise: pd.DataFrame) -> pd.DataFrame:
    """Return the gradients with whether their squared norm is `told` from 0."""
    rows = last_checkpoints(whole_gradients(noise))
    sizes = " to ".join(dict.fromkeys(map(str, (rows["n"].min(), rows["n"].max()))))
    told = rows["gradient_square"] > rows["gradient_square_stderr"] * rows["shards"].map(t_quantile)
    return rows.assign(told=told, untold=~told, sizes=sizes)


TOPIC = "Gradients of the tasks"
ALIGNMENTS = Listing(
    {
        "run": "{run}",
        "tasks": "{task} with {other_task}",
        "cosine ± standard error": "{cosine_corrected,cosine_corrected_stderr:with_error}",
        "as observed": "{cosine:number}",
        "verdict": "{verdict}",
    },
    "Cosine of two tasks' gradients, corrected for their noise",
    by=("run", "task", "other_task"),
)
NOISE_SCALES = Listing(
    {"run": "{run}", "{task}": "{noise_scale,noise_scale_stderr:with_error}"},
    "Noise scale of each task's gradient, in rows ± standard error: a batch of that size has as much noise "
    "as gradient",
    lambda rows: rows[rows["told"]],
)
UNTOLD = Sentence(
    "Of {task.size} gradients (a run and task each, {sizes} rows), {untold.sum} are not told from 0 by their "
    "squared norm at 95 % (Student's t over shards): their noise scale is not known, and not given.",
    lambda rows: among(rows, rows["untold"].any()),
)
FINDINGS = (
    Finding(TOPIC, ("task_gradients",), _alignments, (ALIGNMENTS,)),
    Finding(TOPIC, ("gradient_noise",), _scales, (NOISE_SCALES, UNTOLD)),
)
ANALYSIS = Analysis(
    name="checkpoint_gradients",
    columns={"checkpoint_gradients": GRADIENTS, "task_gradients": PAIRS, "gradient_noise": SCALES},
    per="checkpoint",
    compute=compute,
    settings=Settings,
    rows="gradient_inputs",
    version=3,
    findings=FINDINGS,
)
