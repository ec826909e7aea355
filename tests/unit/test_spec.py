"""The experiment: recipes, overrides, and errors that name the key, the value and the near miss."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from rankdrift.errors import UserError
from rankdrift.spec import RECIPES, analysis_settings, apply_overrides, load_recipe, parse_spec, read_spec
from rankdrift.spec.identity import digest, identity

RECIPE = """
study: s
data: {tasks: [sst2]}
training: {steps: 10, learning_rate: 1e-4}
arms:
  full: {method: {name: full}, training: {learning_rate: 1e-5}}
  lora: {method: {name: lora, rank: 4}}
seeds: [1, 2]
"""


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    return path


def test_a_recipe_expands_to_every_arm_at_every_seed(recipe: Path) -> None:
    specs = load_recipe(recipe).runs()
    assert [spec.run_name for spec in specs] == ["full-seed1", "lora-seed1", "full-seed2", "lora-seed2"]
    full, lora = specs[:2]
    assert (full.method.name, full.training.learning_rate) == ("full", 1e-5)
    assert (lora.method.name, lora.training.learning_rate) == ("lora", 1e-4)  # 1e-4 is text in YAML 1.1
    assert lora.method.scaling_alpha == 8.0  # 2r unless given


def test_overrides_come_last(recipe: Path) -> None:
    loaded = load_recipe(recipe, ["training.learning_rate=0.5", "data.tasks=[rte]", "seed=9"])
    specs = loaded.runs()
    assert [spec.seed for spec in specs] == [9, 9]
    assert {spec.training.learning_rate for spec in specs} == {0.5}
    assert {spec.data.tasks for spec in specs} == {("rte",)}


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_recipes_that_come_with_rankdrift_are_valid_and_distinct(path: Path) -> None:
    specs = load_recipe(path).runs()
    identities = {
        digest(identity(spec, "fp32", {}, spec.data.model_dump_json(), spec.model.name)) for spec in specs
    }
    assert len(identities) == len(specs)


def test_a_spec_survives_its_json(tmp_path: Path) -> None:
    from rankdrift import files

    spec = parse_spec({"data": {"tasks": ["sst2", "rte"]}, "method": {"targets": ["q_proj"]}})
    files.write_json(tmp_path / "spec.json", spec.as_dict())
    assert read_spec(tmp_path / "spec.json") == spec


@pytest.mark.parametrize(
    ("tree", "parts"),
    [
        ({"trainning": {}}, ["'trainning'", "did you mean 'training'"]),
        ({"training": {"stepz": 5}}, ["'training.stepz'", "value 5", "did you mean 'steps'"]),
        ({"training": {"steps": "many"}}, ["training.steps='many'", "integer"]),
        ({"training": {"steps": 0}}, ["training.steps=0", "greater than or equal to 1"]),
        ({"training": {"steps": 2, "warmup_steps": 2}}, ["training", "warmup_steps=2", "steps=2"]),
        ({"training": {"steps": 2, "warmup_ratio": 0.9}}, ["warmup_ratio=0.9", "warm-up=2", "steps=2"]),
        (
            {"training": {"steps": 10, "schedule": "wsd", "decay_ratio": 0.8}},
            ["decay_ratio=0.8 of steps=10", "warm-up of 3 steps", "overlap"],
        ),
        ({"training": {"steps": 5, "save_steps": [6]}}, ["save_steps [6]", "steps=5"]),
        ({"model": {"liger": True, "compile": True}}, ["model: liger and compile", "choose one"]),
        ({"training": {"micro_batch": "all"}}, ["training.micro_batch", "'all'", "integer", "'auto'"]),
        (
            {"training": {"micro_batch": "auto", "micro_batch_tokens": 512}},
            ["micro_batch=auto", "micro_batch_tokens=512", "give one"],
        ),
        ({"training": {"precision": "fp16"}}, ["training.precision='fp16'", "'bf16'"]),
        ({"method": {"name": "loara"}}, ["unknown method 'loara'", "did you mean 'lora'"]),
        ({"method": {"rnk": 4}}, ["'method.rnk'", "value 4", "did you mean 'rank'"]),
        ({"method": {"rank": 0}}, ["method.rank=0", "greater than or equal to 1"]),
        ({"method": {"targets": "mpl"}}, ["'mpl' is not a target group", "did you mean 'mlp'"]),
        ({"data": {"tasks": ["sst"]}}, ["unknown task 'sst'", "did you mean 'sst2'"]),
        ({"data": {"tasks": []}}, ["data.tasks is empty"]),
    ],
)
def test_bad_settings_are_named_with_value_and_remedy(tree: dict, parts: list[str]) -> None:
    with pytest.raises(UserError) as error:
        parse_spec(tree)
    for part in parts:
        assert part in str(error.value)


def test_arms_share_settings_that_one_of_their_methods_has(recipe: Path) -> None:
    full, lora = load_recipe(recipe, ["method.rank=2"]).runs()[:2]
    assert full.method.in_force() == {"name": "full"}
    assert lora.method.adapter_rank == 2


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        ({"drift": {"row": 3}}, "unknown key 'analysis.drift.row' (value 3): did you mean 'rows'"),
        ({"spectra": {"top_k": 0}}, "analysis.spectra.top_k=0: Input should be greater"),
        ({"drft": {"rows": 3}}, "unknown analysis 'drft': did you mean 'drift'"),
        ({"training": {"rows": 3}}, "analysis.training: that analysis has no settings"),
    ],
)
def test_settings_of_analyses_are_those_that_their_files_declare(given: dict, complaint: str) -> None:
    with pytest.raises(UserError, match=re.escape(complaint)):
        analysis_settings(parse_spec({"analysis": given}).analysis)
    (found,) = analysis_settings(parse_spec({"analysis": {"drift": {"rows": 3}}}).analysis)
    assert found.model_dump(exclude_unset=True) == {"rows": 3}
    assert found.model_dump()["keep_representations"] is False


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("- a list", "a recipe is a mapping"),
        ("a: [", "not a valid YAML"),
        ("arms: [x]", "'arms' must map"),
        ("seeds: 3", "'seeds' must be a list"),
        ("arms: {a: {training: {stepz: 1}}}", "training.stepz"),
        ("arms: {a: {}, b: {data: {tasks: [rte]}}}", "arms 'a' and 'b' differ in 'data'"),
    ],
)
def test_bad_recipes_name_the_file(tmp_path: Path, text: str, part: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(UserError) as error:
        load_recipe(path)
    assert part in str(error.value)
    assert str(path) in str(error.value)


def test_a_missing_recipe_lists_those_there_are(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"(?s)none\.yaml: no such recipe.*demo\.yaml"):
        load_recipe(tmp_path / "none.yaml")


def test_an_unknown_arm_lists_the_arms(recipe: Path) -> None:
    with pytest.raises(UserError, match=r"unknown arm 'ful': did you mean 'full'\? Known: full, lora"):
        load_recipe(recipe).spec("ful")


@pytest.mark.parametrize("override", ["training.steps", "=3", "a=[1"])
def test_malformed_overrides_are_refused(override: str) -> None:
    with pytest.raises(UserError, match="override"):
        apply_overrides({}, [override])


@pytest.mark.parametrize(("written", "meant"), [("on", "on"), ("off", "off"), ("auto", "auto")])
def test_words_that_yaml_takes_for_truth_values_are_words(tmp_path: Path, written: str, meant: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_text(f"training: {{packing: {written}}}\n")
    (spec,) = load_recipe(path).runs()
    assert spec.training.packing == meant
