"""Copies of a study's tables for others: as Parquet or CSV, with what every column means."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow
from pyarrow.parquet import ParquetFile

from rankdrift import files
from rankdrift.analysis.report.study import read_meta, table_files
from rankdrift.layout import StudyLayout

IDENTITY_MEANINGS = {
    "run": "folder of the run, ARM-seedSEED; base for the base model",
    "method": "base, full or lora",
    "rank": "LoRA rank; 0 without an adapter",
    "tasks": "tasks trained on, joined by +",
    "seed": "seed of the run",
    "step": "optimizer step of the checkpoint",
}


@dataclass(frozen=True)
class Column:
    """A column of one of the study's tables."""

    table: str
    name: str
    kind: pyarrow.DataType
    meaning: str


def columns(table: Path) -> list[Column]:
    """Return the columns of a table and what they mean; raise UserError where it is incomplete."""
    meanings = {**IDENTITY_MEANINGS, **read_meta(table)["columns"]}
    schema = ParquetFile(table).schema_arrow
    return [Column(table.stem, each.name, each.type, meanings.get(each.name, "")) for each in schema]


def copy_tables(study: StudyLayout, folder: Path) -> list[Path]:
    """Copy all tables as Parquet; return the copies. Raises UserError where the study has none."""
    return [_copied(table, folder / table.name) for table in table_files(study)]


def write_csv(study: StudyLayout, folder: Path) -> list[Path]:
    """Write all tables as CSV, long ones too, and ``columns.csv``, what each column means; return the files.

    Raises
    ------
    UserError
        If the study has no tables, or an incomplete one.

    """
    tables = table_files(study)
    described = [column for table in tables for column in columns(table)]
    written = []
    for table in tables:
        file = folder / f"{table.stem}.csv"
        with files.replacing(file) as temporary, temporary.open("w", encoding="utf-8", newline="") as text:
            for number, rows in enumerate(_pieces(table)):
                rows.to_csv(text, header=number == 0, index=False, float_format=files.CSV_FLOAT)
        written.append(file)
    about = [(column.table, column.name, str(column.kind), column.meaning) for column in described]
    frame = pd.DataFrame(about, columns=["table", "column", "type", "meaning"])
    files.write_text(folder / "columns.csv", frame.to_csv(index=False))
    return [*written, folder / "columns.csv"]


def _copied(table: Path, copy: Path) -> Path:
    with files.replacing(copy) as temporary:
        shutil.copyfile(table, temporary)
    return copy


def _pieces(table: Path) -> Iterator[pd.DataFrame]:
    """Yield a table's rows group by group, at least once: of an empty one its columns."""
    source = ParquetFile(table)
    if not source.num_row_groups:
        yield source.read().to_pandas()
    for number in range(source.num_row_groups):
        yield source.read_row_group(number).to_pandas()
