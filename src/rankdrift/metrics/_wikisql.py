"""WikiSQL's queries: read from text, compared and executed as the official library does.

salesforce/WikiSQL, lib/query.py and lib/dbengine.py (commit 7857cfd; Zhong et al., arXiv 1709.00103).
"""

from __future__ import annotations

import contextlib
import json
import re
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any

from rankdrift.errors import UserError

AGGREGATIONS = ("", "MAX", "MIN", "COUNT", "SUM", "AVG")
OPERATORS = ("=", ">", "<", "OP")

_STATEMENT = re.compile(
    r"\s*SELECT\s+(?P<selected>.*?)\s+FROM\s+table(?:\s+WHERE\s+(?P<where>.*?))?[\s;]*",
    re.IGNORECASE | re.DOTALL,
)
_AGGREGATE = re.compile(r"(?P<name>MAX|MIN|COUNT|SUM|AVG)\b\s*(?P<column>.*)", re.IGNORECASE | re.DOTALL)
_AND = re.compile(r"\s+AND\s+", re.IGNORECASE)
_NUMBER = re.compile(r"[-+]?\d*\.\d+|\d+")

Condition = tuple[int, int, str]
"""Index of the column, index of the operator, value."""


@dataclass(frozen=True)
class Query:
    """A query of WikiSQL's form over one table."""

    column: int
    aggregation: int
    conditions: tuple[Condition, ...]

    def same_form(self, other: Query) -> bool:
        """Whether both are one logical form: the order of conditions and the case of values do not count."""
        return (self.column, self.aggregation, self._condition_set()) == (
            other.column,
            other.aggregation,
            other._condition_set(),
        )

    def _condition_set(self) -> set[Condition]:
        return {(column, operator, value.lower()) for column, operator, value in self.conditions}


@dataclass(frozen=True)
class Gold:
    """A reference: the query and its table."""

    query: Query
    header: tuple[str, ...]
    types: tuple[str, ...]
    """"text" or "real", one a column."""
    rows: tuple[tuple[Any, ...], ...]


def read_gold(reference: str) -> Gold:
    """Return what the JSON of a row's ``{"sql": ..., "table": ...}`` holds, in the layout of HF's wikisql.

    Raises UserError where it is no such text.
    """
    try:
        row = json.loads(reference)
        return _gold_of(row["sql"], row["table"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            "a WikiSQL reference has to be the JSON of a row's 'sql' and 'table' in the layout of the hub's "
            f"wikisql, but is '{reference[:80]}' ({error!r})"
        ) from error


def _gold_of(sql: dict[str, Any], table: dict[str, Any]) -> Gold:
    columns = (sql["conds"][key] for key in ("column_index", "operator_index", "condition"))
    conditions = tuple(
        (column, operator, str(value)) for column, operator, value in zip(*columns, strict=True)
    )
    return Gold(
        Query(sql["sel"], sql["agg"], conditions),
        tuple(table["header"]),
        tuple(table["types"]),
        tuple(map(tuple, table["rows"])),
    )


def parse(text: str, header: Sequence[str]) -> Query | None:
    """Return the query that a text states over columns of these names; None where it states none.

    The form is ``SELECT [aggregation] column FROM table [WHERE column operator value [AND ...]]``, the
    aggregation also as ``aggregation(column)``. Case and white space do not count in key words and names; of
    columns of one name the first is meant, as in the official reader. Values are taken as they stand,
    quotation marks included; an "AND" belongs to a value unless a column's name and an operator follow.
    """
    statement = _STATEMENT.fullmatch(text)
    if statement is None:
        return None
    selected = _selected(statement["selected"], header)
    conditions = _conditions(statement["where"], header) if statement["where"] is not None else ()
    return None if selected is None or conditions is None else Query(*selected, conditions)


def _key(name: str) -> str:
    return "".join(name.lower().split())


def _selected(text: str, header: Sequence[str]) -> tuple[int, int] | None:
    """Return the column and the aggregation; a column "Max Speed" has to be written as in the header."""
    keys = [_key(name) for name in header]
    if text not in header and (aggregate := _AGGREGATE.fullmatch(text)):
        column = _key(aggregate["column"])
        inside = column[1:-1] if column.startswith("(") and column.endswith(")") else column
        for name in (column, inside):
            if name in keys:
                return keys.index(name), AGGREGATIONS.index(aggregate["name"].upper())
    return (keys.index(_key(text)), 0) if _key(text) in keys else None


def _conditions(text: str, header: Sequence[str]) -> tuple[Condition, ...] | None:
    """Return the conditions of a WHERE clause; None where it does not begin with one."""
    current = _head(text, 0, header)
    if current is None:
        return None
    found = []
    for link in _AND.finditer(text):
        column, operator, value_start = current
        following = _head(text, link.end(), header) if link.start() >= value_start else None
        if following is not None:
            found.append((column, operator, text[value_start : link.start()].strip()))
            current = following
    column, operator, value_start = current
    return (*found, (column, operator, text[value_start:].strip()))


def _head(text: str, start: int, header: Sequence[str]) -> tuple[int, int, int] | None:
    """Return column, operator and where the value begins, of the longest name at a place of the text."""
    for index in sorted(range(len(header)), key=lambda i: -len(_key(header[i]))):
        name = r"\s*".join(map(re.escape, _key(header[index])))
        found = re.compile(rf"\s*{name}\s*(=|>|<|\bOP\b)", re.IGNORECASE).match(text, start)
        if found:
            return index, OPERATORS.index(found[1].upper()), found.end()
    return None


def execute(query: Query, gold: Gold) -> list[Any]:
    """Return the column of results of a query over a table, in SQLite.

    Text is in lower case in the table and in conditions. A condition on a column of numbers is read as a
    number, commas left out, or else its first number is. Raises ValueError where it has none, and
    sqlite3.Error where SQLite refuses.
    """
    selected = f"{AGGREGATIONS[query.aggregation]}(col{query.column})"
    # Conditions on one column share its name as their parameter, so the last one's value is that of all: the
    # official library's way, kept because its published figures have it
    values = {f"col{column}": _bound(value, gold.types[column]) for column, _, value in query.conditions}
    where = " AND ".join(
        f"col{column} {OPERATORS[operator]} :col{column}" for column, operator, _ in query.conditions
    )
    with _stored(gold) as database:
        rows = database.execute(f"SELECT {selected} FROM t" + (f" WHERE {where}" if where else ""), values)
        return [result for (result,) in rows]


@contextlib.contextmanager
def _stored(gold: Gold) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(":memory:")) as database:
        columns = ", ".join(
            f"col{i} {'real' if kind == 'real' else 'text'}" for i, kind in enumerate(gold.types)
        )
        database.execute(f"CREATE TABLE t ({columns})")
        rows = [[cell.lower() if isinstance(cell, str) else cell for cell in row] for row in gold.rows]
        database.executemany(f"INSERT INTO t VALUES ({', '.join('?' * len(gold.types))})", rows)
        yield database


def _bound(value: str, kind: str) -> str | float:
    if kind != "real":
        return value.lower()
    try:
        return float(Decimal(value.replace(",", "")))
    except InvalidOperation:
        numbers = _NUMBER.findall(value)
        if not numbers:
            raise ValueError(f"no number in '{value}'") from None
        return float(numbers[0])
