"""The tables of a study, as its other analyses wrote them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from rankdrift import files


def read_study_tables(folder: Path, names: Sequence[str]) -> dict[str, pd.DataFrame]:
    """Return those of the named tables that are there and have rows; raise UserError for a damaged one."""
    paths = {name: folder / f"{name}.parquet" for name in names}
    tables = {name: files.read_table(path) for name, path in paths.items() if path.exists()}
    return {name: table for name, table in tables.items() if len(table)}
