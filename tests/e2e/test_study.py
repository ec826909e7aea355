"""A whole study on the tiny model, as a user runs it: done once, done twice, killed and continued."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import psutil
import pytest
from forked import run_command
from stand_in_endpoint import DELAY, StandIn

from rankdrift import files, registry
from rankdrift.layout import StudyLayout, steps_in
from rankdrift.zero_checkpoint.manifest import complete_steps

pytestmark = pytest.mark.e2e

SMALL = [
    *("model.name=tiny", "data.train_limit=60", "data.validation_limit=12", "training.steps=4"),
    *("training.save_every=2", "training.warmup_steps=1", "scoring.text_limit=4", "analysis.workers=1"),
    "scoring.splits=[validation,test]",
]


def command(output: Path, *more: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "rankdrift",
        "study",
        "run",
        "--ranks",
        "2",
        f"output={output}",
        *SMALL,
        *more,
    ]


def run_study(output: Path) -> None:
    rankdrift(*command(output)[3:])


@pytest.fixture(scope="module")
def study(cache: Path, tmp_path_factory: pytest.TempPathFactory) -> StudyLayout:
    output = tmp_path_factory.mktemp("study")
    subprocess.run(command(output), check=True, timeout=600)
    return StudyLayout(output / "demo")


def test_every_table_has_its_columns_and_rows(study: StudyLayout) -> None:
    identity = ["run", "method", "rank", "tasks", "seed", "step"]
    for name in registry.names("analysis"):
        analysis = registry.load("analysis", name)
        for table, columns in analysis.columns.items():
            found = files.read_table(study.table(table))
            assert list(found.columns) == [*([] if analysis.per == "study" else identity), *columns], table
            assert files.read_json(study.table(table).with_suffix(".meta.json"))["rows"] == len(found)
            # nothing edited; one seed, few checkpoints; one task; nothing searched
            empty = ("variant_scores", "matched_seeds", "live_conflict", "search_trials", "search_arms")
            empty += ("deployment_benchmark_summary", "deployment_checks")
            if table not in empty:
                assert len(found), table
            runs = {"full-seed42", "lora-r8-seed42"} - ({"lora-r8-seed42"} if name == "vectors" else set())
            runs = {"base"} if table == "baselines" else runs
            if analysis.per != "study" and len(found):  # LoRA trains no vectors
                assert runs <= set(found["run"]), table


def test_the_tables_hold_every_checkpoint(study: StudyLayout) -> None:
    svd = files.read_table(study.table("svd_analysis_results"))
    counts = svd[(svd["run"] != "base") & (svd["layer"] >= 0)].groupby(["run", "step"]).size()
    assert counts.to_dict() == {(run, step): 3 * 7 for run in study.run_names() for step in (2, 4)}
    lora = svd[svd["method"] == "lora"]
    assert (lora["update_numerical_rank"] <= 8).all()
    assert ((lora["relative_update_norm"] > 0) == (lora["layer"] >= 0)).all()  # embeddings are not adapted


def test_the_report_is_one_file_with_its_pictures_in_it(study: StudyLayout) -> None:
    html = study.report.read_text(encoding="utf-8")
    assert html.count("data:image/png;base64,") >= 10
    assert 'src="http' not in html
    assert "one seed" in html.lower()


def files_of(study: StudyLayout) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in study.root.rglob("*") if p.is_file()}


def test_a_second_call_changes_nothing(study: StudyLayout) -> None:
    before = files_of(study)
    run_study(study.root.parent)
    after = files_of(study)
    assert {name for name in before | after if before.get(name) != after.get(name)} == set()


def test_a_lean_study_keeps_what_it_needs_to_do_nothing(study: StudyLayout, tmp_path: Path) -> None:
    lean = StudyLayout(shutil.copytree(study.root, tmp_path / "demo"))
    rankdrift(*command(tmp_path, "--lean")[3:])
    assert not (lean.base / "cache").exists()
    for name in study.run_names():
        assert complete_steps(lean.run(name).checkpoints) == [4]
        assert steps_in(lean.run(name).exports) == [2, 4]
    before = files_of(lean)
    run_study(tmp_path)
    after = files_of(lean)
    assert {name for name in before | after if before.get(name) != after.get(name)} == set()


def test_killed_half_way_it_continues_to_the_same_numbers(study: StudyLayout, tmp_path: Path) -> None:
    process = subprocess.Popen(command(tmp_path), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    killed = StudyLayout(tmp_path / "demo")
    first = killed.run("lora-r8-seed42")
    deadline = time.monotonic() + 200
    while not (first.checkpoints / "latest").exists():
        assert time.monotonic() < deadline, "no checkpoint appeared"
        assert process.poll() is None, "the study ended by itself"
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_until_no_process_names(tmp_path)
    run_study(tmp_path)
    for name in study.run_names():
        expected = files.read_jsonl(study.run(name).metrics)
        found = files.read_jsonl(killed.run(name).metrics)
        timeless = ["step", "split", "loss", "learning_rate", "gradient_norm"]
        pd.testing.assert_frame_equal(pd.DataFrame(found)[timeless], pd.DataFrame(expected)[timeless])


def wait_until_no_process_names(folder: Path, seconds: float = 30) -> None:
    deadline = time.monotonic() + seconds
    while left := [p.pid for p in psutil.process_iter() if names(p, folder)]:
        assert time.monotonic() < deadline, f"processes {left} outlive the study"
        time.sleep(0.1)


def names(process: psutil.Process, folder: Path) -> bool:
    try:
        return process.pid != os.getpid() and any(str(folder) in part for part in process.cmdline())
    except psutil.Error:
        return False


def test_another_experiment_in_the_same_folder_is_refused(study: StudyLayout) -> None:
    before = files_of(study)
    arguments = command(study.root.parent, "training.learning_rate=0.5")[3:]
    assert "holds a run with other settings" in refused(*arguments)
    assert files_of(study) == before


def test_nothing_is_left_in_shared_memory(study: StudyLayout) -> None:
    assert not list(Path("/dev/shm").glob("deepspeed_allreduce_buffer*"))


def test_folders_from_anywhere_are_analysed(study: StudyLayout, tmp_path: Path) -> None:
    base = files.read_json(study.run("full-seed42").checkpoint(4) / "checkpoint.json")["base"]
    tuned = [study.run(name).export(4) for name in study.run_names()]
    options = [part for folder in tuned for part in ("--tuned", str(folder))]
    rankdrift("analyze", "--base", base, *options, "--output", tmp_path)
    found = files.read_table(StudyLayout(tmp_path).table("svd_analysis_results"))
    expected = files.read_table(study.table("svd_analysis_results")).query("step == 4")
    key = "relative_update_norm"
    assert sorted(found[found["run"] != "base"][key]) == pytest.approx(sorted(expected[key]))


def rankdrift(*arguments: object) -> str:
    status, said = run_command(*arguments)
    assert status == 0, said[-6000:]
    return said


def test_a_line_from_the_base_ends_in_the_step(study: StudyLayout) -> None:
    run = study.run("lora-r8-seed42")
    rankdrift("analyze", "interpolate", run.root, "--at", 0, 1)
    for at, expected in ((0, study.base / "scores" / "step-000000.json"), (1, run.score(4))):
        found = files.read_json(run.variant(4, f"interpolation-{at}").score(4))["tasks"]
        for task, result in files.read_json(expected)["tasks"].items():
            for metric in set(result["metrics"]) & {"nll", "accuracy", "f1"}:
                want = result["metrics"][metric]["value"]
                # an adapter is merged in an edited model, and added in the step's own scores
                assert found[task]["metrics"][metric]["value"] == pytest.approx(want, rel=1e-6), (at, metric)


def test_intruders_are_edited_beside_controls_of_equal_size(study: StudyLayout) -> None:
    run = study.run("lora-r8-seed42")
    chosen = ("--threshold", 0.9995, "--top-k", 3, "--strength", 0.5)  # so that there are some after 4 steps
    assert "no intruder among" in refused("analyze", "intervene", run.root, "--threshold", 0.01)
    rankdrift("analyze", "intervene", run.root, *chosen)
    rankdrift("analyze", "variants", "--study", study.root)
    table = files.read_table(study.table("variant_scores"))
    arms = table[table["kind"] == "intervention"].groupby("arm").first()
    assert set(arms.index) == {"intruders", "neighbours", "random", "shrunk", "rescaled"}
    assert arms.loc["intruders", "vectors"] == arms.loc["random", "vectors"] > 0
    sizes = arms["relative_edit_norm"], arms["relative_update_norm"]
    assert sizes[0]["random"] == pytest.approx(sizes[0]["intruders"], rel=1e-6)
    assert sizes[1]["rescaled"] == pytest.approx(sizes[1]["intruders"], rel=1e-6)
    text = table[(table["task"] == "general_text") & (table["metric"] == "nll")]
    own = files.read_json(run.score(4))["tasks"]["general_text"]["metrics"]["nll"]["value"]
    assert (text["trained_value"] == own).all()
    assert (abs(text["difference"] - (text["value"] - own)) < 1e-9).all()
    assert "up to date" in rankdrift("analyze", "intervene", run.root, *chosen)


def refused(*arguments: object) -> str:
    status, said = run_command(*arguments)
    assert status == 2, said
    assert "Traceback" not in said
    return said


def test_runs_are_compared(study: StudyLayout) -> None:
    runs = [study.run(name).root for name in study.run_names()]
    printed = rankdrift("analyze", "compare", *runs)
    for words in ("Learning and forgetting", "Item by item", "one seed: no interval over seeds"):
        assert words in printed
    assert "two or more run folders" in refused("analyze", "compare", runs[0])


def test_load_on_a_server_is_measured_beside_the_base_model(study: StudyLayout) -> None:
    server = StandIn()
    models = ["--adapters", "lora-r8=one", "--merged", "lora-r8=two", "--full", "full"]
    size = ["--clients", 2, "--requests", 6, "--rounds", 4, "--tokens", 3]
    said = rankdrift("load", study.root, "--url", server.url, *models, *size)
    assert "lora-r8" in said
    table = files.read_table(study.table("deployment_benchmark_summary"))
    found = table[table["quantity"] == "further_token"].set_index(["arm", "way"])
    ways = {("base", "base"), ("lora-r8", "unmerged"), ("lora-r8", "merged"), ("full", "full")}
    assert set(found.index) == ways
    assert found["ratio"]["lora-r8", "unmerged"] == pytest.approx(1, abs=0.5)
    assert (found["samples"] == 4 * 6 * 2).all()
    assert found["p50"].between(DELAY, 10 * DELAY).all()
    assert set(table["load"]) == {"closed, 2 clients"}
    assert {body["model"] for body in server.seen} == {"base", "one", "two", "full"}
    server.stop()
