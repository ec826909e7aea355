"""What a study does with runs that are there."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from rankdrift import files, registry
from rankdrift.data.dataset import load_rows
from rankdrift.data.identity import run_identity
from rankdrift.errors import UserError
from rankdrift.layout import RunLayout, StudyLayout
from rankdrift.models.base import load_tokenizer
from rankdrift.spec import Recipe, Spec, parse_spec, read_spec
from rankdrift.studies.pipeline import Launch, refuse_other_runs, run_study, train_run


@pytest.mark.parametrize("changed", [{"analysis": {"drift": {"rows": 7}}}, {"scoring": {"limit": 5}}])
def test_a_finished_run_is_scored_and_analysed_as_the_recipe_now_says(
    tmp_path: Path, changed: dict[str, dict[str, int]]
) -> None:
    shared = {"model": {"name": "tiny"}, "output": str(tmp_path)}
    before = Recipe(shared=shared, arms={"a": {}}, seeds=(1,)).spec()
    recipe = Recipe(shared=shared | changed, arms={"a": {}}, seeds=(1,))
    run = RunLayout(tmp_path / "run")
    files.write_json(run.spec, before.as_dict())
    files.write_json(run.status, {"state": "finished"})
    said: list[str] = []
    train_run(recipe, recipe.spec(), run, Launch(tmp_path / "no.json", 1, None), said.append)
    assert said == ["  finished before"]
    assert read_spec(run.spec) == recipe.spec() != before


def test_one_name_for_all_arms_is_refused(tmp_path: Path) -> None:
    shared = {"model": {"name": "tiny"}, "output": str(tmp_path)}
    recipe = Recipe(shared=shared, arms={"a": {}, "b": {}}, seeds=(1,), overrides=("arm=foo",))
    with pytest.raises(UserError, match="arm=foo would give 2 runs one name"):
        run_study(recipe, Launch(tmp_path / "no.json", 1, None))
    assert not list(tmp_path.iterdir())


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
