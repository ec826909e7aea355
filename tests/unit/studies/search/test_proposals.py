"""What is proposed is a function of what was tried; what is pruned is what Optuna's own pruner prunes."""

from __future__ import annotations

import builtins
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pytest

from rankdrift.errors import UserError
from rankdrift.spec.search import Range
from rankdrift.studies.search import proposals
from rankdrift.studies.search.proposals import FIRST, propose
from rankdrift.studies.search.pruning import bars, pruned_at
from rankdrift.studies.search.records import Trial, best

RANGES: dict[str, Any] = {
    "training.learning_rate": Range(low=1e-6, high=1e-2, log=True),
    "method.rank": Range(low=2, high=64, log=True),
    "method.targets": (["q_proj"], ["q_proj", "v_proj"], None),
}


def tried(count: int, ranges: dict[str, Any] = RANGES) -> list[Trial]:
    trials: list[Trial] = []
    for number in range(count):
        settings = propose(ranges, trials, True)
        trials.append(Trial(number=number, settings=settings, state="done", value=float(number % 3)))
    return trials


def test_every_value_is_of_its_kind_and_in_its_range() -> None:
    for trial in tried(FIRST + 6):
        rate, rank, targets = (trial.settings[key] for key in RANGES)
        assert isinstance(rate, float)
        assert 1e-6 <= rate <= 1e-2
        assert isinstance(rank, int)
        assert 2 <= rank <= 64
        assert targets in RANGES["method.targets"]


def test_the_same_trials_lead_to_the_same_proposal_and_others_to_another() -> None:
    trials = tried(FIRST + 2)
    first = propose(RANGES, trials, True)
    assert propose(RANGES, trials, True) == first
    turned = [trial.model_copy(update={"value": -(trial.value or 0.0)}) for trial in trials]
    assert propose(RANGES, turned, True) != first
    assert propose(RANGES, turned, False) == first  # large instead of small
    assert propose(RANGES, trials[:-1], True) != first


def test_arms_begin_at_the_same_places_of_their_ranges() -> None:
    one = {"a": Range(low=1e-5, high=1e-3, log=True)}
    other = {"a": Range(low=1e-4, high=1e-2, log=True)}
    for low, high in zip(tried(FIRST, one), tried(FIRST, other), strict=True):
        assert high.settings["a"] == pytest.approx(10 * low.settings["a"])


def test_a_failed_trial_is_the_worst() -> None:
    span = {"a": Range(low=0.0, high=1.0)}
    came: list[dict[str, Any]] = [{"state": "done", "value": 1.0}] * 10 + [{"state": "failed"}] * 10
    trials = [Trial(number=n, settings={"a": n / 20}, **told) for n, told in enumerate(came)]
    found = [propose(span, trials + tried_open(n), True)["a"] for n in range(12)]
    assert np.median(found) < 0.5


def tried_open(count: int) -> list[Trial]:
    return [Trial(number=20 + n, settings={"a": 0.97 + n / 1000}) for n in range(count)]


@pytest.mark.parametrize("is_low", [True, False])
def test_the_bars_prune_what_the_pruner_of_optuna_prunes(is_low: bool) -> None:
    generator = np.random.default_rng(0)
    rows = generator.normal(size=(7, 5)).tolist()
    done = [
        Trial(number=n, settings={}, state="done", values=dict(zip((0, 2, 4, 6, 8), row, strict=True)))
        for n, row in enumerate(rows)
    ]
    pruner = optuna.pruners.MedianPruner()
    study = optuna.create_study(direction="minimize" if is_low else "maximize", pruner=pruner)
    for trial in done:
        values = {step: value for step, value in trial.values.items() if step}
        study.add_trial(optuna.trial.create_trial(value=values[8], intermediate_values=values))
    counted = 0
    for row in generator.normal(size=(60, 3)):
        trial, expected = study.ask(), None
        for step, value in zip((2, 4, 6), map(float, row), strict=True):
            trial.report(value, step)
            if expected is None and trial.should_prune():
                expected = step
        values = {0: 0.0, **dict(zip((2, 4, 6), map(float, row), strict=True))}
        assert pruned_at(values, bars(done), is_low) == expected
        counted += expected is not None
    assert 10 < counted < 60


def test_there_are_no_bars_before_enough_trials_are_done_and_none_at_the_ends() -> None:
    trials = [
        Trial(number=n, settings={}, state="done", values={0: 9.0, 5: float(n), 10: 1.0}) for n in range(6)
    ]
    assert bars(trials[:4]) == {}
    assert bars([*trials[:4], Trial(number=4, settings={}, state="pruned", values={5: 1.0})]) == {}
    assert bars(trials) == {5: 2.5}


def test_the_best_is_one_that_was_carried_out() -> None:
    trials = [
        Trial(number=0, settings={}, state="done", value=2.0),
        Trial(number=1, settings={}, state="pruned", value=1.0),
        Trial(number=2, settings={}, state="done", value=2.0),
        Trial(number=3, settings={}, state="failed"),
    ]
    assert best(trials, True) == trials[0]
    assert best([*trials, Trial(number=4, settings={}, state="done", value=3.0)], False).number == 4  # type: ignore[union-attr]
    assert best(trials[1:2], True) is None


def test_without_optuna_there_is_a_way_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> Any:
        if name == "optuna":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match=r"pip install 'rankdrift\[search\]'"):
        proposals.require()


def test_optuna_is_imported_in_one_module_and_not_before_it_is_needed(root: Path) -> None:
    importers = [p for p in (root / "src").rglob("*.py") if "import optuna" in p.read_text(encoding="utf-8")]
    assert importers == [root / "src/rankdrift/studies/search/proposals.py"]
    script = "import sys, rankdrift.studies.search.proposals; assert 'optuna' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)
