from __future__ import annotations

import base64
import io
import os
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import altair as alt
import pandas as pd
import pytest
import vl_convert
from made_up_study import write_study
from PIL import Image

from rankdrift import files, registry
from rankdrift.analysis.formats import MISSING, number
from rankdrift.analysis.report import build as build_module
from rankdrift.analysis.report import illustrate
from rankdrift.analysis.report import study as study_of_tables
from rankdrift.analysis.report.build import as_html, build_report
from rankdrift.analysis.report.content import compose
from rankdrift.analysis.report.grids import Grid, differing, flattened, shared
from rankdrift.analysis.report.markdown import as_markdown
from rankdrift.analysis.report.overview import build_overview
from rankdrift.analysis.report.study import read_study
from rankdrift.analysis.report.summary import last_checkpoint_grid
from rankdrift.analysis.report.topics import topics
from rankdrift.cli.main import main
from rankdrift.errors import UserError
from rankdrift.layout import StudyLayout

Tables = dict[str, pd.DataFrame]
ONE_SEED = (("lora", 8, 42), ("full", 0, 42))
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
        build(study)
    return study


@pytest.fixture
def scores_only(tmp_path: Path, make_tables: Callable[..., Tables]) -> StudyLayout:
    """The cheapest study: only two figures can be drawn."""
    tables = make_tables(ONE_SEED, [4], 1)
    return write_study(tmp_path / "demo", {"performance_metrics": tables["performance_metrics"]})


def build(study: StudyLayout) -> Path:
    return build_report(study, lambda *_: None, workers=1)


def parts(study: StudyLayout, topic: str) -> list[str | Grid]:
    return list({found.title: found.parts for found in topics(read_study(study))}.get(topic, ()))


def rows(part: str | Grid) -> list[tuple[str, ...]]:
    assert isinstance(part, Grid)
    return list(part.rows)


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
    own = page.replace(vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"), "")
    assert len(page) - len(own) > 500_000  # Vega, which names addresses of its documentation
    assert "url(" not in own
    assert "@import" not in own
    assert set(re.findall(r"https?://[^\"]+", own)) == {
        alt.Chart().to_dict(validate=False)["$schema"]
    }  # a name


def test_many_pictures_are_packed_tighter_without_loss(
    scores_only: StudyLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(build_module, "HEAVY", 0)
    links = Links()
    links.feed(build(scores_only).read_text(encoding="utf-8"))
    pictures = [link for link in links.found if link.startswith("data:image/webp;base64,")]
    stored = {Image.open(file).convert("RGB").tobytes() for file in scores_only.figures.glob("*.png")}
    shown = {
        Image.open(io.BytesIO(base64.b64decode(link.split(",")[1]))).convert("RGB").tobytes()
        for link in pictures
    }
    assert len(pictures) == len(DRAWN_FROM_SCORES)
    assert shown == stored


def test_figures_are_the_same_whoever_draws_them(
    scores_only: StudyLayout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not by a process's own state: each reads the study's tables, and here none is drawn."""
    again = StudyLayout(tmp_path / "again")
    shutil.copytree(scores_only.root, again.root)
    build(scores_only)
    monkeypatch.setattr(illustrate, "FEW", 1)
    monkeypatch.setattr(illustrate, "_drawn", None)
    drawn: list[tuple[int, int]] = []
    build_report(again, lambda what, done, total: drawn.append((done, total)), workers=2)
    total = len(registry.names("figure"))
    assert drawn == [(number, total) for number in range(total + 1)]
    for name in DRAWN_FROM_SCORES:
        for suffix in ("png", "pdf"):
            file = f"{name}.{suffix}"
            assert (again.figures / file).read_bytes() == (scores_only.figures / file).read_bytes()
    one, other = (files.read_json(s.report.with_suffix(".meta.json")) for s in (scores_only, again))
    assert one["drawn"] == other["drawn"]


def test_anchors_and_markdown_links_lead_somewhere(reported: StudyLayout) -> None:
    page = reported.report.read_text(encoding="utf-8")
    for anchor in re.findall(r'href="#([^"]+)"', page):
        assert f'id="{anchor}"' in page
    text = (reported.root / "report.md").read_text(encoding="utf-8")
    linked = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert len(linked) >= 16
    assert all((reported.root / link).exists() for link in linked)


def test_both_writers_print_the_tables_of_the_findings(reported: StudyLayout) -> None:
    text = (reported.root / "report.md").read_text(encoding="utf-8")
    assert "| full-seed42 | 38.4 | 51.2 | 75.0 % |" in text
    page = reported.report.read_text(encoding="utf-8")
    assert '<th scope="row">full-seed42</th><td>38.4</td><td>51.2</td><td>75.0 %</td>' in page


def test_a_configuration_is_printed_once_for_the_runs_that_share_it(scores_only: StudyLayout) -> None:
    def headings() -> list[str]:
        return list(compose(read_study(scores_only), [], []).ds_configs)

    assert headings() == ["all runs"]
    files.write_json(scores_only.run("full-seed42").ds_config, {"zero_optimization": {"stage": 3}})
    assert headings() == ["full-seed42", "lora-r8-seed42"]


def test_report_says_what_the_study_was(reported: StudyLayout) -> None:
    page = reported.report.read_text(encoding="utf-8")
    assert (
        "2 arms (full, lora-r8), 1 seed (42), trained from tiny on topic; measured at 2 steps (4, 8)" in page
    )
    assert "what update_norm means" in page
    assert "zero_optimization" in page
    assert "2 min 05 s" in page


def test_of_long_tables_the_last_checkpoints_are_read_and_nothing_else_is_said(
    study: StudyLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read_study(study)
    monkeypatch.setattr(study_of_tables, "MOST_ROWS", 0)
    short = read_study(study)
    assert topics(short) == topics(whole)
    assert last_checkpoint_grid(short) == last_checkpoint_grid(whole)
    for name in study_of_tables.LONG:
        rows, every = short.tables[name], whole.tables[name]
        assert set(rows["step"]) <= {0, 8}
        last = every[every["step"].isin([0, 8])]
        if name == "singular_values":
            last = last[last["layer"] == 1]  # the middle one of three
        pd.testing.assert_frame_equal(rows, last.reset_index(drop=True))


def test_groups_stand_side_by_side(tmp_path: Path, make_tables: Callable[..., Tables]) -> None:
    seeds = tuple(("full", 0, seed) for seed in range(30))
    groups = {
        "one": write_study(tmp_path / "s" / "one", make_tables(ONE_SEED, [4], 1)),
        "other": write_study(tmp_path / "s" / "other", make_tables(seeds, [4], 1)),
    }
    page = build_overview(StudyLayout(tmp_path / "s"), groups).read_text(encoding="utf-8")
    links = Links()
    links.feed(page)
    assert set(links.found) == {"one/report.html", "other/report.html"}
    assert f'<th scope="row">lora-r8</th><td>0.870 (1)</td><td>{MISSING}</td>' in page
    assert '<th scope="row">full</th><td>0.870 (1)</td><td>0.870 ± 0 (30)</td>' in page
    assert page.count("<details>") == 1  # thirty-one rows are folded away, three are not
    assert "<summary>31 rows</summary>" in page


def test_unchanged_tables_are_not_drawn_again(scores_only: StudyLayout) -> None:
    before = {path: path.stat().st_mtime_ns for path in [build(scores_only), *scores_only.figures.iterdir()]}
    build(scores_only)
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_a_figure_is_drawn_again_where_a_table_that_it_looked_for_is_another(
    study: StudyLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(illustrate, "DPI", 30)
    monkeypatch.setitem(illustrate.STYLE, "pdf.fonttype", 3)
    drawn: list[str] = []
    monkeypatch.setattr(
        illustrate, "_save", lambda _, path, suffix: drawn.append(path.stem) or files.write_text(path, suffix)
    )

    def again() -> set[str]:
        drawn.clear()
        build(study)
        return set(drawn)

    every = again()
    assert len(every) > 30
    assert again() == set()
    change(study, "deployment_benchmark_summary", "high")
    assert again() == {"latency_comparison"}
    change(study, "live_updates", "ratio")  # which a figure of another table shows as well, where it is there
    assert again() == {"update_to_weight", "layer_comparison"}
    study.table("matched_seeds").unlink()
    study.table("matched_seeds").with_suffix(".meta.json").unlink()
    assert again() == {"matched_comparison"}
    (study.figures / "training_loss.pdf").unlink()
    files.write_json(study.run("full-seed42").status, {"state": "training"})
    assert again() == {"training_loss"}
    scores = files.read_table(study.table("performance_metrics"))
    renamed = scores.assign(run=scores["run"].str.replace("full-", "whole-"))
    files.write_parquet(study.table("performance_metrics"), renamed)
    assert again() == every  # runs look otherwise now


def change(study: StudyLayout, name: str, column: str) -> None:
    table = files.read_table(study.table(name))
    files.write_parquet(study.table(name), table.assign(**{column: table[column] * 1.5}))


@pytest.mark.parametrize("change", ["table", "status", "figure", "markdown"])
def test_whatever_changed_is_made_anew(scores_only: StudyLayout, change: str) -> None:
    page = build(scores_only)
    os.utime(page, ns=(1, 1))
    match change:
        case "table":
            files.write_parquet(
                scores_only.table("performance_metrics"),
                files.read_table(scores_only.table("performance_metrics")),
            )
        case "status":
            files.write_json(scores_only.run("full-seed42").status, {"state": "training"})
        case "figure":
            (scores_only.figures / "learning_curve.png").unlink()
        case "markdown":
            (scores_only.root / "report.md").unlink()
    build(scores_only)
    assert page.stat().st_mtime_ns != 1
    assert (scores_only.figures / "learning_curve.png").exists()
    assert (scores_only.root / "report.md").exists()


def test_figures_without_a_table_are_left_out_with_the_reason(scores_only: StudyLayout) -> None:
    stale = scores_only.figures / "intruders.png"
    files.write_text(stale, "of an older report")
    page = build(scores_only).read_text(encoding="utf-8")
    assert sorted(path.stem for path in scores_only.figures.glob("*.png")) == DRAWN_FROM_SCORES
    assert re.search(r"Intruder dimensions</b>: the study has no table svd_analysis_results\.", page)
    assert not stale.exists()


def test_folders_from_anywhere_have_no_seed_and_no_task(scores_only: StudyLayout) -> None:
    shutil.rmtree(scores_only.runs)
    path = scores_only.tables / "performance_metrics.parquet"
    pd.read_parquet(path).assign(tasks="", seed=0).to_parquet(path)
    text = build(scores_only).read_text()
    assert "2 arms (" in text
    assert "1 seed (0)" not in text
    assert " on ;" not in text


def test_names_are_escaped(tmp_path: Path, make_tables: Callable[..., Tables]) -> None:
    table = make_tables(ONE_SEED, [4], 1)["performance_metrics"].replace({"full-seed42": "<b>|x|</b>"})
    page = build(write_study(tmp_path / "demo", {"performance_metrics": table})).read_text(encoding="utf-8")
    assert "<b>|x|</b>" not in page
    assert "&lt;b&gt;|x|&lt;/b&gt;" in page


def environments(*rows: tuple[str, int, float, str]) -> pd.DataFrame:
    """Of (run, step, moved, versions); the reference was stored with torch 1."""
    table = pd.DataFrame(rows, columns=["run", "step", "canary_moved", "versions"])
    table = table.assign(method="lora", rank=8, tasks="topic", seed=42, split="test", device="cpu")
    reasons = table["canary_moved"].map({1.0: "log-likelihoods by up to 0.02 nats", 0.0: ""})
    return table.assign(canary_difference=0.02, canary_reason=reasons, reference_versions="torch 1, peft 1")


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([("base", 0, 0.0, "torch 2"), ("lora-r8-seed42", 4, 0.0, "torch 2")], []),
        (
            [("base", 0, 1.0, "torch 2, peft 1"), ("lora-r8-seed42", 4, 1.0, "torch 2, peft 1")],
            [
                "Scoring has moved: where base, lora-r8-seed42 at step 4 was scored, a frozen reference "
                "model no longer answers as it did (log-likelihoods by up to 0.02 nats; its answers were "
                "stored with torch 1, here are torch 2). These scores do not compare with those of other "
                "environments."
            ],
        ),
        (
            [("base", 0, 0.0, "torch 2, peft 1"), ("lora-r8-seed42", 4, 0.0, "torch 3, peft 1")],
            [
                "Checkpoints were scored with different packages: base with torch 2, "
                "lora-r8-seed42 at step 4 with torch 3. A library alone can move scores by as much as "
                "methods differ: score all of them again in one environment."
            ],
        ),
    ],
    ids=["alike", "moved", "other versions"],
)
def test_scores_made_otherwise_are_warned_of_at_the_top(
    scores_only: StudyLayout, rows: list[tuple[str, int, float, str]], expected: list[str]
) -> None:
    files.write_table(
        scores_only.table("scoring_environments"), environments(*rows), {"columns": {}}, csv=False
    )
    content = compose(read_study(scores_only), [], [])
    assert list(content.warnings) == expected
    first = as_markdown(content).split("## Last checkpoints")[0]
    assert first.count("> **Warning.**") == as_html(content).count('<p class="warning">') == len(expected)


def test_one_seed_is_said_to_be_one(scores_only: StudyLayout) -> None:
    assert "One seed: full, lora-r8 (42). No interval over seeds" in str(parts(scores_only, "Evidence")[0])


def test_without_the_tables_of_contrasts_values_are_stated_and_no_interval(
    tmp_path: Path, make_tables: Callable[..., Tables]
) -> None:
    runs = [(method, rank, seed) for method, rank in (("full", 0), ("lora", 8)) for seed in (1, 2)]
    performance = make_tables(runs, [4], 1)["performance_metrics"]
    study = write_study(tmp_path / "demo", {"performance_metrics": performance})
    unknown = "the study has no table item_contrasts"
    names = ["full-seed1", "full-seed2", "lora-r8-seed1", "lora-r8-seed2"]
    (learnt,) = parts(study, "Learning")
    assert rows(learnt) == [(name, "4", "0.8700", "+0.450", unknown) for name in names]
    (forgotten,) = parts(study, "Forgetting")
    assert rows(forgotten)[0] == ("full-seed1", "4", "3.150", "+0.0500", unknown, "0.0700 ± 0.0050")
    assert "no table seed_means: no interval over them" in str(parts(study, "Evidence")[0])
    assert parts(study, "Means and differences over seeds") == []


def test_scored_items_are_not_what_a_report_is_made_from(scores_only: StudyLayout) -> None:
    page = build(scores_only)
    os.utime(page, ns=(1, 1))
    files.write_text(scores_only.run("full-seed42").scores / "step-000004.topic.parquet", "other items")
    assert build(scores_only).stat().st_mtime_ns == 1


def test_rank_is_stated_against_its_null(study: StudyLayout) -> None:
    found, note = parts(study, "Rank of the update")
    full, lora = rows(found)
    # made up: entropy rank 0.6 of the bound 64, null 0.8 of it
    assert full == ("full-seed42", "38.4", "51.2", "75.0 %", MISSING)
    assert lora[-1] == "8"
    assert "by construction" in str(note)


def test_intruders_and_drift_are_counted(study: StudyLayout) -> None:
    # made up: every third layer of LoRA has one intruder in each of 7 modules; 3 layers
    assert rows(parts(study, "Intruder dimensions")[0])[1][:3] == ("lora-r8-seed42", "7 / 7", "21")
    full = rows(parts(study, "Drift of the representations")[0])[0]
    assert full[:3] == ("full-seed42", "0.9733 ± 0.0033 (2)", "0.9400 ± 0.0075 (3)")


def test_summary_has_a_row_a_run(study: StudyLayout) -> None:
    grid = last_checkpoint_grid(read_study(study))
    columns = dict(zip(grid.headers, zip(*grid.rows, strict=True), strict=True))
    assert columns["run"] == ("base", "full-seed42", "lora-r8-seed42")
    assert columns["topic: accuracy"] == ("0.420 ± 0.025", "0.870 ± 0.017", "0.870 ± 0.017")
    assert columns["NLL increase (nats/token)"] == (MISSING, "0.0500", "0.0200")
    assert columns["CKA, last state"][1] == "0.9400 ± 0.0075 (3)"
    assert columns["intruders L / R"] == (MISSING, "0 / 0", "7 / 7")
    assert columns["trainable parameters"] == (MISSING, "4,096", "4,096")


def test_what_was_not_measured_at_the_last_step_is_missing(
    tmp_path: Path, make_tables: Callable[..., Tables]
) -> None:
    """Scores of an earlier checkpoint beside the weights of the last one would be of two models."""
    tables = make_tables(ONE_SEED, [4, 8], 1)
    scores = tables["performance_metrics"]
    early = tables | {"performance_metrics": scores[scores["step"] < 8]}
    grid = last_checkpoint_grid(read_study(write_study(tmp_path / "demo", early)))
    columns = dict(zip(grid.headers, zip(*grid.rows, strict=True), strict=True))
    assert columns["step"] == (MISSING, "8", "8")
    assert columns["topic: accuracy"] == ("0.420 ± 0.025", MISSING, MISSING)
    assert columns["entropy rank"][1] != MISSING


def test_a_headline_of_which_nothing_is_defined_has_no_column(study: StudyLayout) -> None:
    path = study.table("drift_metrics")
    pd.read_parquet(path).assign(cka=float("nan")).to_parquet(path)
    grid = last_checkpoint_grid(read_study(study))
    assert not any(header.startswith("CKA") for header in grid.headers)
    assert len(grid.rows) == 3


def test_runs_of_different_code_are_said_to_be(scores_only: StudyLayout) -> None:
    assert not any("different commits" in str(part) for part in parts(scores_only, "Evidence"))
    for name, commit in (("full-seed42", "aaa"), ("lora-r8-seed42", "bbb")):
        files.write_json(scores_only.run(name).environment, {"git": {"commit": commit, "dirty": False}})
    assert "Runs were trained by code of different commits: aaa, bbb." in parts(scores_only, "Evidence")


def test_tables_of_the_whole_study_alone_are_no_report(study: StudyLayout) -> None:
    for path in study.tables.glob("*.parquet"):
        if path.stem != "matched_comparison":
            path.unlink()
    with pytest.raises(UserError, match=r"no table of checkpoints.*rankdrift analyze --study"):
        read_study(study)


def test_settings_are_parted_into_alike_and_different() -> None:
    trees = {"a": {"x": {"y": 1}, "z": [1, 2]}, "b": {"x": {"y": 2}, "z": [1, 2], "only": None}}
    assert differing(trees) == Grid(("run", "x.y", "only"), (("a", "1", MISSING), ("b", "2", "none")))
    assert differing({"a": trees["a"], "c": trees["a"]}).rows == ()
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
        (-0.0, "0"),
    ],
)
def test_numbers_read_well(value: float | None, text: str) -> None:
    assert number(value) == text


def test_markdown_rows_keep_their_columns(tmp_path: Path, make_tables: Callable[..., Tables]) -> None:
    table = make_tables(ONE_SEED, [4], 1)["performance_metrics"].replace({"full-seed42": "a|b"})
    known = read_study(write_study(tmp_path / "demo", {"performance_metrics": table}))
    lines = as_markdown(compose(known, [], [])).splitlines()
    named = [line for line in lines if line.startswith("| a\\|b |")]
    header = next(line for line in lines if line.startswith("| run |"))
    cells = re.compile(r"(?<!\\)\|")
    assert named
    assert len(cells.split(named[0])) == len(cells.split(header))


def test_a_folder_without_tables_is_an_error_with_a_remedy(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path / "nowhere")]) == 2
    message = capsys.readouterr().err
    assert str(tmp_path / "nowhere" / "tables") in message
    assert "rankdrift analyze" in message


def test_incomplete_and_foreign_tables_are_named(scores_only: StudyLayout) -> None:
    path = scores_only.table("performance_metrics")
    table = files.read_table(path)
    path.with_suffix(".meta.json").unlink()
    with pytest.raises(UserError, match=r"performance_metrics\.meta\.json: missing.*run the analysis again"):
        build(scores_only)
    files.write_table(path, table.drop(columns=["seed"]), {}, csv=False)
    with pytest.raises(UserError, match=r"performance_metrics\.parquet: no column seed"):
        build(scores_only)


def test_the_command_prints_where_the_report_is(
    scores_only: StudyLayout, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(scores_only.root)]) == 0
    first, *_, last, report = capsys.readouterr().out.splitlines()
    figures = len(registry.names("figure"))
    assert (first, last) == (f"  figures 0/{figures}", f"  figures {figures}/{figures}")
    assert report == str(scores_only.report)


def test_tables_without_runs_are_read_where_they_are_of_the_whole_study(study: StudyLayout) -> None:
    assert "run" not in read_study(study).tables["matched_comparison"]
    path = study.table("matched_comparison")
    files.write_table(path, files.read_table(path), {"parts": {"full-seed42-step-000004": {}}}, csv=False)
    with pytest.raises(UserError, match=r"matched_comparison\.parquet: no column run"):
        read_study(study)
