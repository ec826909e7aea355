"""What a search tried before the study, what won, and how flat the value is around it.

Read from the record of the search (``search/trials.json`` in the study's folder); a study without one has
empty tables. Trials trained with other seeds than the runs of the study, and were judged on validation data.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from rankdrift import files
from rankdrift.analysis.contract import Analysis, Params, Tables
from rankdrift.analysis.findings import Finding, Listing, Sentence
from rankdrift.analysis.mathematics.statistics.flatness import share_within
from rankdrift.analysis.sources.subjects import Subject
from rankdrift.layout import StudyLayout

TRIALS, ARMS = "search_trials", "search_arms"
TOPIC = "Search of the settings"
NEAR = 0.01
"""Of the best value, in its own size: as good as the best, where no standard error over seeds is known."""
EDGE = 0.05
"""Part of a range that counts as its end."""
TRIAL_COLUMNS = {
    "arm": "arm of the study",
    "method": "its method",
    "trial": "its number, from 0; the first has the recipe's own settings if they are in the ranges",
    "setting": "dotted key of a setting that was searched; a trial has a row for each",
    "at": "its value, where it is a number",
    "chosen": "its value as text",
    "scale": "log, linear or choice: what it was searched over",
    "low": "least value of the range; NaN of choices",
    "high": "largest value of the range; NaN of choices",
    "state": "done, pruned (ended early, worse than the median), failed (cannot be trained with), open",
    "value": "mean over the search's seeds after the last step; of a pruned trial where it ended",
    "stderr": "standard error of that mean; NaN of one seed",
    "judged_by": "the logged value that decides",
    "is_better_low": "1 where small values are good, else 0",
    "best": "1 for the arm's best trial, else 0",
    "steps": "optimizer steps that were made, over all seeds",
    "seconds": "of the trial, its starts included",
    "reason": "why it failed; else empty",
}
ARM_COLUMNS = {
    "arm": "arm of the study",
    "method": "its method",
    "trials": "trials that were carried out: of all arms as many",
    "done": "trials that were carried out to their end",
    "pruned": "trials that were ended early",
    "failed": "trials that could not be trained",
    "steps": "optimizer steps of all trials: what of an equal budget an arm took",
    "seconds": "of all trials",
    "seeds": "seeds of a trial, joined by +",
    "judged_by": "the logged value that decides",
    "best": "number of the best trial",
    "settings": "its settings",
    "value": "its value",
    "stderr": "standard error over seeds; NaN of one seed",
    "own_value": "value of the recipe's own settings; NaN where they were not tried",
    "tolerance": "how far from the best a value is as good: one standard error, else 1 % of it",
    "near": "trials that were carried out to their end and are as good as the best",
    "flat": "share of the range of a search of one number within that, values in between on straight lines; "
    "NaN of several settings, or choices",
    "at_end": "settings whose best value is in the outermost 5 % of their range; else empty",
    "reason": "why values are NaN; else empty",
}


def compute_all(subjects: Sequence[Subject], params: Params, tables: Path) -> Tables:
    """Return both tables; no rows where nothing was searched."""
    path = StudyLayout(tables.parent).trials
    if not path.exists():
        return {}
    record = files.read_json(path)
    rows = pd.DataFrame(list(_trials(record)), columns=list(TRIAL_COLUMNS))
    return {
        TRIALS: rows.astype(dict.fromkeys(("at", "low", "high", "value", "stderr"), "float64")),
        ARMS: pd.DataFrame(list(_arms(record)), columns=list(ARM_COLUMNS)),
    }


def _trials(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name, arm in record["arms"].items():
        won = _best(arm["trials"], record["is_better_low"])
        for trial in arm["trials"]:
            told = {
                "arm": name,
                "method": arm["method"],
                "trial": trial["number"],
                **{key: trial[key] for key in ("state", "value", "stderr", "steps", "seconds")},
                "judged_by": record["value"],
                "is_better_low": int(record["is_better_low"]),
                "best": int(trial is won),
                "reason": trial["error"],
            }
            for key, value in trial["settings"].items():
                yield told | {"setting": key, **_place(arm["ranges"][key], value)}


def _place(span: Any, value: Any) -> dict[str, Any]:
    """Return where in what it was searched over a value is."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    place = {"at": value if is_number else math.nan, "chosen": _text(value)}
    if isinstance(span, list):
        return place | {"scale": "choice", "low": math.nan, "high": math.nan}
    return place | {"scale": "log" if span["log"] else "linear", "low": span["low"], "high": span["high"]}


def _arms(record: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    for name, arm in record["arms"].items():
        trials = [trial for trial in arm["trials"] if trial["state"] != "open"]
        won = _best(trials, record["is_better_low"])
        if won is None:
            continue
        own = [trial["value"] for trial in trials if trial["own"] and trial["state"] == "done"]
        yield {
            "arm": name,
            "method": arm["method"],
            "trials": len(trials),
            **{
                state: sum(trial["state"] == state for trial in trials)
                for state in ("done", "pruned", "failed")
            },
            **{key: sum(trial[key] for trial in trials) for key in ("steps", "seconds")},
            "seeds": "+".join(won["seeds"]),
            "judged_by": record["value"],
            "best": won["number"],
            "settings": ", ".join(f"{key}={_text(value)}" for key, value in won["settings"].items()),
            "value": won["value"],
            "stderr": _number(won["stderr"]),
            "own_value": own[0] if own else math.nan,
            **_around(arm["ranges"], trials, won, record["is_better_low"]),
        }


def _around(
    ranges: Mapping[str, Any], trials: Sequence[Mapping[str, Any]], won: Mapping[str, Any], is_low: bool
) -> dict[str, Any]:
    """Return how flat the values are around the best, and whether it is at the end of what was searched."""
    sign = 1 if is_low else -1
    tolerance = _number(won["stderr"])
    tolerance = tolerance if tolerance > 0 else NEAR * abs(won["value"])
    costs = [math.inf if trial["value"] is None else sign * trial["value"] for trial in trials]
    excess = [cost - sign * won["value"] - tolerance for cost in costs]
    ends = [key for key, span in ranges.items() if _is_at_end(span, won["settings"][key])]
    found = {
        "tolerance": tolerance,
        "near": sum(
            trial["state"] == "done" and over <= 0 for trial, over in zip(trials, excess, strict=True)
        ),
        "at_end": ", ".join(ends),
    }
    if len(ranges) > 1:
        return found | {"flat": math.nan, "reason": "several settings were searched at once"}
    ((key, span),) = ranges.items()
    if isinstance(span, list):
        return found | {"flat": math.nan, "reason": "choices have no share of a range"}
    places = [_part(span, trial["settings"][key]) for trial in trials]
    known = [
        over if trial["state"] == "done" or over > 0 else math.inf  # what was pruned is not known to be good
        for trial, over in zip(trials, excess, strict=True)
    ]
    return found | {"flat": share_within(np.array(places), np.array(known)), "reason": ""}


def _best(trials: Sequence[Any], is_low: bool) -> Any:
    done = [trial for trial in trials if trial["state"] == "done"]
    sign = 1 if is_low else -1
    return min(done, key=lambda trial: (sign * trial["value"], trial["number"]), default=None)


def _part(span: Mapping[str, Any], value: float) -> float:
    """Return where in a range a value is, from 0 to 1."""
    scaled = math.log if span["log"] else float
    low, high = scaled(span["low"]), scaled(span["high"])
    return (scaled(value) - low) / (high - low)


def _is_at_end(span: Any, value: Any) -> bool:
    return isinstance(span, dict) and not EDGE <= _part(span, value) <= 1 - EDGE


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3g}"
    return value if isinstance(value, str) else json.dumps(value)


def _number(value: float | None) -> float:
    return math.nan if value is None else value


WON = Listing(
    {
        "arm": "{arm}",
        "best settings": "{settings}",
        "{judged_by}": "{value,stderr:with_error}",
        "recipe's own settings": "{own_value:number}",
        "as good": "{near} of {done} trials",
        "share of the range": "{flat:percent}",
        "at the end of its range": "{at_end}",
    },
    "What was found for each arm, by {judged_by} with seeds {seeds}. As good: within one standard error over "
    "seeds, or with one seed within 1 % of the best",
    by=("arm",),
)
SPENT = Listing(
    {
        "arm": "{arm}",
        "trials": "{trials}",
        "to their end": "{done}",
        "pruned": "{pruned}",
        "failed": "{failed}",
        "steps": "{steps}",
        "seconds": "{seconds:number}",
    },
    "What the search took: as many trials of every arm, of which those worse than the median ended early",
    by=("arm",),
)
AT_END = Sentence(
    "Best settings at the end of their range, of {arm.size} arms: what lies beyond was not tried; search a "
    "wider range.",
    lambda rows: rows[rows["at_end"] != ""],
)
HOW_TO_READ = Sentence(
    "The best of several trials looks better than it is, since it was chosen by this value; the study's runs "
    "have other seeds, and are scored on other data. The share of the range is read between the trials on "
    "straight lines, a pruned trial counted as not as good; where few were made there it is rough.",
)
ANALYSIS = Analysis(
    name="searches",
    columns={TRIALS: TRIAL_COLUMNS, ARMS: ARM_COLUMNS},
    per="study",
    compute_all=compute_all,
    study_files=("search/trials.json",),
    findings=(Finding(TOPIC, (ARMS,), lambda rows: rows, (WON, AT_END, SPENT, HOW_TO_READ)),),
)
