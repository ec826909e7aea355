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


def test_warm_up_is_linear_and_wastes_no_step() -> None:
    training = TrainingSpec(steps=12, warmup_steps=3, learning_rate=0.4)
    assert [learning_rate(training, step) for step in (1, 2, 3, 4)] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert learning_rate(training, 12) > 0
