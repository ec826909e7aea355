"""What a study does with runs that are there."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from rankdrift import files, registry
from rankdrift.data.dataset import load_rows
from rankdrift.data.identity import run_identity
from rankdrift.errors import RankError, UserError
from rankdrift.layout import StudyLayout
from rankdrift.models.base import load_tokenizer
from rankdrift.spec import Recipe, Spec, parse_spec, read_spec, recipe_of
from rankdrift.studies import carry_out
from rankdrift.studies.cells import CONFIGS, Cell, cells_of, read_cells, root_of
from rankdrift.studies.executors import Begun, Outcome, Task
from rankdrift.studies.pipeline import refuse_other_runs, run_study


@pytest.mark.parametrize("changed", [{"analysis": {"drift": {"rows": 7}}}, {"scoring": {"limit": 5}}])
def test_a_finished_run_is_scored_and_analysed_as_the_recipe_now_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: dict[str, dict[str, int]]
) -> None:
    """The stages behind training read the run's settings, which are then those that are asked for now."""
    shared = {"model": {"name": "tiny"}, "output": str(tmp_path)}
    before = Recipe(shared=shared, arms={"a": {}}, seeds=(1,)).spec()
    now = Recipe(shared=shared | changed, arms={"a": {}}, seeds=(1,)).spec()
    cell = Cell(now, CONFIGS / "zero2.json", 1)
    files.write_json(cell.run.spec, before.as_dict())
    files.write_json(cell.run.status, {"state": "finished"})
    seen: list[Spec] = []
    monkeypatch.setattr(carry_out, "score_run", lambda run, **more: seen.append(read_spec(run.spec)))
    monkeypatch.setattr(carry_out, "_measure", lambda *given: None)
    said: list[str] = []
    carry_out.carry_out(cell, with_base=False, say=said.append)
    assert "    finished before" in said
    assert seen == [now] != [before]


def test_one_name_for_all_arms_is_refused(tmp_path: Path) -> None:
    shared = {"model": {"name": "tiny"}, "output": str(tmp_path)}
    recipe = Recipe(shared=shared, arms={"a": {}, "b": {}}, seeds=(1,), overrides=("arm=foo",))
    with pytest.raises(UserError, match="arm=foo would give 2 runs one name"):
        cells_of(recipe, CONFIGS / "zero2.json", 1)


class Scripted:
    """An executor of which a test says what becomes of each task."""

    is_here = True

    def __init__(self, errors: dict[str, BaseException | None]) -> None:
        self.errors, self.tasks = errors, list[Task]()

    def carry_out(self, tasks: Sequence[Task], begun: Begun) -> Iterator[Outcome]:
        self.tasks += tasks
        for task in tasks:
            begun(task, "here")
            yield Outcome(task, "here", error=self.errors.get(task.name))


def a_study(tmp_path: Path, **more: Any) -> tuple[StudyLayout, Recipe, list[Cell]]:
    tree = {"model": {"name": "tiny"}, "data": DATA, "output": str(tmp_path), "study": "s", "seeds": [1, 2]}
    recipe = recipe_of(tree | more, tmp_path)
    return root_of(recipe), recipe, cells_of(recipe, CONFIGS / "zero2.json", 2)


@pytest.mark.usefixtures("tiny")
def test_every_cell_is_a_task_and_the_first_of_a_group_scores_its_base(tmp_path: Path) -> None:
    grid = {"data.max_length": [40, 50]}
    root, recipe, cells = a_study(tmp_path, grid=grid)
    executor = Scripted({})
    assert run_study(root, recipe, cells, executor, say=lambda line: None) == []  # nothing was trained
    assert [(task.name, task.slots, task.arguments[1]) for task in executor.tasks] == [
        *(("max_length40/lora-r8-seed1", 2, True), ("max_length40/lora-r8-seed2", 2, False)),
        *(("max_length50/lora-r8-seed1", 2, True), ("max_length50/lora-r8-seed2", 2, False)),
    ]
    again = Scripted({})
    run_study(root, recipe, read_cells(root), again, only=cells[1:2], say=lambda line: None)
    assert [task.name for task in again.tasks] == ["max_length40/lora-r8-seed2"]
    assert not root.driver.exists()


@pytest.mark.usefixtures("tiny")
@pytest.mark.parametrize(
    ("errors", "kind", "message"),
    [
        ({"lora-r8-seed1": RankError("lost")}, RankError, r"1 of 2 cells failed \(lora-r8-seed1: lost\)"),
        (dict.fromkeys(("lora-r8-seed1", "lora-r8-seed2"), UserError("no data")), UserError, "^no data$"),
    ],
)
def test_failures_are_told_at_the_end(
    tmp_path: Path, errors: dict[str, BaseException | None], kind: type[Exception], message: str
) -> None:
    root, recipe, cells = a_study(tmp_path)
    executor = Scripted(errors)
    with pytest.raises(kind, match=message):
        run_study(root, recipe, cells, executor, say=lambda line: None)
    assert len(executor.tasks) == 2


@pytest.mark.usefixtures("tiny")
def test_a_split_that_will_be_scored_is_missed_before_anything_is_trained(tmp_path: Path) -> None:
    files.write_text(tmp_path / "rows" / "glue_mrpc" / "train.csv", "sentence1,sentence2,label\na,b,0\n")
    files.write_text(tmp_path / "rows" / "glue_mrpc" / "validation.csv", "sentence1,sentence2,label\na,b,0\n")
    data = {"tasks": ["mrpc"], "root": str(tmp_path / "rows")}
    root, recipe, cells = a_study(tmp_path, data=data)
    executor = Scripted({})
    with pytest.raises(UserError, match=r"glue_mrpc: no file of the split 'test'.*data.carve=\[mrpc\]"):
        run_study(root, recipe, cells, executor, say=lambda line: None)
    assert executor.tasks == []
    assert not root.cells.exists()


DATA = {"tasks": ["topic"], "train_limit": 6, "max_length": 400}


def a_run(root: Path, **sections: Any) -> Spec:
    tree = {"model": {"name": "tiny"}, "data": DATA, "output": str(root), "method": {"name": "full"}}
    return parse_spec(tree | sections)


def held(spec: Spec, base: Path) -> StudyLayout:
    """A study whose run is finished, as training leaves it."""
    study = StudyLayout(spec.study_root)
    run = study.run(spec.run_name)
    rows = load_rows(spec, "train", load_tokenizer(base))
    files.write_json(run.spec, spec.as_dict())
    files.write_json(run.identity, run_identity(spec, rows, base))
    files.write_json(run.status, {"state": "finished"})
    return study


@pytest.mark.parametrize(
    "sections",
    [
        {"data": DATA | {"general_text": "builtin"}},
        {"model": {"name": "tiny", "gradient_checkpointing": True}},
        {"method": {"name": "full", "rank": 3}},
        {"training": {"micro_batch": 4}},
        {"data": DATA | {"max_length": 401}},  # cuts no row, as 400 does not
    ],
)
def test_a_run_is_the_same_where_no_weight_changes(
    tmp_path: Path, tiny: Path, sections: dict[str, Any]
) -> None:
    study = held(a_run(tmp_path), tiny)
    refuse_other_runs(study, [a_run(tmp_path, **sections)], tiny)


@pytest.mark.parametrize(
    ("sections", "what"),
    [
        ({"data": DATA | {"train_limit": 5}}, r"training rows was \w{12}, is \w{12}"),
        ({"data": DATA | {"max_length": 40}}, r"training rows was"),
        ({"training": {"clip": 0.5}}, r"training\.clip was 1\.0, is 0\.5"),
        ({"training": {"probe_every": 3}}, r"training\.probe_every was 10, is 3"),
    ],
)
def test_a_finished_run_is_another_where_a_weight_or_its_record_would_change(
    tmp_path: Path, tiny: Path, sections: dict[str, Any], what: str
) -> None:
    study = held(a_run(tmp_path), tiny)
    with pytest.raises(UserError, match=rf"holds a run with other settings \(.*{what}.*\); choose another"):
        refuse_other_runs(study, [a_run(tmp_path, **sections)], tiny)


def test_a_new_version_of_a_task_and_another_base_make_another_run(
    tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = a_run(tmp_path)
    study = held(spec, tiny)
    copy = shutil.copytree(tiny, tmp_path / "copy")
    refuse_other_runs(study, [spec], copy)  # the same weights elsewhere
    task = registry.load("task", "topic")
    newer = dataclasses.replace(task, version=task.version + 1)
    load = registry.load
    monkeypatch.setattr(registry, "load", lambda point, name: newer if point == "task" else load(point, name))
    with pytest.raises(UserError, match=r"task versions was .*1.*, is .*2"):
        refuse_other_runs(study, [spec], tiny)


def test_a_moved_study_is_the_same_study(tmp_path: Path, tiny: Path) -> None:
    held(a_run(tmp_path / "a"), tiny)
    (tmp_path / "a").rename(tmp_path / "b")
    moved = a_run(tmp_path / "b")
    refuse_other_runs(StudyLayout(moved.study_root), [moved], tiny)
