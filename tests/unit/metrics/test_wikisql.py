"""WikiSQL: queries read from text, compared and executed as the official library does (7857cfd)."""

from __future__ import annotations

import json
import logging
import math

import pytest

from rankdrift import registry
from rankdrift.errors import UserError
from rankdrift.metrics._wikisql import AGGREGATIONS, Query, execute, parse, read_gold

FORM, EXECUTION = (
    registry.load("metric", "wikisql_logical_form"),
    registry.load("metric", "wikisql_execution"),
)
HEADER = (
    "Player",
    "No.",
    "Max Speed",
    "Speed",
    "Years in Toronto",
    "Years in Toronto = team",
    "Wins and losses",
    "Losses",
)
TYPES = ("text", "real", "text", "real", "text", "text", "text", "real")
ROWS = (
    ("Aleksandar", "25", "x", "1200", "", "1999", "2", "1"),
    ("Muggsy", "1", "y", "900", "", "1998", "3", "1"),
    ("muggsy", "2", "z", "950", "", "1998", "4", "1"),
)


def reference(sel=0, agg=0, conds=(), rows=ROWS):
    columns, operators, values = zip(*conds, strict=True) if conds else ((), (), ())
    conditions = {"column_index": columns, "operator_index": operators, "condition": values}
    sql = {"sel": sel, "agg": agg, "conds": conditions}
    return (json.dumps({"sql": sql, "table": {"header": HEADER, "types": TYPES, "rows": rows}}),)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT  Player FROM table", Query(0, 0, ())),
        ("select count ( player ) from table where no. > 3", Query(0, 3, ((1, 1, "3"),))),
        ("SELECT COUNT Player FROM table WHERE No. = 3 ;", Query(0, 3, ((1, 0, "3"),))),
        ("SELECT Max Speed FROM table", Query(2, 0, ())),
        ("SELECT MAX Speed FROM table", Query(3, 1, ())),
        ("SELECT MAX(Speed) FROM table", Query(3, 1, ())),
        ("SELECT MIN Max Speed FROM table", Query(2, 2, ())),
        ("SELECT No. FROM table WHERE Years in Toronto = team = 1999", Query(1, 0, ((5, 0, "1999"),))),
        ("SELECT No. FROM table WHERE Player = this AND that", Query(1, 0, ((0, 0, "this AND that"),))),
        (
            "SELECT No. FROM table WHERE Wins and losses = 3 AND Player < a b",
            Query(1, 0, ((6, 0, "3"), (0, 2, "a b"))),
        ),
    ],
)
def test_queries_are_read(text, expected):
    assert parse(text, HEADER) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "Muggsy",
        "SELECT Player",
        "SELECT Coach FROM table",
        "SELECT Player FROM table WHERE",
        "SELECT Player FROM table WHERE Coach = x",
        "SELECT MEDIAN(Speed) FROM table",
    ],
)
def test_what_is_no_query_is_wrong(text):
    assert parse(text, HEADER) is None
    assert FORM.per_item(text, reference()) == EXECUTION.per_item(text, reference()) == 0.0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT Player FROM table WHERE No. > 1 AND Player = MUGGSY", 1.0),
        ("SELECT Player FROM table WHERE Player = Muggsy AND No. > 1", 1.0),
        ("SELECT Player FROM table WHERE Player = Muggsy", 0.0),
        ("SELECT Player FROM table WHERE Player = Muggsy AND No. < 1", 0.0),
        ("SELECT COUNT(Player) FROM table WHERE Player = Muggsy AND No. > 1", 0.0),
        ("SELECT No. FROM table WHERE Player = Muggsy AND No. > 1", 0.0),
        ("SELECT Player FROM table WHERE Player = Muggsy AND No. > 1.0", 0.0),  # values are text here
    ],
)
def test_logical_form(text, expected):
    assert FORM.per_item(text, reference(conds=((0, 0, "Muggsy"), (1, 1, "1")))) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("SELECT Player FROM table WHERE Speed > 900 AND No. < 3", 1.0),  # muggsy, of No. 2
        ("SELECT Player FROM table WHERE Speed = 950", 1.0),
        ("SELECT Player FROM table WHERE No. = about 2", 1.0),  # the first number of the text
        ("SELECT Player FROM table WHERE No. > 1,000", 0.0),
        ("SELECT Player FROM table WHERE No. = two", 0.0),  # the official library fails, which is wrong
        ("SELECT Player FROM table WHERE No. OP 2", 0.0),  # SQLite refuses
        ("SELECT Player FROM table WHERE Player = Muggsy", 0.0),  # two of them
        ("SELECT COUNT(Player) FROM table WHERE No. = 2", 0.0),
        # one parameter a column, so that this is No. > 1 AND No. < 1, as in the official library
        ("SELECT Player FROM table WHERE No. < 3 AND No. > 1", 0.0),
    ],
)
def test_execution(text, expected):
    assert EXECUTION.per_item(text, reference(conds=((1, 0, "2"),))) == expected


@pytest.mark.parametrize(
    ("aggregation", "column", "conditions", "results"),
    [
        ("", 1, (), [25, 1, 2]),
        ("MAX", 3, (), [1200]),
        ("MIN", 3, (), [900]),
        ("COUNT", 0, (), [3]),
        ("SUM", 1, (), [28]),
        ("AVG", 3, ((1, 2, "3"),), [925]),
        ("", 1, ((0, 0, "MUGGSY"),), [1, 2]),  # no case in text
        ("", 0, ((3, 0, "1,200"),), ["aleksandar"]),  # commas between thousands
    ],
)
def test_results_by_hand(aggregation, column, conditions, results):
    query = Query(column, AGGREGATIONS.index(aggregation), conditions)
    assert execute(query, read_gold(*reference())) == results


def test_execution_over_a_table_without_rows_is_undefined(caplog):
    empty = reference(conds=((1, 0, "2"),), rows=())
    right = "SELECT Player FROM table WHERE No. = 2"
    with caplog.at_level(logging.WARNING):
        assert math.isnan(EXECUTION.compute([right], [empty]))
    assert "no rows" in caplog.text
    assert math.isnan(EXECUTION.per_item(right, empty))
    assert FORM.compute([right], [empty]) == 1.0


@pytest.mark.parametrize("text", ["Muggsy", '{"sql": {"sel": 0}}', '"text"'])
def test_a_reference_that_is_no_row_is_shown(text):
    with pytest.raises(UserError, match="has to be the JSON of"):
        FORM.per_item("SELECT Player FROM table", (text,))


def test_a_reference_that_cannot_be_executed_is_named():
    with pytest.raises(UserError, match=r"reference query .*two.* cannot be executed"):
        EXECUTION.per_item("SELECT Player FROM table", reference(conds=((1, 0, "two"),)))
