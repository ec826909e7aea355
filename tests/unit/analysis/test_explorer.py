"""What the explorer holds, and that its views are valid Vega-Lite that draws it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import vl_convert

from rankdrift import files
from rankdrift.analysis.report import explorer_data as data_of_study
from rankdrift.analysis.report.explorer import explorer
from rankdrift.analysis.report.explorer_data import as_columns, explorer_data
from rankdrift.analysis.report.study import Study, read_study
from rankdrift.analysis.sources.subjects import IDENTITY
from rankdrift.layout import StudyLayout

Tables = dict[str, pd.DataFrame]
RUNS = (("full", 0, 1), ("full", 0, 2), ("lora", 8, 1), ("lora", 8, 2))


def written(root: Path, tables: Tables) -> Study:
    study = StudyLayout(root)
    for name, table in tables.items():
        parts = {} if set(IDENTITY) <= set(table) else {"study": {}}
        files.write_table(study.table(name), table, {"columns": {}, "parts": parts}, csv=False)
    return read_study(study)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, make_tables: Callable[..., Tables]) -> Study:
    return written(tmp_path_factory.mktemp("study"), make_tables(RUNS, [4, 8], 3))


@pytest.fixture(scope="module")
def state(study: Study) -> Any:
    found = explorer(study)
    assert found
    return json.loads(found.state)


def rows_of(columns: dict[str, Any]) -> pd.DataFrame:
    """Read columns back as the page does."""
    return pd.DataFrame(
        {
            name: [values[0][code] for code in values[1]] if isinstance(values[0], list) else values
            for name, values in columns.items()
        }
    )


def test_every_checkpoint_is_there_with_its_quantities(study: Study, state: Any) -> None:
    rows = rows_of(state["data"]["checkpoints"])
    assert sorted(zip(rows["run"], rows["step"], strict=True)) == [
        (f"{arm}-seed{seed}", step) for arm in ("full", "lora-r8") for seed in (1, 2) for step in (4, 8)
    ]
    labels = {label: column for column, label, _ in state["columns"]}
    last = rows[(rows["run"] == "full-seed1") & (rows["step"] == 8)].iloc[0]
    assert last[labels["accuracy on topic"]] == 0.87
    assert last[labels["NLL increase on general text (nats a token)"]] == pytest.approx(0.05)
    assert last[labels["seconds a step (median)"]] == 2.0
    assert {label: better for _, label, better in state["columns"]}["accuracy on topic"] == 1


def test_matrices_are_those_of_the_table(study: Study, state: Any) -> None:
    rows = rows_of(state["data"]["matrices"])
    table = study.tables["svd_analysis_results"]
    assert len(rows) == len(table[table["run"] != "base"])
    assert rows["update_rank_share"].unique() == pytest.approx([0.75])


def test_noise_has_the_norm_and_shape_of_the_update(study: Study) -> None:
    data = explorer_data(study)
    assert data
    spectra = data.spectra[(data.spectra["run"] == "full-seed1") & (data.spectra["module"] == "q_proj")]
    assert set(spectra["kind"]) == {"update", "tuned", "noise"}
    sigma = study.tables["singular_values"]
    update = sigma[
        (sigma["run"] == "full-seed1") & (sigma["module"] == "q_proj") & (sigma["matrix"] == "update")
    ]
    update = update[(update["layer"] == 1) & (update["step"] == 8)]
    noise = np.linalg.svd(np.random.default_rng(0).standard_normal((64, 64)), compute_uv=False)
    noise *= np.linalg.norm(update["sigma"]) / np.linalg.norm(noise)
    found = spectra[spectra["kind"] == "noise"].set_index("index")["sigma"]
    assert len(found) > 15
    large = found[found.index < 40]  # the smallest of a draw vary by more
    assert large.to_numpy() == pytest.approx(noise[large.index], rel=0.15)


@pytest.mark.parametrize("name", ["line", "plane", "heat", "spectrum"])
def test_every_view_draws_marks(name: str, state: Any) -> None:
    spec = state["specs"][name]
    source = (spec.get("data") or (spec.get("layer") or [spec.get("spec")])[0]["data"])["name"]
    rows = rows_of(state["data"][source])
    values = json.loads(rows.to_json(orient="records"))
    sized = (
        {**spec, "datasets": {source: values}, "width": 400}
        if "facet" not in spec
        else {**spec, "datasets": {source: values}}
    )
    picture = vl_convert.vegalite_to_svg(sized)
    marks = {"line": "mark-line", "plane": "mark-symbol", "heat": "mark-rect", "spectrum": "mark-line"}
    drawn = picture.split(marks[name], 1)[1]
    assert drawn.count("<path aria-label") >= {"line": 4, "plane": 8, "heat": 2 * 3 * 7, "spectrum": 4}[name]


def test_the_front_joins_what_nothing_beats_in_both(state: Any) -> None:
    """Of (forgetting, score) points by Vega itself: those that have no other one to their upper left."""
    points = [(0.01, 0.5), (0.02, 0.7), (0.03, 0.6), (0.04, 0.9), (0.04, 0.8), (0.05, 0.9)]
    columns = {label: column for column, label, _ in state["columns"]}
    across, up = columns["NLL increase on general text (nats a token)"], columns["accuracy on topic"]
    rows = [{"run": f"r{n}", "arm": "a", "step": 1, across: x, up: y} for n, (x, y) in enumerate(points)]
    front = dict(state["specs"]["plane"]["layer"][0])
    front["mark"] = {"type": "point"}
    params = [each for each in state["specs"]["plane"]["params"] if "select" not in each]
    spec = {
        "data": {"values": rows},
        "params": params,
        "transform": front["transform"],
        "mark": front["mark"],
    }
    spec |= {"encoding": front["encoding"], "$schema": state["specs"]["plane"]["$schema"]}
    picture = vl_convert.vegalite_to_svg(spec)
    assert picture.split("mark-symbol", 1)[1].count("<path aria-label") == 3


def test_of_large_studies_less_is_on_the_page_and_it_says_so(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(data_of_study, "MOST_MATRICES", 45)
    monkeypatch.setattr(data_of_study, "MOST_SPECTRA", 2)
    data = explorer_data(study)
    assert data
    assert data.matrices["step"].unique().tolist() == [8]
    assert data.matrices["run"].nunique() == 2
    assert data.spectra["run"].nunique() == 3  # with the base
    assert data.notes == (
        "of matrices, last checkpoints alone",
        "of matrices, 2 of 4 runs",
        "of spectra, 2 of 4 runs",
    )


def test_a_study_of_scores_alone_has_lines_and_a_plane(
    tmp_path: Path, make_tables: Callable[..., Tables]
) -> None:
    tables = make_tables(RUNS, [4], 1)
    found = explorer(written(tmp_path, {"performance_metrics": tables["performance_metrics"]}))
    assert found
    assert [name for name, *_ in found.views] == ["line", "plane"]


def test_names_cannot_end_the_script(tmp_path: Path, make_tables: Callable[..., Tables]) -> None:
    table = make_tables(RUNS, [4], 1)["performance_metrics"].replace({"full-seed1": "</script><b>"})
    found = explorer(written(tmp_path, {"performance_metrics": table}))
    assert found
    assert "</" not in found.state
    assert "</script" not in found.bundle
    assert json.loads(found.state)["data"]["checkpoints"]["run"][0][-1] == "lora-r8-seed2"


def test_columns_hold_numbers_to_four_digits_and_unknown_ones_as_null() -> None:
    table = pd.DataFrame({"run": ["a", "b", "a"], "x": [1.23456, np.nan, 1e-9], "n": [1, 2, 3]})
    found = as_columns(table)
    assert found == {"run": [["a", "b"], [0, 1, 0]], "x": [1.235, None, 1e-9], "n": [1, 2, 3]}
    pd.testing.assert_series_equal(rows_of(found)["run"], table["run"])
