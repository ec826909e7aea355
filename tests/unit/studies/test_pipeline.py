"""What a study does with runs that are there."""

from __future__ import annotations

from pathlib import Path

import pytest

from rankdrift import files
from rankdrift.errors import UserError
from rankdrift.layout import RunLayout
from rankdrift.spec import Recipe, read_spec
from rankdrift.studies.pipeline import Launch, run_study, train_run


@pytest.mark.parametrize("changed", [{"analysis": {"drift_rows": 7}}, {"scoring": {"limit": 5}}])
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
    assert read_spec(run.spec).digest() == before.digest()


def test_one_name_for_all_arms_is_refused(tmp_path: Path) -> None:
    shared = {"model": {"name": "tiny"}, "output": str(tmp_path)}
    recipe = Recipe(shared=shared, arms={"a": {}, "b": {}}, seeds=(1,), overrides=("arm=foo",))
    with pytest.raises(UserError, match="arm=foo would give 2 runs one name"):
        run_study(recipe, Launch(tmp_path / "no.json", 1, None))
    assert not list(tmp_path.iterdir())
