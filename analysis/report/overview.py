"""A page over several groups: what cannot be compared, since base model or data differ, side by side."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from rankdrift import __version__, files
from rankdrift.analysis.findings import RUNS
from rankdrift.analysis.formats import MISSING, ROUNDING, number
from rankdrift.analysis.report.build import environment
from rankdrift.analysis.report.grids import Columns, Grid, grid_of
from rankdrift.analysis.report.study import Study, missing_cells, read_study
from rankdrift.analysis.report.summary import last_checkpoint_grid, last_checkpoint_note
from rankdrift.analysis.report.warnings import missing_sentence
from rankdrift.analysis.sources.observations import GENERAL_TEXT, TRAINED_TASKS
from rankdrift.layout import StudyLayout

SCORES = "performance_metrics"
ACROSS = (
    ("Score of what was trained on, at the last checkpoint: of several tasks their macro average", "score"),
    ("KL divergence from the base model on general text (nats a token), at the last checkpoint", "kl"),
)
READING = (
    "Each group has its own base model or its own data; methods are compared within a group, in its report. "
    "Here they stand side by side: mean over seeds, ± the standard deviation, (number of seeds)."
)


@dataclass(frozen=True)
class Group:
    """One group: its report and its last checkpoints."""

    name: str
    link: str
    last: Grid


@dataclass(frozen=True)
class Overview:
    """The whole page."""

    title: str
    warnings: tuple[str, ...]
    summary: str
    across: tuple[Grid, ...]
    groups: tuple[Group, ...]
    note: str
    written: str


def build_overview(root: StudyLayout, groups: Mapping[str, StudyLayout]) -> Path:
    """Write the page over groups that have tables into the study's folder; return its path."""
    known = {name: read_study(layout) for name, layout in groups.items()}
    missing = [cell for layout in groups.values() for cell in missing_cells(layout)]
    page = Overview(
        title=root.root.resolve().name,
        warnings=tuple(missing_sentence(missing)),
        summary=READING,
        across=tuple(_across(known, title, what) for title, what in ACROSS),
        groups=tuple(
            Group(name, os.path.relpath(study.layout.report, root.root), last_checkpoint_grid(study))
            for name, study in known.items()
        ),
        note=" ".join(dict.fromkeys(last_checkpoint_note(study) for study in known.values())),
        written=f"rankdrift {__version__}, {files.timestamp()}",
    )
    files.write_text(root.report, environment().get_template("overview.html.j2").render(content=page))
    return root.report


def _across(known: Mapping[str, Study], title: str, what: str) -> Grid:
    """Return one quantity: a row an arm, a column a group, its base model's value in a row of its own."""
    columns: Columns = {"arm": {arm: arm for arm in ["base", *_arms(known)]}}
    for name, study in known.items():
        columns[name] = dict(_of_arms(study, what))
    return grid_of(columns, title)


def _arms(known: Mapping[str, Study]) -> list[str]:
    return list(dict.fromkeys(arm for study in known.values() for arm in study.arms))


def _of_arms(study: Study, what: str) -> Iterator[tuple[str, str]]:
    scores, runs = study.table(SCORES), study.table(RUNS)
    if scores is None or runs is None:
        return
    rows = _of_quantity(scores, what)
    base = rows[rows["run"] == "base"]["value"]
    yield "base", number(float(base.iloc[0])) if len(base) else MISSING
    tuned = rows[rows["run"] != "base"]
    last = tuned[tuned["step"] == tuned.groupby("run")["step"].transform("max")].merge(runs[["run", "arm"]])
    for arm, of_seeds in last.groupby("arm")["value"]:
        stdev = float(of_seeds.std())
        spread = f" ± {number(stdev if stdev > ROUNDING else 0.0)}" if len(of_seeds) > 1 else ""
        yield str(arm), f"{number(float(of_seeds.mean()))}{spread} ({len(of_seeds)})"


def _of_quantity(scores: pd.DataFrame, what: str) -> pd.DataFrame:
    """Return the rows of one quantity, one a checkpoint."""
    if what == "kl":
        return scores[(scores["task"] == GENERAL_TEXT) & (scores["metric"] == "kl_from_base")]
    trained = scores[scores["task"] == TRAINED_TASKS]
    if trained.empty:  # a single task: its first metric
        trained = scores[scores["role"] == "trained"]
        trained = trained[trained["metric"] == trained["metric"].iloc[:1].squeeze()]
    return trained
