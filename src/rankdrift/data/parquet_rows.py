"""Prepared rows as a Parquet file, for readers that know no rankdrift."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pyarrow.parquet

from rankdrift.data.token_table import TokenTable

PART = 10_000
"""Rows of a row group."""


def write_parquet(path: Path, table: TokenTable) -> None:
    """Write a table's rows as Parquet: ``input_ids``, ``carries_loss``, ``label`` (-1: none), ``index``."""
    path.parent.mkdir(parents=True, exist_ok=True)
    schema = pyarrow.schema(
        {
            "input_ids": pyarrow.list_(pyarrow.int32()),
            "carries_loss": pyarrow.list_(pyarrow.bool_()),
            "label": pyarrow.int32(),
            "index": pyarrow.int64(),
        }
    )
    with pyarrow.parquet.ParquetWriter(path, schema) as writer:
        for first in range(0, len(table), PART):
            rows = table[first : first + PART]
            columns = {
                "input_ids": [row.input_ids for row in rows],
                "carries_loss": [row.carries_loss for row in rows],
                "label": table.labels[first : first + PART],
                "index": table.indices[first : first + PART],
            }
            writer.write_table(pyarrow.table(columns, schema=schema))
