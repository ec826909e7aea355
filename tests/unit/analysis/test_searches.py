"""What the tables, the figure and the report say of a search, against trials that are made up."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rankdrift import files
from rankdrift.analysis.comparisons.searches import ANALYSIS, ARM_COLUMNS, TRIAL_COLUMNS, compute_all
from rankdrift.analysis.contract import Params
from rankdrift.analysis.engine import run_analyses
from rankdrift.analysis.figures import NothingToDraw
from rankdrift.analysis.figures._style import FULL_COLOURS, OTHER_COLOURS
from rankdrift.analysis.figures.search import FIGURE
from rankdrift.analysis.report.topics import said
from rankdrift.analysis.sources.subjects import base_subject
from rankdrift.layout import StudyLayout

RATE = "training.learning_rate"
LOG = {"low": 1e-5, "high": 1e-3, "log": True}


def a_trial(number: int, settings: dict[str, Any], value: float | None, **more: Any) -> dict[str, Any]:
    told = {"state": "done", "stderr": None, "seeds": {"7": value}, "steps": 10, "seconds": 2.0, "error": ""}
    return {"number": number, "settings": settings, "value": value, "own": number == 0, **told, **more}


def an_arm(trials: list[dict[str, Any]], method: str = "lora", **ranges: Any) -> dict[str, Any]:
    return {"method": method, "ranges": {RATE: LOG, **ranges}, "trials": trials}


def wedge(**more: Any) -> dict[str, Any]:
    """Loss 1 + the decades from 1e-4: within 1 % of the best on 0.02 of 2 decades."""
    rates = (1e-4, 1e-5, 1e-3, 1e-4 * 10**0.5)
    return an_arm([a_trial(n, {RATE: r}, 1 + abs(math.log10(r) + 4)) for n, r in enumerate(rates)], **more)


def tables(folder: Path, is_low: bool = True, **arms: Any) -> dict[str, pd.DataFrame]:
    record = {"value": "validation/loss", "is_better_low": is_low, "arms": arms}
    files.write_json(StudyLayout(folder).trials, record)
    return compute_all([], Params(folder), folder / "tables")


def only(rows: pd.DataFrame, **where: Any) -> Any:
    for key, value in where.items():
        rows = rows[rows[key] == value]
    (row,) = rows.to_dict("records")
    return row


def test_a_study_without_a_search_has_no_rows(tmp_path: Path) -> None:
    assert compute_all([], Params(tmp_path), tmp_path / "tables") == {}


def test_columns_are_as_declared(tmp_path: Path) -> None:
    found = tables(tmp_path, lora=wedge())
    assert list(found["search_trials"]) == list(TRIAL_COLUMNS)
    assert list(found["search_arms"]) == list(ARM_COLUMNS)


def test_the_best_and_how_flat_it_is(tmp_path: Path) -> None:
    row = only(tables(tmp_path, lora=wedge())["search_arms"])
    assert (row["best"], row["value"], row["own_value"], row["trials"], row["steps"]) == (0, 1.0, 1.0, 4, 40)
    assert (row["near"], row["at_end"], row["reason"]) == (1, "", "")
    assert row["tolerance"] == pytest.approx(0.01)
    assert row["flat"] == pytest.approx(0.01)


def test_large_values_are_good_where_they_are_and_a_standard_error_is_the_measure(tmp_path: Path) -> None:
    values = {1e-5: 0.5, 1e-4: 0.9, 1e-3: 0.7}
    trials = [a_trial(n, {RATE: rate}, value, stderr=0.1) for n, (rate, value) in enumerate(values.items())]
    row = only(tables(tmp_path, is_low=False, lora=an_arm(trials))["search_arms"])
    assert (row["best"], row["value"], row["tolerance"], row["near"]) == (1, 0.9, 0.1, 1)
    assert row["flat"] == pytest.approx((0.1 / 0.4 + 0.1 / 0.2) / 2)


def test_pruned_and_failed_trials_are_counted_and_are_not_as_good(tmp_path: Path) -> None:
    trials = [
        a_trial(0, {RATE: 1e-4}, 1.0),
        a_trial(1, {RATE: 1e-4 * 10**0.5}, 1.02, state="pruned", steps=4),
        a_trial(2, {RATE: 1e-5}, None, state="failed", error="the loss is inf"),
        a_trial(3, {RATE: 2e-4}, None, state="open", steps=0),
        a_trial(4, {RATE: 1e-3}, 0.5, state="pruned", steps=6),  # whatever it had
    ]
    found = tables(tmp_path, lora=an_arm(trials))
    row = only(found["search_arms"])
    counts = {"trials": 4, "done": 1, "pruned": 2, "failed": 1, "steps": 30, "best": 0}
    assert {key: row[key] for key in counts} == counts
    # 0.01 of 0.02 on the quarter of the range from the best to the first that was pruned, nothing elsewhere
    assert row["flat"] == pytest.approx(1 / 8)
    assert only(found["search_trials"], trial=2)["reason"] == "the loss is inf"
    assert list(found["search_trials"]["state"]) == ["done", "pruned", "failed", "open", "pruned"]


def test_a_best_at_the_end_is_said_of(tmp_path: Path) -> None:
    trials = [a_trial(n, {RATE: rate}, rate) for n, rate in enumerate((1e-4, 1.1e-5, 1e-3))]
    assert only(tables(tmp_path, lora=an_arm(trials))["search_arms"])["at_end"] == RATE


def test_several_settings_and_choices_have_no_share(tmp_path: Path) -> None:
    both = an_arm(
        [a_trial(n, {RATE: 1e-4, "method.targets": t}, 1.0 + n) for n, t in enumerate((["q_proj"], None))],
        **{"method.targets": [["q_proj"], None]},
    )
    choices = {"method": "full", "ranges": {RATE: [1e-4, 1e-5]}, "trials": both["trials"]}
    choices["trials"] = [a_trial(0, {RATE: 1e-4}, 1.0), a_trial(1, {RATE: 1e-5}, 2.0)]
    found = tables(tmp_path, lora=both, full=choices)
    rows = found["search_arms"].set_index("arm")
    assert rows["flat"].isna().all()
    assert rows.loc["lora", "reason"] == "several settings were searched at once"
    assert rows.loc["full", "reason"] == "choices have no share of a range"
    first = only(found["search_trials"], arm="lora", trial=0, setting="method.targets")
    assert (first["chosen"], first["scale"], np.isnan(first["at"])) == ('["q_proj"]', "choice", True)
    assert only(found["search_trials"], arm="full", trial=1)["at"] == 1e-5


def test_the_table_is_made_again_where_the_search_has_gone_on(tmp_path: Path, tiny: Path) -> None:
    tables(tmp_path, lora=wedge())
    folder = tmp_path / "tables"

    def run() -> tuple[int, int]:
        run_analyses(["searches"], [base_subject(tiny)], folder, Params(tmp_path), lambda *said: None)
        path = folder / "search_trials.parquet"
        return len(files.read_table(path)), path.stat().st_mtime_ns

    first = run()
    assert first[0] == 4
    assert run() == first
    tables(tmp_path, lora=wedge(), full=wedge(method="full"))
    assert run()[0] == 8


def test_folders_from_anywhere_have_no_search() -> None:
    assert not ANALYSIS.of_folders


def drawn(folder: Path, **arms: Any) -> Any:
    return FIGURE.render(tables(folder, **arms))


def test_the_figure_marks_the_best_and_what_was_pruned(tmp_path: Path) -> None:
    lora = wedge()
    lora["trials"].append(a_trial(4, {RATE: 5e-4}, 3.0, state="pruned"))
    canvas = drawn(tmp_path, full=wedge(method="full"), lora=lora)
    (axes,) = canvas.axes
    assert (axes.get_xscale(), axes.get_xlabel(), axes.get_ylabel()) == ("log", RATE, "validation/loss")
    for arm, colour in (("full", FULL_COLOURS[0]), ("lora", OTHER_COLOURS[0])):
        lines = [line for line in axes.lines if line.get_color() == colour]
        (star,) = [line for line in lines if line.get_marker() == "*"]
        assert np.column_stack(star.get_data()).tolist() == [[1e-4, 1.0]], arm
        np.testing.assert_allclose(lines[0].get_xdata(), [1e-5, 1e-4, 1e-4 * 10**0.5, 1e-3])
    (hollow,) = [x for x in axes.lines if x.get_markerfacecolor() == "white" and len(x.get_xdata())]
    assert np.column_stack(hollow.get_data()).tolist() == [[5e-4, 3.0]]


def test_the_figure_has_a_panel_a_setting_and_places_for_choices(tmp_path: Path) -> None:
    trials = [a_trial(n, {RATE: 1e-4, "method.init": t}, 1.0 + n) for n, t in enumerate(("b", "a"))]
    first, second = drawn(tmp_path, lora=an_arm(trials, **{"method.init": ["a", "b"]})).axes
    assert [first.get_xlabel(), second.get_xlabel()] == [RATE, "method.init"]
    assert [text.get_text() for text in second.get_xticklabels()] == ["b", "a"]
    assert second.lines[0].get_linestyle() == "None"
    with pytest.raises(NothingToDraw, match="no trial of the search came to a value"):
        drawn(tmp_path, lora=an_arm([a_trial(0, {RATE: 1e-4}, None, state="open")]))


class Made:
    """A study of which a finding reads tables."""

    def __init__(self, found: dict[str, pd.DataFrame]) -> None:
        self.found = found

    def table(self, name: str) -> pd.DataFrame | None:
        return self.found.get(name)

    def in_order(self, rows: pd.DataFrame) -> pd.DataFrame:
        return rows


def test_the_report_says_what_won_what_it_took_and_how_to_read_it(tmp_path: Path) -> None:
    ended = [a_trial(n, {RATE: rate}, rate) for n, rate in enumerate((1e-5, 1e-3))]
    study: Any = Made(tables(tmp_path, lora=wedge(), full=an_arm(ended, method="full")))
    (finding,) = ANALYSIS.findings
    won, at_end, spent, how = said(finding, study)
    assert won.rows[0][:4] == ("lora", f"{RATE}=0.0001", "1.00", "1.00")
    assert won.rows[0][4:6] == ("1 of 4 trials", "1.00 %")
    assert won.rows[1][-1] == RATE
    assert "of 1 arms" in at_end
    assert spent.rows[0] == ("lora", "4", "4", "0", "0", "40", "8.00")
    assert "chosen by this value" in how


@pytest.fixture(scope="module")
def two_runs(make_tables: Callable[..., dict[str, pd.DataFrame]]) -> dict[str, pd.DataFrame]:
    return make_tables((("lora", 8, 42), ("full", 0, 42)), [8, 16, 24], 6)


def test_made_up_tables_of_other_tests_have_these_columns(two_runs: dict[str, pd.DataFrame]) -> None:
    assert list(two_runs["search_trials"]) == list(TRIAL_COLUMNS)
    FIGURE.render(two_runs)
