"""What the report's explorer shows: checkpoints, matrices and spectra, as few columns as tell the story."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from rankdrift.analysis.figures._null_spectra import noise_spectrum
from rankdrift.analysis.formats import score_name
from rankdrift.analysis.report.study import Study
from rankdrift.analysis.sources.checkpoint_summary import checkpoint_summaries
from rankdrift.analysis.sources.observations import (
    BASE,
    last_checkpoints,
    leading_metrics,
    of_blocks,
    scores_of,
    timed_steps,
    tuned_rows,
    with_arms,
)

MOST_MATRICES = 40_000
"""Rows of matrices on the page; of more, last checkpoints, then runs evenly spaced."""
POINTS = 28
"""Singular values of a spectrum, evenly spaced in the logarithm of their index."""
MOST_SPECTRA = 48
"""Runs whose spectra are on the page."""
DIGITS = 4
NOISE_DRAWS = 4


@dataclass(frozen=True)
class Quantity:
    """Something that a checkpoint or a matrix has."""

    column: str
    label: str
    better: int = 0
    """1 where large values are good, -1 where small ones are, 0 where neither is."""


@dataclass(frozen=True)
class Data:
    """All that is shown."""

    checkpoints: pd.DataFrame
    """A row a run and step: `run`, `arm`, `seed`, `step`, and a column a quantity."""
    quantities: tuple[Quantity, ...]
    matrices: pd.DataFrame
    """A row a run, step, layer and module; empty where no spectra were taken."""
    of_matrices: tuple[Quantity, ...]
    spectra: pd.DataFrame
    """A row a singular value of the middle layer's matrices, last checkpoints, beside the base and noise."""
    notes: tuple[str, ...]
    """What was left out for the size of the page."""


SUMMARIES = (
    Quantity("task_loss", "validation loss (nats a token)", -1),
    Quantity("nll_increase", "NLL increase on general text (nats a token)", -1),
    Quantity("kl_from_base", "KL from the base on general text (nats a token)", -1),
    Quantity("prompt_kl", "KL from the base on prompts (nats a token)", -1),
    Quantity("retention_drop", "fall on retention tasks", -1),
    Quantity("relative_update_norm", "size of the update, relative"),
    Quantity("sigma1_ratio", "largest singular value of the update over W0's"),
    Quantity("intruders_left", "intruder dimensions, left"),
    Quantity("intruders_right", "intruder dimensions, right"),
    Quantity("drift", "drift of the representations (1 - CKA)"),
    Quantity("seconds", "seconds a step (median)", -1),
)
MATRICES = (
    Quantity("relative_update_norm", "size of the update, relative"),
    Quantity("update_rank_share", "entropy rank of the update over that of noise"),
    Quantity("sigma1_ratio", "largest singular value of the update over W0's"),
    Quantity("overlap_left", "overlap of the leading left vectors with W0's"),
    Quantity("intruders_left", "intruder dimensions, left"),
    Quantity("intruders_right", "intruder dimensions, right"),
)


def explorer_data(study: Study) -> Data | None:
    """Return what can be explored; None of a study without a trained checkpoint."""
    checkpoints, quantities = checkpoint_quantities(study)
    if checkpoints.empty:
        return None
    notes: list[str] = []
    matrices, of_matrices = _matrices(study.table("svd_analysis_results"), notes)
    spectra = _spectra(study.table("singular_values"), study.table("svd_analysis_results"), notes)
    return Data(checkpoints, quantities, matrices, of_matrices, spectra, tuple(notes))


def checkpoint_quantities(study: Study) -> tuple[pd.DataFrame, tuple[Quantity, ...]]:
    """Return a row a trained checkpoint (`run`, `arm`, `seed`, `step`), and what its other columns are."""
    summary = checkpoint_summaries(study.tables)
    if summary.empty:
        return summary, ()
    checkpoints, scores = _with_scores(with_arms(summary), study.table("performance_metrics"))
    checkpoints = _with_seconds(checkpoints, study.table("training_metrics"))
    known = [*scores, *(each for each in SUMMARIES if each.column in checkpoints)]
    quantities = tuple(each for each in known if checkpoints[each.column].notna().any())
    return checkpoints[["run", "arm", "seed", "step", *(each.column for each in quantities)]], quantities


def _with_scores(rows: pd.DataFrame, performance: pd.DataFrame | None) -> tuple[pd.DataFrame, list[Quantity]]:
    """Return the checkpoints with a column a leading score."""
    found: list[Quantity] = []
    for number, (task, metric) in enumerate(leading_metrics(performance) if performance is not None else ()):
        scores = scores_of(performance, task, metric)  # type: ignore[arg-type]
        higher = bool(scores["higher_is_better"].iloc[0])
        column = f"score_{number}"
        values = scores[["run", "step", "value"]].rename(columns={"value": column})
        rows = rows.merge(values, on=["run", "step"], how="left")
        found.append(Quantity(column, score_name(task, metric, higher), 1 if higher else -1))
    return rows, found


def _with_seconds(rows: pd.DataFrame, training: pd.DataFrame | None) -> pd.DataFrame:
    if training is None:
        return rows
    seconds = timed_steps(training).groupby("run")["seconds"].median()
    return rows.assign(seconds=rows["run"].map(seconds).astype("float64"))


def _matrices(spectra: pd.DataFrame | None, notes: list[str]) -> tuple[pd.DataFrame, tuple[Quantity, ...]]:
    keys = ["run", "arm", "step", "layer", "module"]
    if spectra is None or tuned_rows(spectra).empty:
        return pd.DataFrame(columns=keys), ()
    rows = with_arms(of_blocks(tuned_rows(spectra)))
    share = rows["update_entropy_rank"] / rows["update_entropy_rank_null"]
    rows = rows.assign(update_rank_share=share)
    if len(rows) > MOST_MATRICES:
        rows = last_checkpoints(rows)
        notes.append("of matrices, last checkpoints alone")
    if len(rows) > MOST_MATRICES:
        runs = list(rows["run"].unique())
        kept = runs[:: math.ceil(len(rows) / MOST_MATRICES)]
        rows = rows[rows["run"].isin(kept)]
        notes.append(f"of matrices, {len(kept)} of {len(runs)} runs")
    found = tuple(each for each in MATRICES if each.column in rows and rows[each.column].notna().any())
    return rows[[*keys, *(each.column for each in found)]].reset_index(drop=True), found


def _spectra(values: pd.DataFrame | None, shapes: pd.DataFrame | None, notes: list[str]) -> pd.DataFrame:
    """Return the spectra of the middle layer at last checkpoints, those of the base, and of noise."""
    columns = ["run", "arm", "module", "kind", "index", "sigma"]
    if values is None or shapes is None:
        return pd.DataFrame(columns=columns)
    values = of_blocks(values[values["sigma"] > 0])
    if tuned_rows(values).empty:
        return pd.DataFrame(columns=columns)
    layers = sorted(values["layer"].unique())
    values = values[values["layer"] == layers[len(layers) // 2]]
    runs = list(tuned_rows(values)["run"].unique())
    if len(runs) > MOST_SPECTRA:
        kept = runs[:: math.ceil(len(runs) / MOST_SPECTRA)]
        values = values[values["run"].isin([BASE, *kept])]
        notes.append(f"of spectra, {len(kept)} of {len(runs)} runs")
    last = pd.concat([values[values["run"] == BASE], last_checkpoints(values)])
    last = with_arms(last).rename(columns={"matrix": "kind"})
    sizes = last_checkpoints(shapes).set_index(["run", "layer", "module"])
    parts = []
    for key, rows in last.groupby(["run", "module", "kind"], sort=False):
        rows = rows.sort_values("index")
        parts.append(_thinned(rows)[columns])
        if key[2] == "update":
            parts.append(_noise(rows, sizes)[columns])
    return pd.concat(parts, ignore_index=True)


def _thinned(rows: pd.DataFrame) -> pd.DataFrame:
    places = np.unique(np.geomspace(1, len(rows), POINTS).round().astype(int)) - 1
    return rows.iloc[places]


def _noise(rows: pd.DataFrame, sizes: pd.DataFrame) -> pd.DataFrame:
    """Return noise of the update's shape, rank bound and Frobenius norm; nothing where it is not known."""
    first: Any = rows.iloc[0]
    place = (first["run"], first["layer"], first["module"])
    if place not in sizes.index:
        return rows.head(0)
    size: Any = sizes.loc[[place]].iloc[0]
    unit = _unit_noise(int(size["update_rows"]), int(size["update_columns"]), int(first["rank"]))
    sigma = float(np.linalg.norm(rows["sigma"])) * np.asarray(unit)
    noise = pd.DataFrame({"index": np.arange(len(sigma)), "sigma": sigma})
    named = noise.assign(run=first["run"], arm=first["arm"], module=first["module"], kind="noise")
    return _thinned(named)


@functools.cache
def _unit_noise(rows: int, columns: int, rank: int) -> tuple[float, ...]:
    """Return the singular values of noise of Frobenius norm 1, medians over draws."""
    return tuple(np.median(noise_spectrum(rows, columns, rank, 1.0, NOISE_DRAWS), axis=0))


def as_columns(table: pd.DataFrame) -> dict[str, list[Any]]:
    """Return a table's columns for JSON: numbers to four digits, NaN as null, names by their numbers.

    >>> as_columns(pd.DataFrame({"run": ["a", "a", "b"], "value": [0.123456, float("nan"), 1.0]}))
    {'run': [['a', 'b'], [0, 0, 1]], 'value': [0.1235, None, 1.0]}
    """
    return {str(name): list(_column(table[name])) for name in table.columns}


def _column(values: pd.Series) -> Iterator[Any]:
    if pd.api.types.is_integer_dtype(values):
        yield from (int(value) for value in values)
    elif pd.api.types.is_numeric_dtype(values):
        yield from (None if value != value else float(f"{value:.{DIGITS}g}") for value in values)
    else:
        codes, names = pd.factorize(values)
        yield list(names)
        yield [int(code) for code in codes]
