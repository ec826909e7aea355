"""What a report is made from: the study's complete tables and what each run says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd
from pyarrow.parquet import ParquetFile

from rankdrift import files
from rankdrift.analysis.findings import RUNS
from rankdrift.analysis.sources.observations import arm_of, rows_of, tuned_rows
from rankdrift.analysis.sources.subjects import IDENTITY
from rankdrift.errors import UserError
from rankdrift.layout import RunLayout, StudyLayout

LONGEST, MOST_ROWS = "singular_values", 1_000_000
"""The table with a row a singular value of every checkpoint, and the rows up to which long tables are read
whole."""
LONG = frozenset({LONGEST, "intruder_dimensions", "subspace_drift"})
"""Tables of many rows a matrix, whose last checkpoints alone are shown."""


@dataclass(frozen=True)
class RunFacts:
    """The JSON files of one run, each empty where the run has none."""

    name: str
    spec: Mapping[str, Any]
    environment: Mapping[str, Any]
    status: Mapping[str, Any]
    ds_config: Mapping[str, Any]
    facts: Mapping[str, Any]
    """What was trained, on what."""


@dataclass(frozen=True)
class Study:
    """A study as it was read."""

    layout: StudyLayout
    recipe: Mapping[str, Any]
    tables: Mapping[str, pd.DataFrame]
    metas: Mapping[str, Mapping[str, Any]]
    """The metadata of each table."""
    runs: tuple[RunFacts, ...]

    def table(self, name: str) -> pd.DataFrame | None:
        """Return a table, or that of its runs; None where the study has none or it is empty."""
        table = self._runs if name == RUNS else self.tables.get(name)
        return None if table is None or table.empty else table

    def of_checkpoints(self) -> list[pd.DataFrame]:
        """Return the tables whose rows are each of one checkpoint; others compare runs or arms."""
        return [table for table in self.tables.values() if set(IDENTITY) <= set(table.columns)]

    @cached_property
    def arms(self) -> Mapping[str, Mapping[int, str]]:
        """Arm -> seed -> run, over all trained runs of the tables."""
        identity = ["run", "method", "rank", "seed"]
        known = pd.concat([tuned_rows(table)[identity].drop_duplicates() for table in self.of_checkpoints()])
        found: dict[str, dict[int, str]] = {}
        for row in rows_of(known.drop_duplicates().sort_values(["method", "rank", "run"])):
            found.setdefault(arm_of(row.run, row.seed), {})[int(row.seed)] = row.run
        return {arm: dict(sorted(runs.items())) for arm, runs in found.items()}

    def in_order(self, rows: pd.DataFrame) -> pd.DataFrame:
        """Return rows of runs, or else of arms, in the order of the arms and their seeds."""
        key = "run" if "run" in rows.columns else "arm"
        place = {name: number for number, name in enumerate(self._runs[key].unique())}
        return (
            rows.sort_values(key, key=lambda names: names.map(place), kind="stable") if key in rows else rows
        )

    @property
    def _runs(self) -> pd.DataFrame:
        found = [(run, arm, seed) for arm, runs in self.arms.items() for seed, run in runs.items()]
        return pd.DataFrame(found, columns=["run", "arm", "seed"])


def missing_cells(layout: StudyLayout) -> list[str]:
    """Return the cells that are planned and not done, each with what became of it; none without a plan."""
    planned = files.read_json(layout.cells) if layout.cells.exists() else []
    found = []
    for tree in planned:
        run = layout.run(tree["run"])
        record = _read_if_there(run.cell)
        if record.get("state") != "done":
            why = f": {record['error']}" if record.get("error") else ""
            found.append(f"{tree['name']} ({record.get('state', 'not begun')}{why})")
    return found


def read_study(layout: StudyLayout) -> Study:
    """Read a study's folder; raise UserError where it has no tables or an incomplete one."""
    names = [path.stem for path in table_files(layout)]
    metas = {name: read_meta(layout.table(name)) for name in names}
    study = Study(
        layout=layout,
        recipe=_read_if_there(layout.spec),
        tables={name: _read_table(layout.table(name), metas[name]) for name in names},
        metas=metas,
        runs=tuple(_read_run(layout.run(name), name) for name in layout.run_names()),
    )
    if not study.of_checkpoints():
        raise UserError(
            f"{layout.tables}: no table of checkpoints, only of the study as a whole ({', '.join(names)}); "
            f"run 'rankdrift analyze --study {layout.root}'"
        )
    return study


def table_files(layout: StudyLayout) -> list[Path]:
    """Return the study's Parquet tables; raise UserError where there is none."""
    found = sorted(layout.tables.glob("*.parquet"))
    if not found:
        raise UserError(
            f"{layout.tables}: no tables to report on; run 'rankdrift analyze --study {layout.root}' first, "
            "or give the folder of a study, the one that holds 'tables'"
        )
    return found


def fact_files(layout: StudyLayout) -> list[Path]:
    """Return the JSON files a report quotes, those that exist."""
    runs = [layout.run(name) for name in layout.run_names()]
    files = [
        layout.spec,
        layout.cells,
        *(file for run in runs for file in _fact_files(run)),
        *(run.cell for run in runs),
    ]
    return [file for file in files if file.exists()]


def _read_table(path: Path, meta: Mapping[str, Any]) -> pd.DataFrame:
    long = path.stem in LONG and meta.get("rows", 0) > MOST_ROWS
    table = _last_checkpoints(path) if long else files.read_table(path)
    missing = [column for column in IDENTITY if column not in table]
    if missing and not _of_whole_study(meta):
        raise UserError(
            f"{path}: no column {', '.join(missing)}; a table of a study begins with {', '.join(IDENTITY)}"
        )
    return table


def _last_checkpoints(path: Path) -> pd.DataFrame:
    """Return the rows of the base model and of every run's last step, piece by piece as the table was joined.

    Of singular values only those of the middle one of the layers: what a figure can show.
    """
    pieces = ParquetFile(path)
    keys = ["run", "step", "layer"]
    places = [
        pieces.read_row_group(number, columns=keys).to_pandas().drop_duplicates()
        for number in range(pieces.num_row_groups)
    ]
    every = pd.concat(places)
    last = every.groupby("run")["step"].max()
    layers = sorted(set(every["layer"]) - {-1})
    found = []
    for number, place in enumerate(places):
        if (place["step"] == place["run"].map(last)).any():
            rows = pieces.read_row_group(number).to_pandas()
            wanted = rows["step"] == rows["run"].map(last)
            if path.stem == LONGEST:
                wanted &= rows["layer"] == layers[len(layers) // 2]
            found.append(rows[wanted])
    return pd.concat(found, ignore_index=True)


def _of_whole_study(meta: Mapping[str, Any]) -> bool:
    """Whether a table was made in one piece from all checkpoints; such a table brings its own columns."""
    return set(meta.get("parts", {})) == {"study"}


def read_meta(path: Path) -> dict[str, Any]:
    """Return the metadata of a table; raise UserError where it is missing: the table is not complete."""
    meta = path.with_suffix(".meta.json")
    if not meta.exists():
        raise UserError(
            f"{meta}: missing, so that the table beside it is not complete; run the analysis again"
        )
    return dict(files.read_json(meta))


def _read_run(run: RunLayout, name: str) -> RunFacts:
    return RunFacts(name, *(_read_if_there(file) for file in _fact_files(run)))


def _fact_files(run: RunLayout) -> tuple[Path, ...]:
    return run.spec, run.environment, run.status, run.ds_config, run.facts


def _read_if_there(path: Path) -> dict[str, Any]:
    return dict(files.read_json(path)) if path.exists() else {}
