"""The learning rate against transformers' own schedules."""

from __future__ import annotations

import pytest
import torch
from transformers import get_scheduler

from rankdrift.spec import TrainingSpec
from rankdrift.training.schedule import learning_rate


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_after_warm_up_it_is_the_standard_schedule(schedule: str) -> None:
    """transformers' schedule of N steps without warm-up, evaluated from its step 0 on."""
    training = TrainingSpec(steps=12, warmup_steps=3, learning_rate=0.1, schedule=schedule)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    standard = get_scheduler(schedule, optimizer, num_warmup_steps=0, num_training_steps=9)
    expected = []
    for _ in range(9):
        expected.append(standard.get_last_lr()[0])
        optimizer.step()
        standard.step()
    assert [learning_rate(training, step) for step in range(4, 13)] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("schedule", "standard", "options"),
    [
        ("cosine", "cosine_with_min_lr", {"min_lr_rate": 0.1}),
        ("wsd", "warmup_stable_decay", {"min_lr_ratio": 0.1, "num_decay_steps": 3, "decay_type": "linear"}),
    ],
)
def test_it_goes_down_to_the_minimum_as_the_standard_schedule_does(
    schedule: str, standard: str, options: dict
) -> None:
    tree = {"steps": 12, "warmup_ratio": 0.25, "decay_ratio": 0.25, "minimum_rate": 0.1, "learning_rate": 0.1}
    training = TrainingSpec(**tree, schedule=schedule)  # type: ignore[arg-type]
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    course = get_scheduler(
        standard, optimizer, num_warmup_steps=0, num_training_steps=9, scheduler_specific_kwargs=options
    )
    expected = []
    for _ in range(9):
        expected.append(course.get_last_lr()[0])
        optimizer.step()
        course.step()
    assert [learning_rate(training, step) for step in range(4, 13)] == pytest.approx(expected)
    assert learning_rate(training, 3) == pytest.approx(0.075)  # still warm-up


def test_a_linear_course_ends_a_step_before_its_minimum() -> None:
    training = TrainingSpec(steps=4, warmup_steps=0, minimum_rate=0.2, learning_rate=1.0)
    assert [learning_rate(training, step) for step in range(1, 5)] == pytest.approx([1.0, 0.8, 0.6, 0.4])


def test_warm_up_is_linear_and_wastes_no_step() -> None:
    training = TrainingSpec(steps=12, warmup_steps=3, learning_rate=0.4)
    assert [learning_rate(training, step) for step in (1, 2, 3, 4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert learning_rate(training, 12) > 0
