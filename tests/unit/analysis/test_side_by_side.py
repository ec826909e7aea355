from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from made_up_study import write_study

from rankdrift import files
from rankdrift.analysis.report.overview import named_studies
from rankdrift.analysis.report.side_by_side import LEARNT, MOVED, SideBySide, agreement, side_by_side
from rankdrift.analysis.report.study import read_study
from rankdrift.analysis.sources.observations import update_sizes
from rankdrift.cli.main import main
from rankdrift.errors import UserError
from rankdrift.layout import StudyLayout

Tables = dict[str, pd.DataFrame]
Make = Callable[..., Tables]
SEEDS = (42, 7, 9)
ARMS = (("lora", 8), ("full", 0))
RUNS = tuple((method, rank, seed) for method, rank in ARMS for seed in SEEDS)


@pytest.fixture
def pair(tmp_path: Path, make_tables: Make) -> tuple[StudyLayout, StudyLayout]:
    """A study of three seeds, and one of a seed and an arm more."""
    one = write_study(tmp_path / "one", make_tables(RUNS, [4, 8], 2))
    more = (("lora", 8, 42), ("lora", 16, 42), ("full", 0, 42))
    return one, write_study(tmp_path / "other", make_tables(more, [4, 8], 2))


def together(*studies: StudyLayout) -> SideBySide:
    return side_by_side({study.root.name: read_study(study) for study in studies})


def environments(study: StudyLayout, **changed: object) -> None:
    rows = files.read_table(study.table("performance_metrics"))
    first = ["run", "method", "rank", "tasks", "seed", "step"]
    table = (
        rows[first]
        .drop_duplicates()
        .assign(
            **{"split": "test", "device": "cpu", "canary_difference": 1e-6, "canary_moved": 0.0},
            **{"canary_reason": "", "versions": "torch 2.13, numpy 2.3", "reference_versions": "torch 2.13"},
        )
    )
    meta = {"analysis": "performance", "columns": {}, "parts": {}}
    files.write_table(study.table("scoring_environments"), table.assign(**changed), meta, csv=False)


def test_quantities_are_means_over_the_seeds_of_each_study(pair: tuple[StudyLayout, StudyLayout]) -> None:
    found = together(*pair).quantities.set_index(["study", "quantity", "arm"])
    scores = files.read_table(pair[0].table("performance_metrics"))
    rows = scores[(scores["step"] == 8) & (scores["method"] == "full") & (scores["metric"] == "accuracy")]
    learnt = found.loc["one", LEARNT, "full"]
    assert learnt["mean"] == pytest.approx(np.mean(rows["value"]))
    assert learnt["stdev"] == pytest.approx(np.std(rows["value"], ddof=1), abs=1e-12)
    assert (learnt["seeds"], found.loc["other", LEARNT, "full"]["seeds"]) == (3, 1)
    assert found.loc["one", LEARNT, "base"]["mean"] == pytest.approx(0.42)
    sizes = update_sizes(files.read_table(pair[1].table("svd_analysis_results")))
    size = sizes[(sizes["run"] == "lora-r16-seed42") & (sizes["step"] == 8)]["relative_update_norm"].item()
    assert found.loc["other", "size of the update, relative", "lora-r16"]["mean"] == pytest.approx(size)
    assert MOVED in set(found.index.get_level_values("quantity"))
    assert not [name for name in found.index.get_level_values("quantity") if name == "accuracy on topic"]


def test_a_grid_has_an_arm_a_row_and_a_study_a_column(pair: tuple[StudyLayout, StudyLayout]) -> None:
    grids = {grid.caption: grid for grid in together(*pair).quantity_grids()}
    learnt = grids[LEARNT]
    assert learnt.headers == ("arm", "one", "other")
    assert {row[0]: row[1:] for row in learnt.rows} == {
        "base": ("0.420 (1)", "0.420 (1)"),
        "full": ("0.870 ± 0 (3)", "0.870 (1)"),
        "lora-r8": ("0.870 ± 0 (3)", "0.870 (1)"),
        "lora-r16": ("–", "0.870 (1)"),  # noqa: RUF001
    }


def test_differences_are_those_of_each_studys_own_tables(pair: tuple[StudyLayout, StudyLayout]) -> None:
    found = together(*pair).contrasts.set_index(["study", "quantity", "other_arm"])
    assert set(found["arm"]) == {"full"}
    seeds = files.read_table(pair[0].table("seed_contrasts"))
    row = seeds[(seeds["task"] == "topic") & (seeds["checkpoint"] == "last") & (seeds["arm"] == "full")].iloc[
        0
    ]
    of_seeds = found.loc["one", LEARNT, "lora-r8"]
    assert list(of_seeds[["difference", "low", "high", "over"]]) == [
        *row[["difference", "low", "high"]],
        "3 seeds",
    ]
    of_items = found.loc["other", LEARNT, "lora-r16"]
    assert list(of_items[["difference", "low", "high", "over"]]) == [0.0, -0.02, 0.02, "400 items"]


def test_what_is_better_has_one_sign_in_all_studies(
    pair: tuple[StudyLayout, StudyLayout], make_tables: Make
) -> None:
    """The second study's score is an error rate: its larger value is the worse one."""
    upside_down = make_tables((("lora", 8, 42), ("full", 0, 42)), [8], 2)
    scores, items = upside_down["performance_metrics"], upside_down["item_contrasts"]
    scores.loc[scores["metric"] == "accuracy", "higher_is_better"] = False
    arms = (items["contrast"] == "arms") & (items["metric"] == "accuracy")
    items.loc[arms, ["difference", "low", "high", "mcnemar_p"]] = [0.2, 0.1, 0.4, 1e-6]
    worse = write_study(pair[0].root.parent / "worse", upside_down)
    found = together(pair[0], worse).contrasts.set_index(["study", "quantity"])
    assert list(found.loc[("worse", LEARNT), ["difference", "low", "high"]]) == [-0.2, -0.4, -0.1]


@pytest.mark.parametrize(
    ("low", "high", "says"),
    [
        ((0.1, 0.2), (0.3, 0.4), "shown in 2 of 2"),
        ((-0.4, -0.2), (-0.3, -0.1), "shown in 2 of 2"),
        ((-0.1, 0.2), (0.3, 0.4), "shown in 1 of 2, never the other way"),
        ((-0.1, -0.2), (0.3, 0.4), "shown in none of 2"),
        ((np.nan, np.nan), (np.nan, np.nan), "shown in none of 2"),
        ((0.1, -0.4), (0.3, -0.2), "contradict each other: first larger in 1, smaller in 1 of 2"),
        ((0.1,), (0.2,), "–"),  # noqa: RUF001
    ],
)
def test_studies_agree_where_intervals_do(low: tuple[float], high: tuple[float], says: str) -> None:
    assert agreement(pd.DataFrame({"difference": 0.0, "low": low, "high": high})) == says


def test_the_canary_is_looked_up(pair: tuple[StudyLayout, StudyLayout]) -> None:
    one, other = pair
    environments(one)
    unasked = together(one, other)
    assert [row[-1] for row in unasked.about.rows] == ["yes (within 1.0e-06 nats)", "–"]  # noqa: RUF001
    assert "not known of other" in " ".join(unasked.warnings)
    environments(other, canary_moved=1.0, canary_reason="log-likelihoods by up to 0.1 nats")
    moved = together(one, other)
    assert [row[-1] for row in moved.about.rows][1] == "no"
    assert "Scoring has moved: where 7 checkpoints (other: base" in " ".join(moved.warnings)
    environments(other, versions="torch 2.13, numpy 9.9")
    packages = together(one, other)
    assert "one: base" in packages.warnings[0]
    assert "numpy 9.9" in packages.warnings[0]
    environments(other)
    assert together(one, other).warnings == ()


def test_one_base_model_has_one_score(pair: tuple[StudyLayout, StudyLayout]) -> None:
    for study in pair:
        environments(study)
    file = pair[1].table("performance_metrics")
    scores = files.read_table(file)
    scores.loc[(scores["run"] == "base") & (scores["metric"] == "nll"), "value"] += 0.01
    files.write_parquet(file, scores)
    [warning] = together(*pair).warnings
    assert "nll of general_text 3.100 and 3.110, of 48 items each" in warning
    for run in pair[1].run_names():
        files.write_json(pair[1].run(run).spec, {"model": {"name": "another"}, "seed": 42})
    assert together(*pair).warnings == ()  # of another model other values are expected


def test_studies_without_a_common_arm_have_no_differences(
    pair: tuple[StudyLayout, StudyLayout], make_tables: Make
) -> None:
    alone = write_study(pair[0].root.parent / "alone", make_tables((("lora", 32, 42),), [8], 2))
    found = together(pair[0], alone)
    assert found.contrasts.empty
    assert found.contrast_grids() == []
    assert found.quantity_grids()


def test_the_command_writes_a_page_and_both_tables(
    pair: tuple[StudyLayout, StudyLayout], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare", *(str(study.root) for study in pair), "--to", str(tmp_path / "c")]) == 0
    printed = capsys.readouterr()
    assert "| full against lora-r8 |" in printed.out
    assert "not known of one, other" in printed.err
    page = (tmp_path / "c" / "comparison.html").read_text(encoding="utf-8")
    assert 'href="../one/report.html"' in page
    assert "shown in none of 2" in page
    for name, columns in (("quantities", "study,arm,quantity"), ("contrasts", "study,quantity,arm")):
        table = pd.read_csv(tmp_path / "c" / f"{name}.csv")
        assert set(columns.split(",")) <= set(table)
        assert set(table["study"]) == {"one", "other"}


def test_a_study_in_which_nothing_is_measured_is_named(
    pair: tuple[StudyLayout, StudyLayout], make_tables: Make
) -> None:
    tables = make_tables((("lora", 8, 42),), [8], 2)
    empty = write_study(pair[0].root.parent / "empty", tables)
    for name, table in tables.items():
        files.write_parquet(empty.table(name), table.head(0))
    found = together(pair[0], empty)
    assert found.warnings[0] == "No checkpoint of a trained run has been measured in empty."
    assert set(found.quantities["study"]) == {"one"}
    assert found.contrasts.empty


@pytest.mark.parametrize(
    ("names", "message"), [(["one"], "nothing to compare"), (["one", "one/../one"], "named twice")]
)
def test_fewer_than_two_studies_are_refused(
    pair: tuple[StudyLayout, StudyLayout], names: list[str], message: str
) -> None:
    folder = pair[0].root.parent
    with pytest.raises(UserError, match=message):
        named_studies([folder / name for name in names])


def test_studies_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    folders = [tmp_path / "a" / "demo", tmp_path / "b" / "demo"]
    assert list(named_studies(folders)) == [str(folder) for folder in folders]
