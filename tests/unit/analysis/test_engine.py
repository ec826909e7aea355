"""Parts are computed once, kept, and joined; what changed is computed anew."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from rankdrift import files, registry
from rankdrift.analysis import engine, worklist
from rankdrift.analysis.contract import Analysis, Params
from rankdrift.analysis.parts import settings_of
from rankdrift.analysis.sources.subjects import IDENTITY, Subject, base_subject
from rankdrift.errors import UserError
from rankdrift.settings import Section


class Settings(Section):
    k: int = 10
    grid: tuple[int, ...] = (1, 5)


class OfAnother(Section):
    k: int = 10


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
            settings=Settings,
            rows="drift_inputs",
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

    def run(self, subjects: list[Subject] | None = None, settings: Any = (), **given: Any) -> list[Path]:
        params = Params(cache=self.root / "cache", settings=settings, **given)
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
    sizes, names = study.run(settings=(Settings(k=3),))
    assert pd.read_csv(sizes.with_suffix(".csv")).equals(pd.read_parquet(sizes))
    assert not names.with_suffix(".csv").exists()
    meta = files.read_json(sizes.with_suffix(".meta.json"))
    assert meta["columns"] == {"size": "bytes"}
    assert meta["parts"]["r-step-000001"]["settings"] == {"k": 3, "grid": [1, 5]}
    expected = sorted([n, files.content_digest(study.root / n)] for n in ("base", "step-1"))
    assert meta["parts"]["r-step-000001"]["inputs"] == expected
    assert "python" in meta["environment"]


def test_a_checkpoint_of_ours_is_known_by_its_manifest(study: Study) -> None:
    def inputs(checksum: str, base: str, text: str) -> list[list[str]]:
        study.write("step-2", text)
        stated = {"files": {"weights": {"size": 3, "checksum": checksum}}, "base": base}
        files.write_json(study.root / "step-2" / "checkpoint.json", stated)
        settings = settings_of(study.analysis, Params(cache=study.root), [study.root / "step-2"])
        found: list[list[str]] = settings["inputs"]
        return found

    before = inputs("a", "/one", "abc")
    assert inputs("a", "/another", "read by nobody") == before
    assert inputs("b", "/one", "abc") != before


def test_tables_that_are_up_to_date_need_no_parts(study: Study) -> None:
    study.run()
    shutil.rmtree(study.tables / ".parts")
    study.computed.clear()
    study.run()
    assert study.computed == []
    study.write("step-2", "other weights")
    study.run()
    assert len(study.computed) > 1  # of the others nothing is left to join


def test_an_unchanged_study_is_not_touched(study: Study) -> None:
    study.run()
    before = {path: path.stat().st_mtime_ns for path in study.tables.rglob("*") if path.is_file()}
    study.computed.clear()
    study.run(workers=2, settings=(OfAnother(k=7),))
    assert study.computed == []
    assert {path: path.stat().st_mtime_ns for path in study.tables.rglob("*") if path.is_file()} == before


def test_a_setting_of_several_values_is_known_again(study: Study) -> None:
    study.run()
    study.computed.clear()
    study.run(settings=(Settings(grid=(1, 5)),))
    assert study.computed == []
    study.run(settings=(Settings(grid=(1, 6)),))
    assert study.computed == ["base", "step-1", "step-2"]


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


@pytest.mark.parametrize("change", ["setting", "input file", "version", "lost table"])
def test_whatever_numbers_depend_on_renews_them(study: Study, change: str) -> None:
    inputs = study.root / "inputs"
    inputs.write_text("some")
    settings: dict[str, Any] = {"drift_inputs": inputs}
    study.run(**settings)
    study.computed.clear()
    if change == "setting":
        settings["settings"] = (Settings(k=3),)
    elif change == "input file":
        inputs.write_text("others")
    elif change == "version":
        object.__setattr__(study.analysis, "version", 2)
    else:
        for path in [study.tables / "names.parquet", *(study.tables / ".parts").rglob("*.names.parquet")]:
            path.unlink()
    study.run(**settings)
    assert study.computed == ["base", "step-1", "step-2"]


def test_a_killed_analysis_continues(study: Study) -> None:
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


def test_a_run_is_one_part_and_states_its_own_steps(study: Study) -> None:
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
    odd = {"odd": pd.DataFrame({"other": [1]})}
    study.analysis = Analysis("odd", {"odd": {"one": ""}}, "checkpoint", lambda *_: odd)
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


UNITS = [f"{number:04d}.q_proj" for number in range(21)]


def split(subject: Subject, params: Params) -> list[str]:
    return [] if subject.tuned is None else UNITS


def measure(subject: Subject, params: Params, unit: str) -> dict[str, pd.DataFrame]:
    assert subject.tuned is not None
    with (subject.tuned.parent / "measured").open("a") as handle:
        handle.write(f"{subject.step} {unit}\n")
    if (subject.tuned.parent / "kill").exists() and subject.step == 2 and unit == UNITS[9]:
        raise KeyboardInterrupt
    values = pd.DataFrame({"unit": [unit] * 2, "value": [subject.step, int(unit[:4]) / 3]})
    return {"matrices": values}


BY_MATRIX = Analysis(
    "matrices",
    {"matrices": {"unit": "name", "value": "any"}},
    "checkpoint",
    settings=Settings,
    split=split,
    measure=measure,
)


def measured(study: Study) -> list[str]:
    path = study.root / "measured"
    return path.read_text().splitlines() if path.exists() else []


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_matrices_of_all_checkpoints_are_shared_over_processes(study: Study, workers: int) -> None:
    study.analysis = BY_MATRIX
    (table,) = study.run(workers=workers)
    rows = pd.read_parquet(table)
    assert rows["unit"].tolist() == [unit for _ in range(2) for unit in UNITS for _ in range(2)]
    assert rows["step"].tolist() == [1] * 42 + [2] * 42
    assert rows["value"].tolist() == [v for s in (1, 2) for n in range(21) for v in (s, n / 3)]
    assert sorted(measured(study)) == sorted(f"{step} {unit}" for step in (1, 2) for unit in UNITS)
    assert not list((study.tables / ".parts").rglob("*.portions"))


def test_a_kill_loses_a_portion_and_other_settings_take_nothing_of_it(study: Study) -> None:
    study.analysis = BY_MATRIX
    (study.root / "kill").touch()
    with pytest.raises(KeyboardInterrupt):
        study.run(workers=1)
    (study.root / "kill").unlink()
    before = len(measured(study))
    study.run(workers=1)
    again = measured(study)[before:]
    assert again == [f"2 {unit}" for unit in UNITS[8:]]  # step 1 and the first portion of step 2 were kept
    (study.root / "kill").touch()
    with pytest.raises(KeyboardInterrupt):
        study.run(workers=1, settings=(Settings(k=3),))
    (study.root / "kill").unlink()
    before = len(measured(study))
    study.run(workers=1, settings=(Settings(k=4),))
    assert len(measured(study)) - before == 42


def test_checkpoints_that_are_computed_whole_share_several_gpus(
    study: Study, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many processes as GPUs; one GPU, or none, and this process does it."""
    asked: list[int] = []

    def by_processes(function: Callable[..., Any], items: Sequence[Any], workers: int) -> Iterator[Any]:
        asked.append(workers)
        return map(function, items)

    monkeypatch.setattr(worklist, "map_unordered", by_processes)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    study.run()
    assert (asked, study.computed) == ([3], ["base", "step-1", "step-2"])
    study.computed.clear()
    monkeypatch.setattr("torch.cuda.device_count", lambda: 1)
    study.run(settings=(Settings(k=4),))
    assert (asked, study.computed) == ([3], ["base", "step-1", "step-2"])


def test_a_study_table_is_made_of_the_others_and_anew_where_they_change(study: Study) -> None:
    made: list[int] = []

    def compute_all(subjects: Any, params: Params, tables: Path) -> dict[str, pd.DataFrame]:
        sizes = pd.read_parquet(tables / "sizes.parquet")
        made.append(len(sizes))
        return {"sums": pd.DataFrame({"run": ["r"], "sum": [int(sizes["size"].sum())]})}

    sums = Analysis(
        "sums",
        {"sums": {"run": "folder", "sum": "bytes"}, "none": {"run": "folder"}},
        "study",
        compute_all=compute_all,
        reads=("sizes",),
    )
    analyses = {"sizes": study.analysis, "sums": sums}
    registry.load = lambda point, name: analyses[name]  # type: ignore[assignment]  # the fixture undoes it
    params = Params(cache=study.root / "cache")

    def run() -> list[Path]:
        return engine.run_analyses(["sums", "sizes"], study.subjects, study.tables, params, lambda *_: None)

    assert [path.stem for path in run()] == ["sizes", "names", "sums", "none"]  # it comes last
    run()
    assert made == [4]
    assert pd.read_parquet(study.tables / "sums.parquet")["sum"].tolist() == [24]
    assert list(pd.read_parquet(study.tables / "none.parquet").columns) == ["run"]
    study.write("step-2", "much longer weights")
    run()
    assert made == [4, 4]
    assert pd.read_parquet(study.tables / "sums.parquet")["sum"].tolist() == [50]
    object.__setattr__(study.analysis, "version", 2)  # its table is written anew, from the same checkpoints
    run()
    assert made == [4, 4]  # which say the same
