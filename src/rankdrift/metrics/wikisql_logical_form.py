"""WikiSQL's logical form accuracy, 0 to 1: the share of queries equal to the reference.

The mean over questions. A prediction is SQL text, a reference the JSON of a row's
``{"sql": ..., "table": ...}`` in the layout of HF's wikisql. Compared are column, aggregation and the set of
conditions with values in lower case, as by the official library; a text that is no query of this form is
wrong. (Zhong et al., arXiv 1709.00103)
"""

from __future__ import annotations

from collections.abc import Sequence

from rankdrift.metrics import Metric
from rankdrift.metrics._mean import mean_over_items
from rankdrift.metrics._wikisql import parse, read_gold


def matches(prediction: str, references: Sequence[str]) -> float:
    """Return 1.0 where the text states the query of a reference, else 0.0."""
    golds = map(read_gold, references)
    queries = ((parse(prediction, gold.header), gold.query) for gold in golds)
    return float(any(found is not None and found.same_form(query) for found, query in queries))


METRIC = Metric(
    name="wikisql_logical_form", reads="text", best=1.0, compute=mean_over_items(matches), per_item=matches
)
