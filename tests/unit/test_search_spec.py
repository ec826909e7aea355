"""Searches of recipes: what may be searched, over what, and as which runs; everything else is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rankdrift.errors import UserError
from rankdrift.spec import Recipe, read_recipe, recipe_of
from rankdrift.spec.search import Range
from rankdrift.spec.searched import SearchedArm, require_not_overridden, searched_arms

ARMS = {"full": {"method": {"name": "full"}}, "lora": {"method": {"name": "lora"}}}
TRAINING = {"steps": 20, "warmup_steps": 2, "save_every": 5}
BASE = {"model": {"name": "tiny"}, "training": TRAINING, "arms": ARMS}
RATE = "training.learning_rate"


def recipe(search: Any = None, overrides: tuple[str, ...] = (), **tree: Any) -> Recipe:
    return recipe_of(BASE | tree | {"search": search}, Path(), overrides)


def arms(search: Any = None, **tree: Any) -> list[SearchedArm]:
    return searched_arms(recipe(search, **tree))


def test_without_ranges_the_rate_is_searched_around_that_of_the_method() -> None:
    """Full fine-tuning comes with 2e-5, LoRA with 2e-4: a factor 100 around each."""
    full, lora = arms({})
    for arm, rate in ((full, 2e-5), (lora, 2e-4)):
        span = arm.ranges[RATE]
        assert isinstance(span, Range)
        assert span.log
        assert (span.low, span.high) == pytest.approx((rate / 10, rate * 10))
        assert arm.own == {RATE: rate}


def test_an_arm_has_ranges_of_its_own_beside_those_of_all() -> None:
    own = {"search": {"ranges": {"method.rank": {"low": 2, "high": 8}, RATE: [1e-4, 1e-3]}}}
    shared = {"ranges": {RATE: {"low": "1e-6", "high": 1, "log": True}}}
    full, lora = arms(shared, arms={**ARMS, "lora": ARMS["lora"] | own})
    assert full.ranges == {RATE: Range(low=1e-6, high=1.0, log=True)}
    assert lora.ranges == {RATE: (1e-4, 1e-3), "method.rank": Range(low=2, high=8)}
    assert lora.own is None  # 2e-4 is no choice
    assert [type(end) for end in lora.ranges["method.rank"].ends] == [int, int]
    assert [type(end) for end in full.ranges[RATE].ends] == [float, float]


def test_whole_ends_of_a_setting_with_fractions_are_no_whole_numbers() -> None:
    (arm,) = arms({"ranges": {"training.clip": {"low": 0, "high": 2}}}, arms={"full": ARMS["full"]})
    assert [type(end) for end in arm.ranges["training.clip"].ends] == [float, float]


def test_a_trial_is_the_studys_run_with_other_settings_and_nothing_beside_its_steps() -> None:
    (_, arm) = arms({"seeds": [7, 8]}, study="s", data={"tasks": ["rte"], "train_limit": 9})
    spec = arm.trial(3, 8, {RATE: 0.5})
    assert (spec.run_name, spec.study, spec.seed) == ("lora-trial003-seed8", "s/search", 8)
    assert (spec.training.learning_rate, spec.training.steps, spec.training.warmup_steps) == (0.5, 20, 2)
    assert (spec.data, spec.model, spec.method) == (arm.spec.data, arm.spec.model, arm.spec.method)
    assert (spec.training.eval_every, spec.training.save_every, spec.training.probe_every) == (4, None, 0)
    (_, short) = arms({"steps": 10, "eval_every": 3}, training={"epochs": 2, "warmup_steps": 2})
    assert (short.trial(0, 7, {}).training.steps, short.trial(0, 7, {}).training.eval_every) == (10, 3)
    (_, epochs) = arms({}, training={"epochs": 2, "save_every": 5})
    assert (epochs.trial(0, 7, {}).training.epochs, epochs.trial(0, 7, {}).training.eval_every) == (2, 5)


def test_metrics_are_taken_where_they_decide() -> None:
    training = TRAINING | {"eval_items": 6}
    for value, items in (("validation/loss", 0), ("validation/rte/accuracy", 6)):
        (arm, _) = arms({"value": value}, training=training, data={"tasks": ["rte"]})
        found = arm.trial(0, 7, {}).training
        assert (found.best, found.eval_items) == (value, items)


def test_the_digest_is_of_what_is_searched_in_what() -> None:
    def digest(search: dict[str, Any] | None = None, **tree: Any) -> str:
        return arms(search or {}, **tree)[1].digest

    first = digest()
    same = (
        digest({"trials": 7}),
        digest(study="other"),
        digest(scoring={"limit": 3}),
        digest(training=TRAINING | {"learning_rate": 3e-4}),  # where it begins is not what it is
        digest(seeds=[1, 2]),
    )
    others = (
        digest({"seeds": [8]}),
        digest({"at_once": 1}),
        digest({"steps": 10}),
        digest({"ranges": {RATE: [1e-4, 1e-3]}}),
        digest(training=TRAINING | {"clip": 0.5}),
        digest(data={"tasks": ["rte"]}),
        digest(arms=ARMS | {"lora": {"method": {"name": "lora", "rank": 4}}}),
    )
    assert set(same) == {first}
    assert first not in others
    assert len(set(others)) == len(others)


def test_every_group_is_searched() -> None:
    found = arms({}, grid={"data.tasks": {"one": ["rte"], "two": ["sst2"]}}, study="s")
    assert [arm.name for arm in found] == ["one/full", "one/lora", "two/full", "two/lora"]
    assert [str(arm.trial(0, 7, {}).study_root) for arm in found[::2]] == [
        *("outputs/s/one/search", "outputs/s/two/search"),
    ]


def test_a_recipe_with_a_search_is_read_again_and_what_is_found_comes_before_overrides(
    tmp_path: Path,
) -> None:
    found = {"": {"lora": {RATE: 0.125, "method.rank": 3}}}
    given = recipe({"ranges": {RATE: [1e-4, 1e-3]}}).model_copy(update={"found": found})
    (tmp_path / "study.json").write_text(given.model_dump_json())
    assert read_recipe(tmp_path / "study.json") == given
    assert (given.spec("lora").training.learning_rate, given.spec("lora").method.adapter_rank) == (0.125, 3)
    assert given.spec("full").training.learning_rate == 2e-5
    over = given.model_copy(update={"overrides": (f"{RATE}=0.5",)})
    assert over.spec("lora").training.learning_rate == 0.5
    assert searched_arms(given)[1].spec.training.learning_rate == 2e-4  # it is searched as the recipe has it


def ranged(key: str, span: Any = (1, 2)) -> dict[str, Any]:
    return {"ranges": {key: list(span) if isinstance(span, tuple) else span}}


@pytest.mark.parametrize(
    ("search", "message"),
    [
        ({"seeds": [42]}, "42 is a seed of the study too"),
        ({"seeds": []}, "give one or more seeds, each once"),
        ({"seeds": [1, 1]}, "give one or more seeds, each once"),
        ({"trials": 1}, "one trial is no search"),
        ({"trails": 3}, r"unknown key 'search.trails' \(value 3\): did you mean 'trials'"),
        ({"value": "test/rte/accuracy"}, "only what is logged of validation may select"),
        (ranged("training.clip", {"low": 1, "hihg": 2}), "did you mean 'high'"),
        (ranged("training.clip", {"low": 2, "high": 2}), "low=2 is not below high=2"),
        (ranged("training.clip", {"low": 0, "high": 2, "log": True}), "begins above 0"),
        (ranged("training.clip", (1,)), "two or more choices"),
        (ranged("training.clip", (1, 1)), "two or more choices"),
        (ranged("training.learning_rat"), "did you mean 'training.learning_rate'"),
        (ranged("method.rank"), r"'full' \(full\) has no 'method.rank'"),
        (ranged("method.name", ("lora", "full")), "give each an arm"),
        (ranged("training.steps"), "it is the budget"),
        (ranged("seed"), "no setting of what is trained"),
        (ranged("data.max_length"), "make it an axis of the grid"),
        (ranged("training.micro_batch"), "changes nothing that is trained"),
        (ranged("scoring.limit"), "changes nothing that is trained"),
        (ranged("training.beta1", {"low": 0.5, "high": 1.5}), r"training.beta1=1.5: .*less than 1"),
        (ranged("training.schedule", ("linear", "line")), "training.schedule='line'"),
        ({"steps": 2}, "warmup_steps=2 leaves no step"),
        ("median", "'search' is a mapping of settings"),
    ],
)
def test_what_is_no_search(search: Any, message: str) -> None:
    with pytest.raises(UserError, match=f"(?s){message}"):
        arms(search)


@pytest.mark.parametrize(
    ("tree", "message"),
    [
        ({"grid": {RATE: [1e-4, 1e-3]}}, "is an axis of the grid of 'full', and searched"),
        ({"grid": {RATE: [1e-4, 1e-3]}, "search": ranged("training.clip")}, "arms are fine"),
        ({"arms": {"a": {"search": {"trials": 3}}}}, "unknown key 'arms.a.search.trials'"),
    ],
)
def test_axes_and_arms_with_a_search(tree: dict[str, Any], message: str) -> None:
    if message == "arms are fine":
        assert len(searched_arms(recipe_of(BASE | tree, Path()))) == 4
        return
    with pytest.raises(UserError, match=message):
        recipe_of(BASE | {"search": {}} | tree, Path())


def test_an_arm_is_not_searched_alone_and_not_without_a_search() -> None:
    with pytest.raises(UserError, match="the recipe has no search; give it one"):
        recipe_of(BASE | {"arms": {"a": {"search": {}}}}, Path())
    with pytest.raises(UserError, match="the recipe has no search; give it one"):
        searched_arms(recipe_of(BASE, Path()))


def test_what_is_searched_is_not_set_by_the_command() -> None:
    for override in (f"{RATE}=0.1", "training={learning_rate: 0.1}"):
        given = recipe({}, overrides=(override,))
        with pytest.raises(UserError, match="is searched"):
            require_not_overridden(given, searched_arms(given))
    given = recipe({}, overrides=("training.clip=0.5",))
    require_not_overridden(given, searched_arms(given))
