"""Both notebooks, carried out on a made-up study: what they show is what the report says."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from made_up_study import write_study

from rankdrift import files
from rankdrift.analysis.report import notebook
from rankdrift.analysis.report.explorer_data import checkpoint_quantities
from rankdrift.analysis.report.study import read_study
from rankdrift.cli.main import main
from rankdrift.layout import StudyLayout

Tables = dict[str, pd.DataFrame]
RUNS = tuple((method, rank, seed) for method, rank in (("lora", 8), ("full", 0)) for seed in (1, 2))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, make_tables: Callable[..., Tables]) -> StudyLayout:
    return write_study(tmp_path_factory.mktemp("notebooks") / "demo", make_tables(RUNS, [4, 8], 3))


@pytest.fixture(scope="module", params=["rq1", "rq2"])
def carried_out(request: pytest.FixtureRequest, study: StudyLayout) -> Path:
    assert main(["notebook", request.param, str(study.root)]) == 0
    return study.root / "notebooks" / f"{request.param}.ipynb"


def test_a_kernel_leaves_nothing_where_it_was_started(
    study: StudyLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    assert main(["notebook", "rq2", str(study.root)]) == 0
    assert not list(tmp_path.iterdir())


def test_a_notebook_holds_what_its_cells_show(carried_out: Path) -> None:
    read = nbformat.read(carried_out, as_version=4)
    nbformat.validate(read)
    outputs = [output for cell in read.cells if cell.cell_type == "code" for output in cell.outputs]
    assert {output.output_type for output in outputs} <= {"stream", "display_data", "execute_result"}
    shown = [kind for output in outputs for kind in output.get("data", {})]
    assert shown.count("image/png") >= 1
    assert "text/html" in shown  # a table
    folder = carried_out.with_suffix("")
    assert list(folder.glob("*.pdf"))
    for table in folder.glob("*.tex"):
        assert table.read_text(encoding="utf-8").count(r"\toprule") == 1


def test_the_numbers_of_rq1_are_those_of_the_report(study: StudyLayout) -> None:
    assert main(["notebook", "rq1", str(study.root)]) == 0
    found = pd.read_csv(study.root / "notebooks" / "rq1" / "runs.csv").set_index("run")
    known, _ = checkpoint_quantities(read_study(study))
    last = known[known["step"] == 8].set_index("run")
    assert set(found.index) == set(last.index)
    for theirs, ours in (
        ("size of the update", "relative_update_norm"),
        ("intruders, left", "intruders_left"),
        ("intruders, right", "intruders_right"),
    ):
        np.testing.assert_allclose(found[theirs], last[ours].reindex(found.index), rtol=1e-12)
    drift = files.read_table(study.table("drift_metrics"))
    of_last = (drift["layer"] == drift["layer"].max()) & (drift["step"] == 8)
    states = drift[of_last & (drift["representation"] == "mean") & (drift["features"] == "all")]
    changed = 1 - states.set_index("run")["cka"].reindex(found.index)
    np.testing.assert_allclose(found["1 - CKA, last state"], changed, rtol=1e-12)
    table = (study.root / "notebooks" / "rq1" / "summary.tex").read_text(encoding="utf-8")
    assert r"full & 2 & " in table


def test_the_ratios_of_rq2_are_those_of_the_table(study: StudyLayout) -> None:
    assert main(["notebook", "rq2", str(study.root)]) == 0
    table = (study.root / "notebooks" / "rq2" / "ratios.tex").read_text(encoding="utf-8")
    assert "lora-r8, unmerged & further token & 1 & 32 & 1.4 [1.37, 1.43] & 1.020 & 1.020" in table


def test_cells_can_be_left_to_be_run_by_hand(study: StudyLayout, tmp_path: Path) -> None:
    assert main(["notebook", "rq2", str(study.root), "--no-run", "--to", str(tmp_path)]) == 0
    read = nbformat.read(tmp_path / "rq2.ipynb", as_version=4)
    assert not any(cell.outputs for cell in read.cells if cell.cell_type == "code")
    told = [cell.source for cell in read.cells if "parameters" in cell.metadata.get("tags", [])]
    assert told == [f'STUDY = r"{study.root.resolve()}"\nOUTPUT = r"{tmp_path.resolve() / "rq2"}"']


def test_what_is_missing_is_named(
    study: StudyLayout, tmp_path: Path, capsys: pytest.CaptureFixture[str], make_tables: Callable[..., Tables]
) -> None:
    assert main(["notebook", "rq3", str(study.root)]) == 2
    assert "no notebook 'rq3'" in capsys.readouterr().err
    scores = make_tables(RUNS, [4], 1)["performance_metrics"]
    short = write_study(tmp_path / "short", {"performance_metrics": scores})
    assert main(["notebook", "rq1", str(short.root)]) == 2
    assert "rq1 reads svd_analysis_results, drift_metrics" in capsys.readouterr().err
    assert main(["notebook", "rq2", str(short.root)]) == 2
    assert f"run 'rankdrift deploy {short.root}' first" in capsys.readouterr().err
    assert not (short.root / "notebooks").exists()


def test_a_cell_that_fails_is_told_and_the_rest_is_kept(
    study: StudyLayout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = study.table("deployment_benchmark_summary")
    whole = table.read_bytes()
    try:
        files.write_parquet(table, files.read_table(table).drop(columns=["ratio"]))
        assert main(["notebook", "rq2", str(study.root), "--to", str(tmp_path)]) == 2
    finally:
        table.write_bytes(whole)
    assert "a cell failed" in (said := capsys.readouterr().err)
    assert "KeyError: 'ratio'" in said
    outputs = [cell.get("outputs", []) for cell in nbformat.read(tmp_path / "rq2.ipynb", as_version=4).cells]
    assert any(output["output_type"] == "display_data" for found in outputs for output in found)


def test_without_the_packages_it_says_what_to_install(
    study: StudyLayout, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "jupytext", None)
    assert main(["notebook", "rq1", str(study.root)]) == 2
    assert "pip install 'rankdrift[notebook]'" in capsys.readouterr().err


def test_every_notebook_declares_the_tables_it_reads() -> None:
    for name, source in notebook.notebooks().items():
        assert "rankdrift:\n#     tables: [" in source, name
