"""The first step after an interruption: equal bits where all is as it was, about equal where it is not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from rankdrift import files
from rankdrift.layout import RunLayout
from rankdrift.training import resume_check

ENVIRONMENT = {"python": "3.11", "machine": "x", "cpu_count": 2, "packages": {"torch": "2"}, "ranks": 2}
CONFIG = {"zero_optimization": {"stage": 2}}
SETTINGS = {"model": {"attention": "sdpa"}, "training": {"packing": "auto"}}
SAME = resume_check.conditions({**ENVIRONMENT, "time": "now"}, CONFIG, SETTINGS)


def values(step: int, **changes: float) -> dict[str, float]:
    return {"loss": 1 / 3 + step, "gradient_norm": 2.0 / step, "learning_rate": 1e-4, **changes}


@pytest.fixture
def run(tmp_path: Path) -> RunLayout:
    """A run that logged steps 1 to 5."""
    run = RunLayout(tmp_path / "run")
    write_log(run, 1, 2, 3, 4, 5)
    files.write_json(run.environment, ENVIRONMENT)
    files.write_json(run.ds_config, CONFIG)
    files.write_json(run.spec, SETTINGS)
    return run


def write_log(run: RunLayout, *steps: int) -> None:
    rows = [{"step": step, "split": "train", **values(step)} for step in steps]
    rows += [{"step": 4, "split": "validation", "loss": 0.0}]
    files.write_text(run.metrics, "".join(map(files.json_line, rows)))


def expected(run: RunLayout, now: dict[str, Any] = SAME, **options: Any) -> resume_check.Expected | None:
    return resume_check.expected(run, now, **{"dropout": False, **options})


@pytest.mark.parametrize("start", [0, 5, 6])
def test_there_may_be_nothing_to_meet(run: RunLayout, start: int) -> None:
    """A run that starts anew, or that was stopped just after its checkpoint."""
    resume_check.keep(run, start)
    assert not run.replay.exists()
    assert expected(run) is None


def test_only_the_first_logged_step_is_kept(run: RunLayout) -> None:
    write_log(run, 2, 4, 6)
    resume_check.keep(run, 2)
    found = expected(run)
    assert found == resume_check.Expected(4, values(4), exact=True)
    resume_check.forget(run)
    assert expected(run) is None


@pytest.mark.parametrize("key", ["loss", "gradient_norm", "learning_rate"])
def test_another_bit_is_found(run: RunLayout, key: str) -> None:
    resume_check.keep(run, 3)
    found = expected(run)
    assert found is not None
    assert found.difference(values(4), noise=1.0) is None
    other = values(4, **{key: values(4)[key] * (1 + 2**-51)})
    assert f"{key} is {other[key]!r}, but was {values(4)[key]!r}" in str(found.difference(other, noise=1.0))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_no_number_differs(run: RunLayout, value: float) -> None:
    resume_check.keep(run, 3)
    found = expected(run, {**SAME, "ranks": 1})
    assert found is not None
    assert found.difference(values(4, loss=value), noise=1.0)


def test_a_refusal_is_not_forgotten_by_starting_again(run: RunLayout) -> None:
    resume_check.keep(run, 3)
    write_log(run, 1, 2, 3)  # the log is cut, and described anew
    files.write_json(run.environment, {**ENVIRONMENT, "ranks": 1})
    resume_check.keep(run, 3)
    assert expected(run) == resume_check.Expected(4, values(4), exact=True)


def test_a_later_checkpoint_makes_it_void(run: RunLayout) -> None:
    resume_check.keep(run, 3)
    write_log(run, 1, 2, 3, 4)
    resume_check.keep(run, 4)
    assert not run.replay.exists()


@pytest.mark.parametrize("key", [*resume_check.SOFTWARE, "config", "packing"])
def test_under_other_conditions_losses_are_about_equal(run: RunLayout, key: str) -> None:
    resume_check.keep(run, 3)
    other = expected(run, {**SAME, key: "other"})
    assert other == resume_check.Expected(4, {"loss": values(4)["loss"]}, exact=False)
    assert other.difference(values(4, loss=values(4)["loss"] + 9e-5, gradient_norm=0.0), noise=1e-4) is None
    assert "rounding explains 1.0e-04" in str(
        other.difference(values(4, loss=values(4)["loss"] - 1.1e-4), 1e-4)
    )


def test_a_step_that_other_steps_came_before_is_compared_exactly_or_not_at_all(run: RunLayout) -> None:
    resume_check.keep(run, 2)
    write_log(run, 1, 2, 4)
    run.replay.unlink()
    resume_check.keep(run, 2)
    assert expected(run) == resume_check.Expected(4, values(4), exact=True)
    assert expected(run, {**SAME, "machine": "y"}) is None


def test_the_noise_bounds_what_the_order_of_sums_makes_of_a_loss() -> None:
    """Sums of 16 rows of bf16 products against float64's: the bound holds, and is of the error's size."""
    generator = torch.Generator().manual_seed(0)
    ratios = []
    for _ in range(200):
        exact = 3 + torch.rand(16, generator=generator, dtype=torch.float64)
        one, other = (
            exact + 1e-3 * torch.randn(16, generator=generator, dtype=torch.float64) for _ in range(2)
        )
        third = exact + 1e-3 * torch.randn(16, generator=generator, dtype=torch.float64)
        ratios.append(float(abs(third.sum() - one.sum())) / resume_check.rounding_noise(one, other))
    assert max(ratios) < 1
    assert sorted(ratios)[100] > 0.05  # no bound of another order of size


def test_other_ranks_draw_other_dropout_masks(run: RunLayout) -> None:
    resume_check.keep(run, 3)
    assert expected(run, {**SAME, "ranks": 1}, dropout=True) is None
    same_ranks = expected(run, {**SAME, "machine": "y"}, dropout=True)
    assert same_ranks is not None
    assert expected(run, dropout=True) == resume_check.Expected(4, values(4), exact=True)
