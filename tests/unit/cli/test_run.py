"""``rankdrift run``: which cells its lists stand for; settings may stand behind them."""

from __future__ import annotations

import argparse
from typing import Any

import pytest

from rankdrift.cli import run as command
from rankdrift.cli.main import main
from rankdrift.spec import Recipe


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[Recipe]:
    """The recipes that were to be carried out."""
    found: list[Recipe] = []

    def carry_out(recipe: Recipe, arguments: argparse.Namespace) -> int:
        found.append(recipe)
        return 0

    monkeypatch.setattr(command, "carry_out_recipe", carry_out)
    return found


def test_each_task_is_a_group_and_each_rank_an_arm(asked: list[Recipe]) -> None:
    lists = [
        "--tasks",
        "rte",
        "sst2+mrpc",
        "--methods",
        "full",
        "lora",
        "--ranks",
        "4",
        "8",
        "--seeds",
        "1",
        "2",
    ]
    assert main(["run", *lists, "training.steps=7", "model.name=tiny"]) == 0
    specs = asked[0].runs()
    assert [(spec.study, spec.data.tasks) for spec in specs[::6]] == [
        ("run/rte", ("rte",)),
        ("run/sst2+mrpc", ("sst2", "mrpc")),
    ]
    assert [spec.run_name for spec in specs[:4]] == [
        "full-seed1",
        "lora-r4-seed1",
        "lora-r8-seed1",
        "full-seed2",
    ]
    assert {(spec.training.steps, spec.model.name) for spec in specs} == {(7, "tiny")}
    rates = {spec.arm: spec.training.learning_rate for spec in specs}
    assert rates["lora-r4"] == pytest.approx(10 * rates["full"])  # each method's own


def test_one_task_is_a_study_of_one_group(asked: list[Recipe]) -> None:
    assert main(["run", "--tasks", "topic", "--methods", "full", "study=mine"]) == 0
    (spec,) = asked[0].runs()
    assert (spec.study, spec.data.tasks) == ("mine", ("topic",))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks", "topic", "--ranks", "x"], "--ranks x: not a whole number"),
        (["--tasks", "topic", "--methods", "dora2"], "unknown method 'dora2'"),
        (["--tasks", "topik"], "unknown task 'topik'"),
        (["--tasks", "topic", "--processes", "0"], "0 ranks: a run has at least one"),
    ],
)
def test_mistakes_are_said(arguments: list[str], message: str, capsys: Any) -> None:
    assert main(["run", *arguments]) == 2
    assert message in capsys.readouterr().err
