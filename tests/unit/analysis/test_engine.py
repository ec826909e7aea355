"""Parts are computed once, kept, and joined; what changed is computed anew."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rankdrift import records, registry
from rankdrift.analysis import engine
from rankdrift.analysis.analyses import Analysis, Params
from rankdrift.analysis.subjects import IDENTITY, Subject, base_subject
from rankdrift.errors import UserError


class Study:
    """A base, two checkpoints, and a made-up analysis that notes what it was asked to compute."""

    def __init__(self, root: Path) -> None:
        self.root, self.tables = root, root / "tables"
        self.computed: list[str] = []
        self.analysis = Analysis(
            name="sizes",
            columns={"sizes": {"size": "bytes"}, "names": {"name": "of the folder"}},
            per="checkpoint",
            compute=self.compute,
            parameters=("top_k", "drift_inputs"),
            parquet_only=frozenset({"names"}),
        )
        for name in ("base", "step-1", "step-2"):
            self.write(name, name)

    def write(self, name: str, text: str) -> None:
        (self.root / name).mkdir(exist_ok=True)
        (self.root / name / "weights").write_text(text)

    def compute(self, subject: Subject, params: Params) -> dict[str, pd.DataFrame]:
        folder = subject.tuned or subject.base
        self.computed.append(folder.name)
        names = pd.DataFrame({"name": [folder.name]})
        if subject.tuned is None:
            return {"names": names}
        return {"sizes": pd.DataFrame({"size": [(folder / "weights").stat().st_size] * 2}), "names": names}

    @property
    def subjects(self) -> list[Subject]:
        base = self.root / "base"
        steps = [
            Subject("r", "lora", 4, ("a", "b"), 7, s, base, self.root / f"step-{s}", self.root)
            for s in (1, 2)
        ]
        return [base_subject(base), *steps]

    def run(self, subjects: list[Subject] | None = None, **settings: Any) -> list[Path]:
        params = Params(cache=self.root / "cache", **settings)
        subjects = self.subjects if subjects is None else subjects
        return engine.run_analyses(["sizes"], subjects, self.tables, params, lambda *_: None)


@pytest.fixture
def study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Study:
    made = Study(tmp_path)
    monkeypatch.setattr(registry, "load", lambda point, name: made.analysis)
    return made


def test_tables_are_identified_rows_in_the_order_of_the_subjects(study: Study) -> None:
    sizes, names = study.run()
    table = pd.read_parquet(names)
    assert list(table.columns) == [*IDENTITY, "name"]
    assert list(table["name"]) == ["base", "step-1", "step-2"]
    assert list(table["run"]) == ["base", "r", "r"]
    assert table.loc[2, list(IDENTITY)].tolist() == ["r", "lora", 4, "a+b", 7, 2]
    assert pd.read_parquet(sizes)["step"].tolist() == [1, 1, 2, 2]


def test_csv_and_metadata_lie_beside_the_parquet(study: Study) -> None:
    sizes, names = study.run(top_k=3)
    assert pd.read_csv(sizes.with_suffix(".csv")).equals(pd.read_parquet(sizes))
    assert not names.with_suffix(".csv").exists()
    meta = records.read_json(sizes.with_suffix(".meta.json"))
    assert meta["columns"] == {"size": "bytes"}
    assert meta["parts"]["r-step-000001"]["params"] == {"top_k": 3, "drift_inputs": None}
    assert set(meta["parts"]["r-step-000001"]["inputs"]) == {str(study.root / n) for n in ("base", "step-1")}
    assert "python" in meta["environment"]


def test_an_unchanged_study_is_not_touched(study: Study) -> None:
    study.run()
    before = {path: path.stat().st_mtime_ns for path in study.tables.rglob("*") if path.is_file()}
    study.computed.clear()
    study.run(drift_rows=5)  # not among this analysis's parameters
    assert study.computed == []
    assert {path: path.stat().st_mtime_ns for path in study.tables.rglob("*") if path.is_file()} == before


def test_only_what_changed_is_computed(study: Study) -> None:
    sizes, _ = study.run()
    study.computed.clear()
    study.write("step-2", "much longer weights")
    study.run()
    assert study.computed == ["step-2"]
    assert pd.read_parquet(sizes)["size"].tolist() == [6, 6, 19, 19]


def test_a_new_checkpoint_costs_only_itself_and_an_old_one_can_leave(study: Study) -> None:
    base, first, second = study.subjects
    study.run([base, first])
    study.run([base, first, second])
    assert study.computed == ["base", "step-1", "step-2"]
    sizes, _ = study.run([base, second])
    assert pd.read_parquet(sizes)["step"].tolist() == [2, 2]


@pytest.mark.parametrize("change", ["parameter", "input file", "version", "lost part"])
def test_whatever_numbers_depend_on_computes_them_anew(
    study: Study, change: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    inputs = study.root / "inputs"
    inputs.write_text("some")
    settings: dict[str, Any] = {"drift_inputs": inputs}
    study.run(**settings)
    study.computed.clear()
    if change == "parameter":
        settings["top_k"] = 3
    elif change == "input file":
        inputs.write_text("others")
    elif change == "version":
        object.__setattr__(study.analysis, "version", 2)
    else:
        for path in (study.tables / ".parts").rglob("*.names.parquet"):
            path.unlink()
    study.run(**settings)
    assert study.computed == ["base", "step-1", "step-2"]


def test_a_killed_analysis_continues(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(subject: Subject, params: Params) -> dict[str, pd.DataFrame]:
        if subject.step == 2:
            raise KeyboardInterrupt
        return Study.compute(study, subject, params)

    object.__setattr__(study.analysis, "compute", killed)
    with pytest.raises(KeyboardInterrupt):
        study.run()
    assert not (study.tables / "sizes.parquet").exists()
    object.__setattr__(study.analysis, "compute", study.compute)
    study.run()
    assert study.computed == ["base", "step-1", "step-2"]


def test_a_table_without_rows_has_its_columns(study: Study) -> None:
    sizes, _ = study.run(study.subjects[:1])
    table = pd.read_parquet(sizes)
    assert list(table.columns) == [*IDENTITY, "size"]
    assert table.empty


def test_a_run_is_one_part_and_states_its_own_steps(study: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    def per_run(subject: Subject, params: Params) -> dict[str, pd.DataFrame]:
        study.computed.append(subject.run)
        return {"losses": pd.DataFrame({"loss": [3.0, 2.0, 1.0], "step": [1, 2, 3]})}

    study.analysis = Analysis("losses", {"losses": {"loss": "nats"}}, "run", per_run)
    (losses,) = study.run()
    table = pd.read_parquet(losses)
    assert study.computed == ["r"]  # the base subject here has no run folder
    assert list(table.columns) == [*IDENTITY, "loss"]
    assert table["step"].tolist() == [1, 2, 3]


def test_undeclared_columns_are_a_defect(study: Study) -> None:
    study.analysis = Analysis(
        "odd", {"odd": {"one": ""}}, "checkpoint", lambda *_: {"odd": pd.DataFrame({"other": [1]})}
    )
    with pytest.raises(AssertionError, match="not as declared"):
        study.run()


def test_two_checkpoints_of_one_name_are_refused(study: Study) -> None:
    first = study.subjects[1]
    with pytest.raises(UserError, match=r"step-1 and .*step-1 are both 'r-step-000001'"):
        study.run([first, first])


def test_progress_counts_parts(study: Study) -> None:
    seen: list[tuple[str, int, int]] = []
    params = Params(cache=study.root / "cache")
    engine.run_analyses(["sizes"], study.subjects, study.tables, params, lambda *step: seen.append(step))
    assert seen == [("sizes", done, 3) for done in range(4)]
