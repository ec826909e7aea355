"""Grids: which arms and groups their axes stand for, and what is no grid."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rankdrift.errors import UserError
from rankdrift.spec import Recipe, load_recipe, read_recipe, recipe_of
from rankdrift.spec.grid import points

BASE = {"model": {"name": "tiny"}, "training": {"steps": 4, "warmup_steps": 0}}


def recipe(**tree: Any) -> Recipe:
    return recipe_of(BASE | tree, Path())


def test_config_indices_of_the_reference_study() -> None:
    """Full fine-tuning and LoRA of ranks 4 to 64 are cells 0 to 5, in this order."""
    arms = {"full": {"method": {"name": "full"}}, "lora": {"grid": {"method.rank": [4, 8, 16, 32, 64]}}}
    specs = recipe(arms=arms, seeds=[42, 1337, 2024]).runs()
    assert [spec.arm for spec in specs[:6]] == ["full", *(f"lora-r{rank}" for rank in (4, 8, 16, 32, 64))]
    assert [spec.method.adapter_rank for spec in specs[:6]] == [0, 4, 8, 16, 32, 64]
    assert [spec.seed for spec in specs] == [42] * 6 + [1337] * 6 + [2024] * 6


def test_axes_of_model_and_data_make_groups_and_others_arms() -> None:
    grid = {
        "data": {"similar": {"tasks": ["sst2", "qqp"]}, "short": {"tasks": ["rte"], "max_length": 128}},
        "model.name": ["tiny", "smollm2-135m"],
        "training.learning_rate": [1e-4, 2e-4],
    }
    found = recipe(study="s", grid=grid, arms={"a": {}, "b": {"method": {"name": "full"}}})
    assert list(found.groups) == [
        *("similar-tiny", "similar-smollm2-135m", "short-tiny", "short-smollm2-135m"),
    ]
    assert list(found.arms) == ["a-lr0.0001", "a-lr0.0002", "b-lr0.0001", "b-lr0.0002"]
    spec = found.spec("b-lr0.0002", group="short-smollm2-135m")
    assert (spec.study, spec.model.name) == ("s/short-smollm2-135m", "smollm2-135m")
    assert (spec.data.tasks, spec.data.max_length) == (("rte",), 128)
    assert (spec.method.name, spec.training.learning_rate) == ("full", 2e-4)
    assert len(found.runs()) == 16
    assert {spec.data.tasks for spec in found.runs("similar-tiny")} == {("sst2", "qqp")}


def test_another_name_of_the_study_keeps_its_groups() -> None:
    tree = BASE | {"grid": {"data.tasks": {"one": ["rte"], "two": ["sst2"]}}}
    specs = recipe_of(tree, Path(), ["study=mine"]).runs()
    assert [spec.study for spec in specs] == ["mine/one", "mine/two"]


def test_an_arm_says_what_it_runs_on(tmp_path: Path) -> None:
    (tmp_path / "own.json").write_text("{}")
    tree = BASE | {"config": "zero3", "ranks": 4, "arms": {"a": {}, "b": {"config": "own.json", "ranks": 2}}}
    found = recipe_of(tree, tmp_path)
    assert (found.systems["a"].config, found.systems["a"].ranks) == ("zero3", 4)
    assert (found.systems["b"].config, found.systems["b"].ranks) == (str(tmp_path / "own.json"), 2)
    assert found.spec("b").arm == "b"  # it is no setting of the experiment


def test_an_expanded_recipe_is_read_again(tmp_path: Path) -> None:
    found = recipe(grid={"data.tasks": {"one": ["rte"], "two": ["sst2"]}}, arms={"a": {"ranks": 2}, "b": {}})
    path = tmp_path / "study.json"
    path.write_text(found.model_dump_json())
    assert read_recipe(path) == found


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"grid": {"seed": [1, 2]}}, "'seed' is no axis; list 'seeds'"),
        ({"grid": {"training.steps": 5}}, "'training.steps' takes a list of values or a mapping"),
        ({"grid": {"training.steps": []}}, "'training.steps' has no values"),
        ({"grid": {"training.steps": [4, 4]}}, "has a value twice"),
        ({"grid": {"data": [{"tasks": ["rte"]}]}}, "takes a list of values or a mapping"),
        ({"grid": {"data.tasks": {"a/b": ["rte"]}}}, "'a/b': names are folders' names"),
        ({"grid": {"method.targets": [["q_proj"], "q_proj"]}}, "has a value twice"),
        ({"grid": ["method.rank"]}, "'grid' must map dotted keys"),
        ({"arms": {"a": {"grid": {"data.tasks": [["rte"], ["sst2"]]}}}}, "put it in the study's grid"),
        ({"arms": {"a-r4": {}, "a": {"grid": {"method.rank": [4]}}}}, "two arms have the name 'a-r4'"),
        ({"seeds": [1, 1]}, "'seeds' has one twice"),
        ({"ranks": 0}, "ranks"),
        ({"grid": {"method.rnk": [1, 2]}}, "method.rnk"),
    ],
)
def test_what_is_no_grid_is_said(tree: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        recipe(**tree)
    assert message in str(error.value)


def test_the_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "r.yaml"
    path.write_text("grid: {seed: [1]}\n")
    with pytest.raises(UserError, match=r"r\.yaml: grid: 'seed' is no axis"):
        load_recipe(path)


def test_points_are_all_combinations() -> None:
    assert points({}) == [("", {})]
    assert points({"a.b": [1, 2], "c": {"x": 3}}) == [
        ("b1-x", {"a": {"b": 1}, "c": 3}),
        ("b2-x", {"a": {"b": 2}, "c": 3}),
    ]
