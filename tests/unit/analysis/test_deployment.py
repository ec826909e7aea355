"""The table of deployment, from a record as 'rankdrift deploy' writes it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from rankdrift.analysis.comparisons.deployment import ANALYSIS, CHECKS, SUMMARY
from rankdrift.analysis.contract import Params
from rankdrift.analysis.formats import MISSING
from rankdrift.analysis.report.grids import Grid
from rankdrift.analysis.report.topics import said
from rankdrift.layout import StudyLayout
from rankdrift.serving.record import COLUMNS, Checked, Measured, write_record

ROUNDS, EACH = 12, 9
SPEED = {"base": 1.0, "merged": 1.0, "unmerged": 1.5}
ENGINE = {"engine": "transformers", "device": "CPU", "dtype": "float32"}


def samples() -> pd.DataFrame:
    """A further token of 10 ms, half as much again with the adapter beside the base; rounds differ by far."""
    generator = np.random.default_rng(0)
    machine = np.exp(generator.normal(0, 0.3, ROUNDS))
    rows: list[tuple[Any, ...]] = []
    for way, factor in SPEED.items():
        arm = "base" if way == "base" else "lora"
        for number in range(ROUNDS):
            size = 0.01 * factor * machine[number]
            noise = np.exp(generator.normal(0, 0.01, EACH))
            rows += [(number, arm, way, "further_token", "", 1, 32, size * each) for each in noise]
        rows += [(number, arm, way, "cold_load", "", 0, 0, 2.0) for number in range(3)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


@pytest.fixture
def tables(tmp_path: Path) -> dict[str, pd.DataFrame]:
    study = StudyLayout(tmp_path)
    costs = [
        {"arm": arm, "way": way, "quantity": "further_token", "batch": 1, "prompt_tokens": 32, **cost}
        for arm, way, cost in (
            ("lora", "merged", {"flops": 100.0, "bytes": 50.0}),
            ("lora", "unmerged", {"flops": 104.0, "bytes": 51.0}),
        )
    ]
    disk = [{"arm": "lora", "way": way, "bytes": size} for way, size in (("merged", 400), ("unmerged", 410))]
    checks = [Checked("merged against unmerged", "lora", 1e-6, 1e-5), Checked("stated", "lora", 0.5, None)]
    write_record(study, ENGINE, Measured(checks, samples(), costs, disk))
    found = ANALYSIS.compute_all([], Params(tmp_path), study.tables)  # type: ignore[misc]
    assert set(found) == set(ANALYSIS.columns)
    return found


def of(table: pd.DataFrame, way: str, quantity: str) -> Any:
    (row,) = table[(table["way"] == way) & (table["quantity"] == quantity)].itertuples()
    return row


def test_the_columns_are_those_that_are_declared(tables: dict[str, pd.DataFrame]) -> None:
    for name, columns in ANALYSIS.columns.items():
        assert list(tables[name].columns) == list(columns)


def test_ratios_are_to_the_merged_model_in_the_same_rounds(tables: dict[str, pd.DataFrame]) -> None:
    unmerged, base = (of(tables[SUMMARY], way, "further_token") for way in ("unmerged", "base"))
    assert unmerged.reference == base.reference == "lora, merged"
    assert unmerged.ratio_low < 1.5 < unmerged.ratio_high
    assert unmerged.ratio_high - unmerged.ratio_low < 0.1
    assert unmerged.high - unmerged.low > 0.1 * unmerged.p50  # the machine, which the ratio does not see
    assert base.ratio_low < 1 < base.ratio_high
    merged = of(tables[SUMMARY], "merged", "further_token")
    assert (merged.ratio, merged.ratio_low, merged.ratio_high) == (1, 1, 1)


def test_medians_are_those_of_all_samples(tables: dict[str, pd.DataFrame]) -> None:
    known = samples()
    values = known[(known["way"] == "unmerged") & (known["quantity"] == "further_token")]["value"]
    row = of(tables[SUMMARY], "unmerged", "further_token")
    assert row.p50 == np.quantile(values, 0.5, method="inverted_cdf")
    assert (row.samples, row.rounds) == (ROUNDS * EACH, ROUNDS)
    assert row.p95 == np.quantile(values, 0.95, method="inverted_cdf")


def test_what_too_few_samples_do_not_say_is_left_out_with_the_reason(
    tables: dict[str, pd.DataFrame],
) -> None:
    row, load = of(tables[SUMMARY], "merged", "further_token"), of(tables[SUMMARY], "merged", "cold_load")
    assert math.isnan(row.p99)
    assert row.reason == "p99 of 108 values, fewer than 1000"
    assert math.isnan(load.low)
    assert load.reason.startswith("3 rounds, fewer than 8; p95 of 3 values, fewer than 100")


def test_what_the_shapes_foretell_stands_beside(tables: dict[str, pd.DataFrame]) -> None:
    row, base = of(tables[SUMMARY], "unmerged", "further_token"), of(tables[SUMMARY], "base", "further_token")
    assert (row.flops_ratio, row.bytes_ratio) == (1.04, 1.02)
    assert math.isnan(base.flops_ratio)
    disk = of(tables[SUMMARY], "unmerged", "disk")
    assert (disk.p50, disk.unit, disk.ratio) == (410, "bytes", 410 / 400)


def test_checks_are_a_table(tables: dict[str, pd.DataFrame]) -> None:
    checks = tables[CHECKS].set_index("check")
    assert checks.loc["merged against unmerged", "limit"] == 1e-5
    assert math.isnan(float(checks.loc["stated", "limit"]))  # type: ignore[arg-type]


def test_a_study_that_was_not_served_has_empty_tables(tmp_path: Path) -> None:
    assert ANALYSIS.compute_all([], Params(tmp_path), StudyLayout(tmp_path).tables) == {}  # type: ignore[misc]


def test_without_a_merged_model_the_base_is_the_reference(tmp_path: Path) -> None:
    study = StudyLayout(tmp_path)
    write_record(study, ENGINE, Measured([], samples()[lambda rows: rows["way"] != "merged"]))
    table = ANALYSIS.compute_all([], Params(tmp_path), study.tables)[SUMMARY]  # type: ignore[misc]
    row = of(table, "unmerged", "further_token")
    assert row.reference == "base, base"
    assert row.ratio == pytest.approx(1.5, rel=0.02)


class Said:
    """A study of these tables alone."""

    def __init__(self, tables: dict[str, pd.DataFrame]) -> None:
        self.tables = tables

    def table(self, name: str) -> pd.DataFrame | None:
        return self.tables.get(name)

    def in_order(self, rows: pd.DataFrame) -> pd.DataFrame:
        return rows


def test_the_report_says_by_how_much_it_is_slower_and_what_the_shapes_would_make_it(
    tables: dict[str, pd.DataFrame],
) -> None:
    parts = list(said(ANALYSIS.findings[0], Said(tables)))  # type: ignore[arg-type]
    (sentence,) = [part for part in parts if isinstance(part, str) and "times as long" in part]
    assert sentence.startswith("lora, unmerged: with 1 at once a further token takes 1.49 [1.4")
    assert "by its operations it would be 1.04, by its bytes 1.02." in sentence
    grids = [part for part in parts if isinstance(part, Grid)]
    held = next(grid for grid in grids if "Loading" in grid.caption)
    assert held.headers == ("model", "served", "load, ms", "disk, MiB")
    assert held.rows[0] == ("base", "base", "2000", MISSING)
