from __future__ import annotations

import base64
import os
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from rankdrift import records
from rankdrift.analysis.report import illustrate
from rankdrift.analysis.report.build import build_report
from rankdrift.analysis.report.content import compose
from rankdrift.analysis.report.findings import findings
from rankdrift.analysis.report.grids import MISSING, Grid, differing, flattened, number, shared
from rankdrift.analysis.report.items import paired_change
from rankdrift.analysis.report.markdown import as_markdown
from rankdrift.analysis.report.study import read_study
from rankdrift.analysis.report.summary import last_checkpoint_grid
from rankdrift.cli.main import main
from rankdrift.errors import UserError
from rankdrift.layout import RunLayout, StudyLayout

Tables = dict[str, pd.DataFrame]
ONE_SEED = (("lora", 8, 42), ("full", 0, 42))
THREE_SEEDS = tuple((method, rank, seed) for seed in (1, 2, 3) for method, rank in (("full", 0), ("lora", 8)))
DRAWN_FROM_SCORES = ["learning_curve", "learning_forgetting"]


class Links(HTMLParser):
    """Everything a page would load or link to, and its embedded pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [
            value or "" for key, value in attrs if key in ("src", "href", "srcset", "data", "action")
        ]


def write_study(root: Path, tables: Tables) -> StudyLayout:
    """A study's folder with tables and, for each run, the JSON files of a finished training."""
    study = StudyLayout(root)
    for name, table in tables.items():
        meanings = {column: f"what {column} means" for column in table}
        parts = {} if "run" in table else {"study": {}}  # a table of the whole study
        records.write_table(study.table(name), table, {"columns": meanings, "parts": parts}, csv=False)
    for run in sorted(set(tables["performance_metrics"]["run"]) - {"base"}):
        layout = study.run(run)
        method = {"name": run.split("-")[0]}
        records.write_json(layout.spec, {"model": {"name": "tiny"}, "method": method, "seed": 42})
        records.write_json(layout.environment, {"python": "3.11", "time": "2026-01-01T10:00:00Z"})
        records.write_json(
            layout.status, {"state": "finished", "training_seconds": 124.6, "trainable_parameters": 4096}
        )
        records.write_json(layout.ds_config, {"zero_optimization": {"stage": 2}})
    return study


def write_items(layout: RunLayout, step: int, task: str, **columns: object) -> None:
    table = pd.DataFrame(columns)
    records.write_parquet(layout.score_items(step, task), table.assign(index=range(len(table))))


@pytest.fixture
def study(tmp_path: Path, make_tables: Callable[..., Tables]) -> StudyLayout:
    return write_study(tmp_path / "demo", make_tables(ONE_SEED, [4, 8], 3))


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory, make_tables: Callable[..., Tables]) -> StudyLayout:
    """A whole study with its report."""
    study = write_study(tmp_path_factory.mktemp("reported") / "demo", make_tables(ONE_SEED, [4, 8], 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(illustrate, "DPI", 40)
        patch.setitem(illustrate.STYLE, "pdf.fonttype", 3)  # embedding TrueType fonts is half of the time
        build_report(study)
    return study


@pytest.fixture
def scores_only(tmp_path: Path, make_tables: Callable[..., Tables]) -> StudyLayout:
    """The cheapest study: only two figures can be drawn."""
    tables = make_tables(ONE_SEED, [4], 1)
    return write_study(tmp_path / "demo", {"performance_metrics": tables["performance_metrics"]})


def sentences(study: StudyLayout, topic: str) -> list[str]:
    return list({found.title: found.sentences for found in findings(read_study(study))}.get(topic, ()))


def test_report_needs_no_other_file(reported: StudyLayout) -> None:
    page = reported.report.read_text(encoding="utf-8")
    links = Links()
    links.feed(page)
    pictures = [link for link in links.found if link.startswith("data:image/png;base64,")]
    files = sorted(reported.figures.glob("*.png"))
    assert {base64.b64decode(link.split(",")[1]) for link in pictures} == {
        file.read_bytes() for file in files
    }
    assert len(pictures) == len(files) == len(list(reported.figures.glob("*.pdf"))) >= 16
    assert all(link.startswith(("data:", "#")) for link in links.found)
    assert "url(" not in page
    assert "@import" not in page


def test_anchors_and_markdown_links_lead_somewhere(reported: StudyLayout) -> None:
    page = reported.report.read_text(encoding="utf-8")
    for anchor in re.findall(r'href="#([^"]+)"', page):
        assert f'id="{anchor}"' in page
    text = (reported.root / "report.md").read_text(encoding="utf-8")
    linked = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert len(linked) >= 16
    assert all((reported.root / link).exists() for link in linked)


def test_report_says_what_the_study_was(reported: StudyLayout) -> None:
    page = reported.report.read_text(encoding="utf-8")
    assert "2 arms (full, lora-r8) at 1 seed (42), trained from tiny on topic" in page
    assert "what update_norm means" in page
    assert "zero_optimization" in page
    assert "2 min 05 s" in page


def test_unchanged_tables_are_not_drawn_again(scores_only: StudyLayout) -> None:
    before = {
        path: path.stat().st_mtime_ns for path in [build_report(scores_only), *scores_only.figures.iterdir()]
    }
    build_report(scores_only)
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("change", ["table", "status", "figure", "markdown"])
def test_whatever_changed_is_made_anew(scores_only: StudyLayout, change: str) -> None:
    page = build_report(scores_only)
    os.utime(page, ns=(1, 1))
    match change:
        case "table":
            records.write_parquet(
                scores_only.table("performance_metrics"),
                records.read_table(scores_only.table("performance_metrics")),
            )
        case "status":
            records.write_json(scores_only.run("full-seed42").status, {"state": "training"})
        case "figure":
            (scores_only.figures / "learning_curve.png").unlink()
        case "markdown":
            (scores_only.root / "report.md").unlink()
    build_report(scores_only)
    assert page.stat().st_mtime_ns != 1
    assert (scores_only.figures / "learning_curve.png").exists()
    assert (scores_only.root / "report.md").exists()


def test_figures_without_a_table_are_left_out_with_the_reason(scores_only: StudyLayout) -> None:
    stale = scores_only.figures / "intruders.png"
    records.write_text(stale, "of an older report")
    page = build_report(scores_only).read_text(encoding="utf-8")
    assert sorted(path.stem for path in scores_only.figures.glob("*.png")) == DRAWN_FROM_SCORES
    assert re.search(r"Intruder dimensions</b>: the study has no table svd_analysis_results\.", page)
    assert not stale.exists()


def test_names_are_escaped(tmp_path: Path, make_tables: Callable[..., Tables]) -> None:
    table = make_tables(ONE_SEED, [4], 1)["performance_metrics"].replace({"full-seed42": "<b>|x|</b>"})
    page = build_report(write_study(tmp_path / "demo", {"performance_metrics": table})).read_text(
        encoding="utf-8"
    )
    assert "<b>|x|</b>" not in page
    assert "&lt;b&gt;|x|&lt;/b&gt;" in page


def test_learning_is_paired_over_items(scores_only: StudyLayout) -> None:
    generator = np.random.default_rng(0)
    base, full = (generator.integers(0, 2, 50).astype(float) for _ in range(2))
    write_items(RunLayout(scores_only.base), 0, "topic", accuracy=base)
    write_items(scores_only.run("full-seed42"), 4, "topic", accuracy=full)
    found = paired_change(scores_only, "topic", "accuracy", ("base", 0), ("full-seed42", 4))
    test = stats.ttest_rel(full, base)  # its statistic is the mean difference over the standard error sought
    assert found is not None
    assert found.value == pytest.approx(full.mean() - base.mean())
    assert found.stderr == pytest.approx(found.value / test.statistic)
    assert "paired over 50 items" in next(
        s for s in sentences(scores_only, "Learning") if s.startswith("full")
    )


def test_without_items_the_standard_error_says_that_it_is_too_large(scores_only: StudyLayout) -> None:
    sentence = next(s for s in sentences(scores_only, "Learning") if s.startswith("full"))
    error = (0.42 * 0.58 / 400 + 0.87 * 0.13 / 400) ** 0.5
    assert f"+0.450, standard error {number(error, 2)} (from the two separate ones, too large" in sentence


def test_text_is_paired_per_token(scores_only: StudyLayout) -> None:
    tokens = np.full(6, 10)
    before, after = np.arange(6.0), np.arange(6.0) + np.array([1, 2, 0, 1, 3, 2])
    write_items(RunLayout(scores_only.base), 0, "general_text", nll=before, tokens=tokens)
    write_items(scores_only.run("full-seed42"), 4, "general_text", nll=after, tokens=tokens)
    found = paired_change(scores_only, "general_text", "nll", ("base", 0), ("full-seed42", 4))
    # windows of equal length: the ratio estimator is the plain mean of the differences per token
    per_token = (after - before) / 10
    assert found is not None
    assert (found.value, found.stderr) == pytest.approx((per_token.mean(), stats.sem(per_token)))
    assert found.clear == (abs(per_token.mean()) > 1.96 * stats.sem(per_token))


def test_no_difference_is_claimed_within_the_error(scores_only: StudyLayout) -> None:
    for layout, step in ((RunLayout(scores_only.base), 0), (scores_only.run("full-seed42"), 4)):
        write_items(layout, step, "topic", accuracy=[float(step > 0), 1.0, 1.0, 0.0])
    sentence = next(s for s in sentences(scores_only, "Learning") if s.startswith("full"))
    assert "no more than the choice of items may explain" in sentence


def test_equal_items_are_no_certainty(scores_only: StudyLayout) -> None:
    for layout, step in ((RunLayout(scores_only.base), 0), (scores_only.run("full-seed42"), 4)):
        write_items(layout, step, "topic", accuracy=[1.0, 0.0])
    sentence = next(s for s in sentences(scores_only, "Learning") if s.startswith("full"))
    assert "no item is scored differently (paired over 2 items): no difference shown" in sentence


def test_one_seed_is_said_to_be_one(scores_only: StudyLayout) -> None:
    text = " ".join(sentences(scores_only, "Evidence"))
    assert "One seed: full (42); lora-r8 (42). No interval over seeds" in text
    assert not any("t-interval" in sentence for sentence in sentences(scores_only, "Learning"))


def test_seeds_give_t_intervals_and_paired_differences(
    tmp_path: Path, make_tables: Callable[..., Tables]
) -> None:
    table = make_tables(THREE_SEEDS, [4], 1)["performance_metrics"]
    values = {
        ("full", 1): 0.80,
        ("full", 2): 0.82,
        ("full", 3): 0.87,
        ("lora", 1): 0.78,
        ("lora", 2): 0.81,
        ("lora", 3): 0.83,
    }
    for (method, seed), value in values.items():
        rows = (table["method"] == method) & (table["seed"] == seed) & (table["task"] == "topic")
        table.loc[rows, "value"] = value
    learning = sentences(write_study(tmp_path / "demo", {"performance_metrics": table}), "Learning")

    def interval(observed: list[float]) -> str:
        found = stats.ttest_1samp(observed, 0).confidence_interval()
        return f"95 % t-interval [{number(found.low)}, {number(found.high)}] over 3 seeds."

    gains = [values["full", seed] - 0.42 for seed in (1, 2, 3)]
    assert f"full: mean gain in accuracy on topic +0.410, {interval(gains)}" in learning
    differences = [values["lora", seed] - values["full", seed] for seed in (1, 2, 3)]
    text = "lora-r8 minus full, gain in accuracy on topic: mean difference, paired by seed,"
    assert f"{text} -0.0233, {interval(differences)}" in learning


def test_rank_is_stated_against_its_null(study: StudyLayout) -> None:
    full, lora, note = sentences(study, "Rank of the update")
    # made up: entropy rank 0.6 of the bound 64, null 0.8 of it
    assert "full-seed42: its update has a median entropy rank of 38.4, 75.0 % of what noise" in full
    assert "bounded by r = 8 by construction" in lora
    assert "by construction" not in full
    assert "by construction" in note


def test_intruders_and_drift_are_counted(study: StudyLayout) -> None:
    # made up: every third layer of LoRA has one intruder in each of 7 modules; 3 layers
    assert (
        "lora-r8-seed42: 7 left and 7 right intruders in 21 matrices"
        in sentences(study, "Intruder dimensions")[1]
    )
    assert (
        "full-seed42: CKA with the base is lowest after layer 3, 0.9400"
        in sentences(study, "Drift of the representations")[0]
    )


def test_summary_has_a_row_a_measure(study: StudyLayout) -> None:
    grid = last_checkpoint_grid(read_study(study))
    rows = {row[0]: row[1:] for row in grid.rows}
    assert grid.headers[1:] == ("base", "full-seed42", "lora-r8-seed42")
    assert rows["topic: accuracy"] == ("0.420 ± 0.025", "0.870 ± 0.017", "0.870 ± 0.017")
    assert rows["NLL increase (nats/token)"] == (MISSING, "0.0500", "0.0200")
    assert rows["intruders L / R"] == (MISSING, "0 / 0", "7 / 7")
    assert rows["trainable parameters"] == (MISSING, "4,096", "4,096")


def test_settings_are_parted_into_alike_and_different() -> None:
    trees = {"a": {"x": {"y": 1}, "z": [1, 2]}, "b": {"x": {"y": 2}, "z": [1, 2], "only": None}}
    assert differing(trees) == Grid(("setting", "a", "b"), (("x.y", "1", "2"), ("only", MISSING, "none")))
    assert shared(trees) == Grid(("setting", "value"), (("z", "1, 2"),))
    assert flattened({"command": ["a", "b"]}) == {"command": "a b"}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.01234, "0.0123"),
        (123456.0, "123456"),
        (1.23e-5, "1.23e-05"),
        (0.0, "0"),
        (float("nan"), MISSING),
        (None, MISSING),
        (-2.5, "-2.50"),
    ],
)
def test_numbers_read_well(value: float | None, text: str) -> None:
    assert number(value) == text


def test_markdown_rows_keep_their_columns(tmp_path: Path, make_tables: Callable[..., Tables]) -> None:
    table = make_tables(ONE_SEED, [4], 1)["performance_metrics"].replace({"full-seed42": "a|b"})
    known = read_study(write_study(tmp_path / "demo", {"performance_metrics": table}))
    rows = [
        line
        for line in as_markdown(compose(known, [], [])).splitlines()
        if "accuracy" in line or "a\\|b" in line
    ]
    assert any(
        re.split(r"(?<!\\)\|", row)[3].strip() == "a\\|b" for row in rows if row.startswith("| measured")
    )


def test_a_folder_without_tables_is_an_error_with_a_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    message = capsys.readouterr().err
    assert str(tmp_path / "nowhere" / "tables") in message
    assert "rankdrift analyze" in message


def test_incomplete_and_foreign_tables_are_named(scores_only: StudyLayout) -> None:
    path = scores_only.table("performance_metrics")
    table = records.read_table(path)
    path.with_suffix(".meta.json").unlink()
    with pytest.raises(UserError, match=r"performance_metrics\.meta\.json: missing.*run the analysis again"):
        build_report(scores_only)
    records.write_table(path, table.drop(columns=["seed"]), {}, csv=False)
    with pytest.raises(UserError, match=r"performance_metrics\.parquet: no column seed"):
        build_report(scores_only)


def test_the_command_prints_where_the_report_is(
    scores_only: StudyLayout, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(scores_only.root)]) == 0
    assert capsys.readouterr().out.strip() == str(scores_only.report)


def test_tables_without_runs_are_read_where_they_are_of_the_whole_study(study: StudyLayout) -> None:
    assert "run" not in read_study(study).tables["matched_comparison"]
    path = study.table("matched_comparison")
    records.write_table(path, records.read_table(path), {"parts": {"full-seed42-step-000004": {}}}, csv=False)
    with pytest.raises(UserError, match=r"matched_comparison\.parquet: no column run"):
        read_study(study)
