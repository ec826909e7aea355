"""The summed loss against transformers' own mean over the same targets."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rankdrift.data.tokens import Row
from rankdrift.models.base import load_model
from rankdrift.spec import ModelSpec
from rankdrift.training.loss import BatchLoss, predictions


def summed(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    predicted, targets, _ = predictions(logits, labels)
    return torch.nn.functional.cross_entropy(predicted, targets, reduction="sum")


@pytest.mark.parametrize("kept", [3, 5, 9])
def test_the_sum_is_the_models_own_loss_times_its_targets(tiny: Path, kept: int) -> None:
    model = load_model(tiny, ModelSpec()).eval()
    ids = torch.randint(2, 200, (2, 9), generator=torch.Generator().manual_seed(0))
    labels = torch.full_like(ids, -100)
    labels[0, -2:], labels[1, -1:] = ids[0, -2:], ids[1, -1:]
    with torch.no_grad():
        logits = model(input_ids=ids, logits_to_keep=kept).logits
        expected = model(input_ids=ids, labels=labels).loss * 3
    assert logits.shape[1] == kept
    torch.testing.assert_close(summed(logits, labels), expected)


def test_a_classification_head_has_one_target_a_row() -> None:
    logits, labels = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([1, 0])
    expected = torch.tensor(2.0).log() + (1 + torch.tensor(-2.0).exp()).log()
    torch.testing.assert_close(summed(logits, labels), expected)


def test_a_task_of_several_is_classified_among_its_own_classes(tiny: Path) -> None:
    """A head of 2 + 3 classes: the loss is that of a head which has the row's task's classes alone."""
    torch.manual_seed(0)
    model = load_model(tiny, ModelSpec(head="classifier"), num_labels=5).eval()
    rows = [a_row([5, 6, 7], 1, "one"), a_row([8, 9, 1], 4, "two"), a_row([4, 1], 2, "two")]  # 1 pads
    data = SimpleNamespace(pad_id=1, side="left", classes={"one": range(2), "two": range(2, 5)})
    passed = SimpleNamespace(
        deepspeed=SimpleNamespace(module=model), module=model, forward=lambda batch: model(**batch).logits
    )
    with torch.no_grad():
        found = BatchLoss(passed, data, "classifier").of_each(rows)
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
