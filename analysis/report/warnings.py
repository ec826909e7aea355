"""What a reader has to know before any number: whether all scores were made alike."""

from __future__ import annotations

from collections.abc import Iterator

import pandas as pd

from rankdrift.analysis.report.study import Study, missing_cells

ENVIRONMENTS = "scoring_environments"
MOST_NAMED = 6
"""Checkpoints that are named one by one; of more the number is."""


def warnings(study: Study) -> list[str]:
    """Return sentences that stand at the top of the report; none where all was scored as it should be."""
    table = study.table(ENVIRONMENTS)
    scored = [] if table is None else [*moved(table), *different_versions(table)]
    return [*_nothing_measured(study), *missing_sentence(missing_cells(study.layout)), *scored]


def _nothing_measured(study: Study) -> Iterator[str]:
    if not study.arms:
        yield (
            "No checkpoint of a trained run has been measured: the tables have no row of one. "
            f"'rankdrift study status {study.layout.root}' says how far the runs are."
        )


def missing_sentence(cells: list[str]) -> Iterator[str]:
    """Yield which runs are missing, and so in no number."""
    if cells:
        named = "; ".join(cells[:MOST_NAMED]) + ("; ..." if len(cells) > MOST_NAMED else "")
        yield f"Cells of this study are not done, and in no number below: {len(cells)}: {named}."


def moved(table: pd.DataFrame) -> Iterator[str]:
    """Yield where a reference model that nobody trains scored otherwise than it had."""
    elsewhere = table[table["canary_moved"] == 1]
    for reason, rows in elsewhere.groupby("canary_reason", sort=False):
        first = rows.iloc[0]
        change = _difference(first["reference_versions"], first["versions"])
        versions = f"; its answers were stored with {change[0]}, here are {change[1]}" if change else ""
        yield (
            f"Scoring has moved: where {_named(rows)} was scored, a frozen reference model no longer answers "
            f"as it did ({reason}{versions}). These scores do not compare with those of other environments."
        )


def different_versions(table: pd.DataFrame) -> Iterator[str]:
    """Yield whose scores were computed by other packages than those of the first."""
    known = table[table["versions"] != ""]
    groups = [(str(versions), rows) for versions, rows in known.groupby("versions", sort=False)]
    for versions, rows in groups[1:]:
        first, first_rows = groups[0]
        change = _difference(first, versions)
        if change:
            yield (
                f"Checkpoints were scored with different packages: {_named(first_rows)} with "
                f"{change[0]}, {_named(rows)} with {change[1]}. A library alone can move scores by as much "
                "as methods differ: score all of them again in one environment."
            )


def _difference(one: str, other: str) -> tuple[str, str] | None:
    """Return what two lists of versions have that the other has not; None where they are alike."""
    before, after = one.split(", "), other.split(", ")
    only = [version for version in before if version not in after]
    here = [version for version in after if version not in before]
    return (", ".join(only) or "none of them", ", ".join(here) or "none of them") if only or here else None


def _named(rows: pd.DataFrame) -> str:
    """Return checkpoints by run and step, or how many there are.

    >>> _named(pd.DataFrame({"run": ["base", "lora", "lora"], "step": [0, 4, 4]}))
    'base, lora at step 4'
    """
    places = rows[["run", "step"]].drop_duplicates()
    if len(places) > MOST_NAMED:
        return f"{len(places)} checkpoints ({', '.join(places['run'].unique()[:MOST_NAMED])})"
    named = zip(places["run"], places["step"], strict=True)
    return ", ".join(run if run == "base" else f"{run} at step {step}" for run, step in named)
