"""The benchmark of large studies makes one that analyses take for their own, and ends what takes too much."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import pandas as pd
import pytest

from rankdrift import files, registry
from rankdrift.analysis import engine
from rankdrift.analysis.report.study import read_study
from rankdrift.analysis.report.topics import topics
from rankdrift.analysis.sources.subjects import IDENTITY
from rankdrift.layout import StudyLayout
from rankdrift.studies.cells import read_cells
from rankdrift.studies.pipeline import analyse_study
from rankdrift.studies.status import status_of

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


def benchmark(name: str) -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        return __import__(name)


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> StudyLayout:
    made = benchmark("made_study")
    sizes = made.Sizes(runs=4, seeds=2, checkpoints=2, matrices=14, width=16)
    found: StudyLayout = made.make(tmp_path_factory.mktemp("scale") / "s", sizes)
    return found


def test_all_parts_of_a_made_study_are_up_to_date(study: StudyLayout) -> None:
    parts = {path: path.stat().st_mtime_ns for path in (study.tables / engine.PARTS).rglob("*")}
    tables = analyse_study(study, registry.names("analysis"), lambda line: None)
    assert {path: path.stat().st_mtime_ns for path in (study.tables / engine.PARTS).rglob("*")} == parts
    rows = {path.stem: len(pd.read_parquet(path)) for path in tables}
    checkpoints, matrices = 4 * 2, 14
    assert rows["svd_analysis_results"] == checkpoints * matrices
    assert rows["subspace_drift"] == checkpoints * matrices * 2 * 4  # k of 1, 2, 5, 10
    assert rows["intruder_dimensions"] == 7 * rows["subspace_drift"]
    assert rows["drift_metrics"] == checkpoints * 3 * 3 * 2
    assert rows["training_metrics"] == 4 * (1 + 200 + 2 * 2)
    assert rows["item_contrasts"] == (4 + 2) * 10  # with the base, and two pairs of runs
    pairs = pd.read_parquet(study.table("task_vectors"))
    assert len(pairs[pairs["level"] == "global"]) == 6 + 4
    for path in tables:
        table = pd.read_parquet(path)
        analysis = registry.load("analysis", files.read_json(path.with_suffix(".meta.json"))["analysis"])
        identity = [] if analysis.per == "study" else list(IDENTITY)
        assert list(table.columns) == [*identity, *analysis.columns[path.stem]]


def test_a_made_study_has_a_status_and_something_to_report(study: StudyLayout) -> None:
    analyse_study(study, ["performance", "spectra", "seed_contrasts"], lambda line: None)
    cells = read_cells(study)
    assert [status_of(cell).state for cell in cells] == ["done"] * 4
    found = {topic.title for topic in topics(read_study(study))}
    assert {"Learning", "Forgetting", "Size of the update", "Intruder dimensions"} <= found


def test_what_takes_too_much_is_ended_and_said() -> None:
    scale = benchmark("scale")
    waiting = [sys.executable, "-c", "import time; time.sleep(60)"]
    found = scale.timed(waiting, memory=10.0, minutes=0.01)
    assert found["ended"] == "more than 0.01 min"
    assert found["seconds"] < 30
    filling = [sys.executable, "-c", "kept = bytearray(b'x') * 300_000_000; import time; time.sleep(60)"]
    found = scale.timed(filling, memory=0.1, minutes=5)
    assert found["ended"] == "more than 0.1 GiB"
    assert found["peak_gib"] > 0.1
    assert "ended" not in scale.timed([sys.executable, "-c", ""], memory=10.0, minutes=5)
    with pytest.raises(SystemExit, match="exit code 3"):
        scale.timed([sys.executable, "-c", "raise SystemExit(3)"], memory=10.0, minutes=5)


def test_exponents_are_of_the_number_of_runs() -> None:
    def of(seconds: float, **more: object) -> dict[str, object]:
        return {"seconds": seconds, "cpu_seconds": seconds, "peak_gib": 1.0} | more

    found = {10: {"a": of(1), "b": of(2)}, 100: {"a": of(100), "b": of(3, ended="more than 1 min")}}
    assert benchmark("scale").exponents(found) == {"a": {"seconds": 2.0, "cpu_seconds": 2.0, "peak_gib": 0.0}}
    assert benchmark("scale").exponents({10: found[10]}) == {}
