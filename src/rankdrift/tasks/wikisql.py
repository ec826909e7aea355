"""WikiSQL: the SQL query that answers a question about one table (Zhong et al. 2017, arXiv 1709.00103).

A reference holds the query and its table as JSON, on which the two official metrics work.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rankdrift import files
from rankdrift.tasks import Example, Source, Task
from rankdrift.tasks._fields import part, text, texts
from rankdrift.tasks.kinds.generation import Generation


def _example(row: Mapping[str, Any]) -> Example:
    header = ", ".join(texts(row, "table", "header"))
    query = " ".join(str(part(row, "sql", "human_readable")).split())
    return Example(
        prompt=f"Columns: {header}\nQuestion: {text(row, 'question')}\nSQL:",
        target=f" {query}",
        references=(files.canonical_json({"sql": row["sql"], "table": row["table"]}),),
        document=str(part(row, "table", "id")),
    )


TASK = Task(
    name="wikisql",
    version=1,
    kind=Generation(max_new_tokens=96),
    metrics=("wikisql_logical_form", "wikisql_execution"),
    columns=("question", "table", "sql"),
    example=_example,
    source=Source("Salesforce/wikisql", None, "wikisql"),
)
