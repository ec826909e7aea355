"""What it costs to serve the study's models: times, memory and disk, each way against the merged model.

Read from the record of ``rankdrift deploy`` in the study's folder; a study without one has empty tables.
Machine and load are in the numbers: what compares is what one benchmark measured, in the same rounds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rankdrift import files
from rankdrift.analysis.contract import Analysis, Params, Tables
from rankdrift.analysis.findings import Answer, Finding, Listing, Sentence
from rankdrift.analysis.formats import filled
from rankdrift.analysis.mathematics.statistics.rounds import (
    MIN_ROUNDS,
    interval_of_quantile,
    quantiles,
    ratio_of_medians,
)
from rankdrift.analysis.sources.subjects import Subject
from rankdrift.layout import StudyLayout

SUMMARY, CHECKS = "deployment_benchmark_summary", "deployment_checks"
TOPIC = "Deployment"
UNITS = {
    **dict.fromkeys(("first_token", "further_token", "request", "classification"), "s"),
    **dict.fromkeys(("cold_load", "adapter_load", "adapter_switch", "adapter_swap"), "s"),
    "throughput": "tokens/s",
    **dict.fromkeys(("loaded_memory", "peak_memory", "disk"), "bytes"),
}
ENOUGH = {0.95: 100, 0.99: 1000}
"""Samples without which a quantile so far out is not given."""
KEYS = ["arm", "way", "quantity", "load", "batch", "prompt_tokens"]
COLUMNS = {
    "arm": "arm of the study; base: the base model",
    "way": "base; full: a whole tuned model; merged: base and adapter in one; unmerged: the adapter beside "
    "the base; mixed: rows of a batch, or requests in flight, with different adapters",
    "engine": "what served it, on which device, in which arithmetic",
    "quantity": "first_token: from the prompt (of a server: from when it was due) to the first token; "
    "further_token: each one after; request: until the last; throughput: tokens of all rows over the time of "
    "the whole request, or of all requests; classification; cold_load: from files that are "
    "not in the kernel's cache; adapter_load, adapter_switch, adapter_swap: one more adapter beside the base,"
    " another of those there, one in another's place; loaded_memory, peak_memory: beyond the program's own; "
    "disk: weights that a server must have",
    "unit": "of the values",
    "load": "how requests came to a server: open (at random times, so many a second) or closed (so many in "
    "flight); empty of a model in this process, which answers one request at a time",
    "batch": "rows of the request; 0 where none is measured",
    "prompt_tokens": "tokens of each row's prompt; 0 where no request is measured",
    "samples": "values that were measured",
    "rounds": "rounds they are from",
    "p50": "median",
    "low": "lower end of its 95 % interval: whole rounds resampled; NaN of fewer than 8 rounds",
    "high": "upper end",
    "p95": "95th percentile; NaN of fewer than 100 values",
    "p99": "99th percentile; NaN of fewer than 1000 values",
    "reference": "what the ratio is to: the arm's merged model, else the first merged one, else the base",
    "ratio": "median over that of the reference, same request, same benchmark",
    "ratio_low": "lower end of its 95 % interval: the same rounds resampled on both sides",
    "ratio_high": "upper end",
    "flops_ratio": "ratio of floating-point operations of the matrices, from their shapes",
    "bytes_ratio": "ratio of the bytes of weights that are read, from their shapes",
    "reason": "why values are NaN; else empty",
}
CHECK_COLUMNS = {
    "check": "what was compared, before anything was timed",
    "arm": "whose",
    "value": "difference, as a part of the largest logit unless the check says otherwise",
    "limit": "what it had to be within; NaN where it is only stated",
}


def compute_all(subjects: Sequence[Subject], params: Params, tables: Path) -> Tables:
    """Return both tables; no rows where nothing was served."""
    study = StudyLayout(tables.parent)
    if not study.deployment.exists():
        return {}
    record = files.read_json(study.deployment)
    samples = pd.concat([files.read_table(study.deployment_samples), _disk(record)], ignore_index=True)
    checks = pd.DataFrame(record["checks"], columns=list(CHECK_COLUMNS))
    return {
        SUMMARY: pd.DataFrame(list(_summary(record, samples)), columns=list(COLUMNS)),
        CHECKS: checks.astype({"value": "float64", "limit": "float64"}),
    }


def _disk(record: Mapping[str, Any]) -> pd.DataFrame:
    rows = pd.DataFrame(record["disk"], columns=["arm", "way", "bytes"]).rename(columns={"bytes": "value"})
    value = rows["value"].astype(float)
    return rows.assign(quantity="disk", load="", round=0, batch=0, prompt_tokens=0, value=value)


def _summary(record: Mapping[str, Any], samples: pd.DataFrame) -> Iterator[dict[str, Any]]:
    engine = f"{record['engine']}, {record['device']}, {record['dtype']}"
    costs = {
        tuple({"load": "", **cost}[key] for key in KEYS): (cost["flops"], cost["bytes"])
        for cost in record["costs"]
    }
    groups: dict[Any, pd.DataFrame] = dict(iter(samples.groupby(KEYS, sort=False)))
    for key, rows in groups.items():
        reference = _reference(key, groups)
        yield {
            **dict(zip(KEYS, key, strict=True)),
            "engine": engine,
            "unit": UNITS[key[2]],
            **_distribution(rows),
            "reference": "" if reference is None else f"{reference[0]}, {reference[1]}",
            **_ratio(rows, None if reference is None else groups[reference]),
            **_foretold(key, reference, costs),
        }


def _reference(key: tuple[Any, ...], groups: Mapping[Any, pd.DataFrame]) -> tuple[Any, ...] | None:
    """Return what a value is compared with: its arm's merged model, else the first one, else the base."""
    arm, _, *request = key
    alike = [other for other in groups if list(other[2:]) == request]
    merged = [other for other in alike if other[1] == "merged"]
    own = [other for other in merged if other[0] == arm]
    return next(iter([*own, *merged, *(other for other in alike if other[1] == "base")]), None)


def _distribution(rows: pd.DataFrame) -> dict[str, Any]:
    values, rounds = rows["value"].to_numpy(), rows["round"].to_numpy()
    found = dict(zip((0.5, 0.95, 0.99), quantiles(values, (0.5, 0.95, 0.99)), strict=True))
    low, high = interval_of_quantile(values, rounds, 0.5)
    count = len(np.unique(rounds))
    reasons = [f"{count} rounds, fewer than {MIN_ROUNDS}"] if count < MIN_ROUNDS else []
    reasons += [
        f"p{share:.0%}".rstrip("%") + f" of {len(values)} values, fewer than {needed}"
        for share, needed in ENOUGH.items()
        if len(values) < needed
    ]
    return {
        "samples": len(values),
        "rounds": count,
        "p50": found[0.5],
        "low": low,
        "high": high,
        **{
            f"p{round(100 * share)}": found[share] if len(values) >= needed else math.nan
            for share, needed in ENOUGH.items()
        },
        "reason": "; ".join(reasons),
    }


def _ratio(rows: pd.DataFrame, others: pd.DataFrame | None) -> dict[str, float]:
    if others is None:
        return dict.fromkeys(("ratio", "ratio_low", "ratio_high"), math.nan)
    if others is rows:
        return dict.fromkeys(("ratio", "ratio_low", "ratio_high"), 1.0)
    one, other = ((side["value"].to_numpy(), side["round"].to_numpy()) for side in (rows, others))
    return dict(zip(("ratio", "ratio_low", "ratio_high"), ratio_of_medians(one, other), strict=True))


def _foretold(
    key: tuple[Any, ...], reference: tuple[Any, ...] | None, costs: Mapping[Any, tuple[float, float]]
) -> dict[str, float]:
    if key not in costs or reference not in costs:
        return {"flops_ratio": math.nan, "bytes_ratio": math.nan}
    (flops, read), (of_flops, of_read) = costs[key], costs[reference]
    return {"flops_ratio": flops / of_flops, "bytes_ratio": read / of_read}


def _written(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows with values in the units that people read: milliseconds, MiB."""
    factors = rows["unit"].map({"s": 1e3, "bytes": 2.0**-20, "tokens/s": 1.0})
    return rows.assign(**{name: rows[name] * factors for name in ("p50", "low", "high", "p95", "p99")})


def _of(*quantities: str) -> Any:
    return lambda rows: rows[rows["quantity"].isin(quantities)]


def _times(what: str, *quantities: str) -> Listing:
    return Listing(
        {
            "model": "{arm}",
            "served": "{way}",
            "{batch} at once, prompt of {prompt_tokens}": "{p50,low,high,reason:estimate}",
            "p95, {batch} at once, prompt of {prompt_tokens}": "{p95:number}",
        },
        what,
        _of(*quantities),
        by=("arm", "way"),
    )


RATIOS = Listing(
    {
        "model": "{arm}",
        "served": "{way}",
        "measured, {batch} at once, prompt of {prompt_tokens}": "{ratio,ratio_low,ratio_high:estimate}",
        "by operations, {batch} at once, prompt of {prompt_tokens}": "{flops_ratio:number}",
        "by bytes, {batch} at once, prompt of {prompt_tokens}": "{bytes_ratio:number}",
    },
    "Time of a further token over that of the merged model, with 95 % intervals, beside what the operations "
    "and bytes of the matrices alone would make it",
    lambda rows: rows[(rows["quantity"] == "further_token") & (rows["way"] != "merged")],
    by=("arm", "way"),
)
SLOWER = Sentence(
    "{arm}, {way}: with {batch} at once a further token takes {ratio,ratio_low,ratio_high:estimate} times as "
    "long as of the merged model; by its operations it would be {flops_ratio:number}, by its bytes "
    "{bytes_ratio:number}. Of all requests that were asked, this is the slowest against merged.",
    lambda rows: _slowest(rows),
    per=("arm", "way"),
)
HELD = Listing(
    {"model": "{arm}", "served": "{way}", "{quantity}": "{p50:number}"},
    "Loading (ms, from files that are not in the kernel's cache), memory and disk (MiB): medians",
    lambda rows: _named(rows, {"cold_load": "load, ms", "loaded_memory": "memory once loaded, MiB",
                               "peak_memory": "most memory, MiB", "disk": "disk, MiB"}),
    by=("arm", "way"),
)  # fmt: skip
ADAPTERS = Listing(
    {"model": "{arm}", "{quantity}": "{p50,low,high,reason:estimate}"},
    "One more adapter, another of those that are loaded, and one in another's place: milliseconds",
    lambda rows: _named(rows, {"adapter_load": "load, ms", "adapter_switch": "switch, ms",
                               "adapter_swap": "swap, ms"}),
    by=("arm",),
)  # fmt: skip
RATE = Listing(
    {
        "model": "{arm}",
        "served": "{way}",
        "{batch} at once, prompt of {prompt_tokens}": "{p50,low,high,reason:estimate}",
    },
    "Tokens a second of all rows, prompts included in the time",
    _of("throughput"),
    by=("arm", "way"),
)
HOW_TO_READ = Sentence(
    "Served by {engine}. Other machines, engines and kernels have other times; ratios carry over better than "
    "milliseconds. Every model answered in every round, in an order that was drawn; intervals resample "
    "rounds.",
)


def _slowest(rows: pd.DataFrame) -> pd.DataFrame:
    """Return of each adapter beside the base the request with the largest ratio that is shown."""
    found = rows[(rows["quantity"] == "further_token") & rows["way"].isin(["unmerged", "mixed"])]
    found = found[found["ratio_low"] > 1]
    return found.loc[found.groupby(["arm", "way"], sort=False)["ratio"].idxmax()]


def _named(rows: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    found = rows[rows["quantity"].isin(names)]
    return found.assign(quantity=found["quantity"].map(names))


def _served(rows: pd.DataFrame) -> str | None:
    """Say what an adapter beside the base costs, and whether merging costs nothing."""
    slowest = _slowest(rows[rows["way"] == "unmerged"])
    if slowest.empty:
        return None
    row = slowest.loc[[slowest["ratio"].idxmax()]]
    return filled(
        "Served beside the base model, the adapter of {arm} makes a token take "
        "{ratio,ratio_low,ratio_high:estimate} times as long as merged ({batch} at once).",
        row,
    )


ANALYSIS = Analysis(
    name="deployment",
    columns={SUMMARY: COLUMNS, CHECKS: CHECK_COLUMNS},
    per="study",
    compute_all=compute_all,
    study_files=("deployment/record.json", "deployment/samples.parquet"),
    answers=(Answer("deployment", (SUMMARY,), _served, TOPIC),),
    findings=(
        Finding(
            TOPIC,
            (SUMMARY,),
            _written,
            (
                SLOWER,
                _times("Time to the first token, ms: median and 95 % interval", "first_token"),
                _times("Time of a further token, ms", "further_token"),
                _times("Time of a classification, ms", "classification"),
                RATIOS,
                RATE,
                HELD,
                ADAPTERS,
                HOW_TO_READ,
            ),
        ),
    ),
)
