"""WikiSQL's execution accuracy, 0 to 1: the share of queries whose result is that of the reference.

The mean over questions. Predictions and references are those of wikisql_logical_form; a text that is no
query, or that cannot be executed, is wrong. NaN, with a warning, where a table has no rows: nothing can be
executed over it. (Zhong et al., arXiv 1709.00103)
"""

from __future__ import annotations

import logging
import math
import sqlite3
from collections.abc import Sequence

from rankdrift.errors import UserError
from rankdrift.metrics import Metric
from rankdrift.metrics._mean import mean_over_items
from rankdrift.metrics._wikisql import Gold, execute, parse, read_gold

logger = logging.getLogger(__name__)


def same_result(prediction: str, references: Sequence[str]) -> float:
    """Return 1.0 where the text's results are those of a reference, else 0.0; NaN where a table is empty."""
    golds = [read_gold(reference) for reference in references]
    if not all(gold.rows for gold in golds):
        return math.nan
    return float(any(_same_result(prediction, gold) for gold in golds))


def execution_accuracy(predictions: Sequence[str], answers: Sequence[Sequence[str]]) -> float:
    """Return the mean of :func:`same_result` over questions; NaN, with a warning, where a table is empty."""
    value = mean_over_items(same_result)(predictions, answers)
    if math.isnan(value):
        logger.warning(
            "wikisql_execution is undefined here: at least one table has no rows, so no query over it can be "
            "executed; use data with the tables' rows, or wikisql_logical_form alone"
        )
    return value


def _same_result(prediction: str, gold: Gold) -> bool:
    try:
        expected = execute(gold.query, gold)
    except (ValueError, IndexError, sqlite3.Error) as error:
        raise UserError(
            f"the reference query {gold.query} cannot be executed over its table of columns "
            f"{list(gold.header)}: {error}; correct or leave out this row"
        ) from error
    query = parse(prediction, gold.header)
    if query is None:
        return False
    try:
        return execute(query, gold) == expected
    except (ValueError, sqlite3.Error):
        return False


METRIC = Metric(
    name="wikisql_execution", reads="text", best=1.0, compute=execution_accuracy, per_item=same_result
)
