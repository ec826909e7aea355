from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import mlcroissant
import numpy as np
import pandas as pd
import pytest
from made_up_study import write_study

from rankdrift import files
from rankdrift.analysis.report.grids import Grid
from rankdrift.analysis.report.latex import as_latex, escaped
from rankdrift.analysis.report.study import read_study
from rankdrift.analysis.report.summary import last_checkpoint_grid
from rankdrift.cli.main import main
from rankdrift.layout import StudyLayout

Tables = dict[str, pd.DataFrame]
SEEDS = tuple((method, rank, seed) for method, rank in (("lora", 8), ("full", 0)) for seed in (1, 2, 3))


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory, make_tables: Callable[..., Tables]) -> StudyLayout:
    return write_study(tmp_path_factory.mktemp("exports") / "demo", make_tables(SEEDS, [4, 8], 2))


@pytest.fixture(scope="module")
def exported(study: StudyLayout, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    assert main(["export", str(study.root), "--to", str(folder), "--license", "CC-BY-4.0"]) == 0
    return folder


def test_text_is_escaped() -> None:
    text = "a_b & 5 % of {x} # $ ~ ^ \\ < ± ‖ΔW‖²"
    assert escaped(text) == (
        r"a\_b \& 5 \% of \{x\} \# \$ \textasciitilde{} \textasciicircum{} \textbackslash{} $<$ $\pm$ "
        r"$\|$$\Delta$W$\|$$^2$"
    )


def test_a_table_has_booktabs_rules() -> None:
    grid = Grid(("run", "ΔW"), (("a_1", "0.1 ± 0.2"), ("b", "–")))  # noqa: RUF001
    lines = as_latex(grid, "50 % of it", "tab:x").splitlines()
    assert lines[2:4] == [r"\caption{50 \% of it}", r"\label{tab:x}"]
    assert lines[5:13] == [
        r"\begin{tabular}{lr}",
        r"\toprule",
        r"run & $\Delta$W \\",
        r"\midrule",
        r"a\_1 & 0.1 $\pm$ 0.2 \\",
        r"b & -- \\",
        r"\bottomrule",
        r"\end{tabular}",
    ]


def test_every_table_of_the_report_is_there_and_is_plain_latex(study: StudyLayout, exported: Path) -> None:
    tables = {file.stem: file.read_text(encoding="utf-8") for file in (exported / "latex").glob("*.tex")}
    whole = tables.pop("all")
    assert len(tables) >= 10
    assert set(re.findall(r"\\input\{([^}]+)\}", whole)) == set(tables)
    for name, text in tables.items():
        assert text.isascii(), name
        assert rf"\label{{tab:{name}}}" in text
        columns = len(re.search(r"\\begin\{tabular\}\{([lr]+)\}", text)[1])
        lines = [line for line in text.splitlines() if line.endswith(r" \\")]
        assert {len(re.findall(r"(?<!\\)&", line)) for line in lines} == {columns - 1}, name
    grid = last_checkpoint_grid(read_study(study))
    assert " & ".join(map(escaped, grid.rows[0])) in tables["last-checkpoints"]


def test_comma_separated_tables_hold_every_row(study: StudyLayout, exported: Path) -> None:
    names = {table.stem for table in study.tables.glob("*.parquet")}
    assert {file.stem for file in (exported / "csv").glob("*.csv")} == names | {"columns"}
    for name in sorted(names):
        stored = files.read_table(study.table(name))
        found = pd.read_csv(exported / "csv" / f"{name}.csv", keep_default_na=False, na_values=[""])
        assert list(found) == list(stored)
        assert len(found) == len(stored)
        for column in stored.select_dtypes("number"):
            np.testing.assert_allclose(found[column].astype(float), stored[column].astype(float), rtol=1e-8)
    columns = pd.read_csv(exported / "csv" / "columns.csv")
    assert set(columns["table"]) == names
    assert not columns["meaning"].isna().any()
    spectra = columns[columns["table"] == "svd_analysis_results"].set_index("column")
    assert spectra.loc["update_norm", "meaning"] == "what update_norm means"
    assert spectra.loc["update_norm", "type"] == "double"


def test_a_long_table_is_written_piece_by_piece(study: StudyLayout, tmp_path: Path) -> None:
    copy = StudyLayout(Path(shutil.copytree(study.root, tmp_path / "long")))
    table = files.read_table(copy.table("singular_values"))
    table.to_parquet(copy.table("singular_values"), row_group_size=100)
    assert main(["export", str(copy.root), "--csv"]) == 0
    found = pd.read_csv(copy.root / "export" / "csv" / "singular_values.csv")
    assert len(found) == len(table) > 1000
    assert not (copy.root / "export" / "latex").exists()


@pytest.mark.filterwarnings("ignore")
def test_croissant_is_valid_and_its_records_are_the_tables(study: StudyLayout, exported: Path) -> None:
    """By mlcroissant, the format's own library."""
    described = mlcroissant.Dataset(jsonld=str(exported / "croissant.json"))
    assert not described.metadata.ctx.issues.errors
    assert described.metadata.license == ["CC-BY-4.0"]
    stored = files.read_table(study.table("performance_metrics"))
    records = list(described.records(record_set="performance_metrics"))
    assert len(records) == len(stored)
    for record, row in zip(records[:5], stored.head(5).to_dict("records"), strict=True):
        named = {key.removeprefix("performance_metrics/"): value for key, value in record.items()}
        assert named["run"] == row["run"].encode()
        assert named["value"] == pytest.approx(row["value"])
        assert named["higher_is_better"] == row["higher_is_better"]
    files_there = files.read_json(exported / "croissant.json")["distribution"]
    for file in files_there:
        assert files.digest_file(exported / file["contentUrl"]) == file["sha256"]


def test_an_incomplete_table_is_named(
    study: StudyLayout, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = StudyLayout(Path(shutil.copytree(study.root, tmp_path / "half")))
    copy.table("performance_metrics").with_suffix(".meta.json").unlink()
    for kind in ("--latex", "--csv", "--croissant"):
        assert main(["export", str(copy.root), kind]) == 2
        assert "performance_metrics.meta.json: missing" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "nowhere")]) == 2
    assert "no tables to report on" in capsys.readouterr().err
