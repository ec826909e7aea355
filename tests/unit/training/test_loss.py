"""The summed loss against transformers' own mean over the same targets."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from rankdrift.data.tokens import Row
from rankdrift.models.base import load_model
from rankdrift.spec import ModelSpec
from rankdrift.training.loss import BatchLoss


def passed(model: PreTrainedModel) -> Any:
    """Stands for the engine."""
    return SimpleNamespace(
        deepspeed=SimpleNamespace(module=model),
        module=model,
        forward=lambda batch, **options: model(**batch, **options).logits,
    )


def test_the_sum_is_the_models_own_loss_times_its_targets(tiny: Path) -> None:
    model = load_model(tiny, ModelSpec()).eval()
    ids = np.random.default_rng(0).integers(2, 200, (2, 9), dtype=np.int32)
    labels = np.full((2, 9), -100)
    labels[0, -2:], labels[0, 3], labels[1, 4:6] = ids[0, -2:], ids[0, 3], ids[1, 4:6]
    rows = [
        Row(ids[0], labels[0] >= 0, None, "task", 0),
        Row(ids[1, :6], labels[1, :6] >= 0, None, "task", 0),
    ]
    with torch.no_grad():
        expected = model(input_ids=torch.tensor(ids).long(), labels=torch.tensor(labels)).loss * 5
        found = BatchLoss(passed(model), SimpleNamespace(pad_id=0), "lm").of_all(rows)
    torch.testing.assert_close(found, expected)


def test_a_classification_head_has_one_target_a_row(tiny: Path) -> None:
    model = load_model(tiny, ModelSpec(head="classifier"), num_labels=2).eval()
    rows = [a_row([5, 6, 7], 1, "one"), a_row([8, 9], 0, "one")]
    data: Any = SimpleNamespace(pad_id=1, side="left", classes={"one": range(2)})
    with torch.no_grad():
        found = BatchLoss(passed(model), data, "classifier").of_each(rows)
        for row, loss in zip(rows, found, strict=True):
            ids = torch.tensor(row.input_ids[None].tolist())
            expected = model(input_ids=ids, labels=torch.tensor([row.label])).loss
            torch.testing.assert_close(loss, expected)


def test_a_task_of_several_is_classified_among_its_own_classes(tiny: Path) -> None:
    """A head of 2 + 3 classes: the loss is that of a head which has the row's task's classes alone."""
    torch.manual_seed(0)
    model = load_model(tiny, ModelSpec(head="classifier"), num_labels=5).eval()
    rows = [a_row([5, 6, 7], 1, "one"), a_row([8, 9, 1], 4, "two"), a_row([4, 1], 2, "two")]  # 1 pads
    data = SimpleNamespace(pad_id=1, side="left", classes={"one": range(2), "two": range(2, 5)})
    with torch.no_grad():
        found = BatchLoss(passed(model), data, "classifier").of_each(rows)
        for row, loss in zip(rows, found, strict=True):
            own = data.classes[row.task]
            ids = torch.tensor(row.input_ids[None].tolist())
            state = model.model(input_ids=ids).last_hidden_state[
                0, -1
            ]  # also where a row ends in padding's token
            logits = (model.score.weight @ state)[own.start : own.stop]
            assert float(loss) == pytest.approx(
                float(-logits.log_softmax(-1)[row.label - own.start]), rel=1e-5
            )
    assert model.config.pad_token_id == 1


def a_row(ids: list[int], label: int, task: str) -> Row:
    return Row(np.array(ids, np.int32), np.zeros(len(ids), np.bool_), label, task, 0)
