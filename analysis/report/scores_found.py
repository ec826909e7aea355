"""Sentences on learning and forgetting: changes of scores against the base and between runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from rankdrift.analysis.observations import (
    BASE,
    GENERAL_TEXT,
    arm_of,
    base_score,
    forgetting,
    last_checkpoints,
    leading_metrics,
    rows_of,
    scores_of,
)
from rankdrift.analysis.report.grids import number, signed
from rankdrift.analysis.report.items import Change, paired_change
from rankdrift.analysis.report.study import Study
from rankdrift.analysis.statistics.intervals import t_interval


def on_learning(study: Study) -> Iterator[str]:
    """Yield what each run gained on each task over the base, between runs and over seeds."""
    performance = study.table("performance_metrics")
    if performance is None:
        return
    for task, metric in leading_metrics(performance):
        last = last_checkpoints(scores_of(performance, task, metric)).sort_values("run")
        base = base_score(performance, task, metric)
        for row in rows_of(last):
            yield _gain(study, task, metric, row, base)
        yield from _between_runs(study, last, task, metric, f"{metric} on {task}")
        reference = base[0] if base else 0.0
        gains = {row.run: row.value - reference for row in rows_of(last)}
        yield from _over_seeds(study, last, gains, f"{'gain in ' if base else ''}{metric} on {task}")


def _gain(study: Study, task: str, metric: str, row: Any, base: tuple[float, float] | None) -> str:
    run, step, value = row.run, row.step, row.value
    text = f"{run}: {metric} on {task} is {number(value)} at step {step}"
    if base is None:
        return f"{text}; the base model was not scored."
    change = paired_change(study.layout, task, metric, (BASE, 0), (run, step))
    change = change or _unpaired(value - base[0], row.stderr, base[1])
    return f"{text}, {number(base[0])} for the base model: {_stated(change)}."


def _unpaired(value: float, first: float, second: float) -> Change:
    """Return a change whose standard error takes the two scorings as independent, which overstates it."""
    if np.isnan(first) or np.isnan(second):
        return Change(value, None, "")
    evidence = "from the two separate ones, too large for the same items"
    return Change(value, float(np.hypot(first, second)), evidence)


def _stated(change: Change) -> str:
    if change.stderr is None:
        return f"a change of {signed(change.value)}, of which no standard error is known"
    if change.value == change.stderr == 0:
        return f"no item is scored differently ({change.evidence}): no difference shown"
    verdict = f"{'more' if change.clear else 'no more'} than the choice of items may explain"
    error = f"standard error {number(change.stderr, 2)} ({change.evidence})"
    return f"a change of {signed(change.value)}, {error}, {verdict}"


def _between_runs(study: Study, last: pd.DataFrame, task: str, metric: str, what: str) -> Iterator[str]:
    """Compare every other run with the full fine-tuning of the same seed, over the same items."""
    steps = dict(zip(last["run"], last["step"], strict=True))
    for full, other in _matched(study, last):
        for seed in sorted(full.keys() & other.keys()):
            first, second = full[seed], other[seed]
            change = paired_change(study.layout, task, metric, (first, steps[first]), (second, steps[second]))
            if change is not None:
                yield f"{second} against {first}, {what}: {_stated(change)}."


def _matched(study: Study, last: pd.DataFrame) -> Iterator[tuple[dict[int, str], dict[int, str]]]:
    """Yield (full arm, other arm), each as seed -> run, over the runs that have a last checkpoint."""
    methods = dict(zip(last["run"], last["method"], strict=True))
    found = [{seed: run for seed, run in arm.items() if run in methods} for arm in study.arms().values()]
    full = [arm for arm in found if "full" in {methods[run] for run in arm.values()}]
    yield from ((reference, arm) for reference in full for arm in found if arm not in full)


def _over_seeds(study: Study, last: pd.DataFrame, values: Mapping[str, float], what: str) -> Iterator[str]:
    """State means over seeds, and differences to full fine-tuning paired by seed, where there are several."""
    for arm, runs in study.arms().items():
        yield from _interval(f"{arm}: mean {what}", [values.get(run, np.nan) for run in runs.values()])
    for full, other in _matched(study, last):
        seeds = sorted(full.keys() & other.keys())
        differences = [values[other[seed]] - values[full[seed]] for seed in seeds]
        names = " minus ".join(arm_of(arm[seeds[0]], seeds[0]) for arm in (other, full)) if seeds else ""
        yield from _interval(f"{names}, {what}: mean difference, paired by seed,", differences)


def _interval(what: str, values: Sequence[float]) -> Iterator[str]:
    observed = [value for value in values if not np.isnan(value)]
    if len(observed) > 1:
        found = t_interval(observed)
        bounds = f"[{number(found.low)}, {number(found.high)}]"
        yield f"{what} {signed(found.mean)}, 95 % t-interval {bounds} over {found.n} seeds."


def on_forgetting(study: Study) -> Iterator[str]:
    """Yield how much worse each run predicts general text than the base, and how far it moved."""
    performance = study.table("performance_metrics")
    if performance is None:
        return
    last = last_checkpoints(forgetting(performance))
    for row in rows_of(last):
        parts = list(_costs(study, row))
        if parts:
            yield f"{row.run}: on general text, {'; '.join(parts)}."
    if last["nll_increase"].notna().any():
        yield from _between_runs(study, last, GENERAL_TEXT, "nll", "NLL of general text (nats a token)")
        increases = dict(zip(last["run"], last["nll_increase"], strict=True))
        yield from _over_seeds(study, last, increases, "increase of the NLL (nats a token)")


def _costs(study: Study, row: Any) -> Iterator[str]:
    if not np.isnan(row.nll_increase):
        change = paired_change(study.layout, GENERAL_TEXT, "nll", (BASE, 0), (row.run, row.step))
        yield f"NLL per token {number(row.nll)} nats, {_stated(change or Change(row.nll_increase, None, ''))}"
    if not np.isnan(row.kl_from_base):
        error = f"standard error {number(row.kl_stderr, 2)}"
        yield f"KL from the base {number(row.kl_from_base)} nats a token, {error}"
