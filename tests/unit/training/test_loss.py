"""The summed loss against transformers' own mean over the same targets."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rankdrift.models.base import load_model
from rankdrift.spec import ModelSpec
from rankdrift.training.loss import target_loss_sum


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
    torch.testing.assert_close(target_loss_sum(logits, labels), expected)


def test_a_classification_head_has_one_target_a_row() -> None:
    logits, labels = torch.tensor([[0.0, 0.0], [2.0, 0.0]]), torch.tensor([1, 0])
    expected = torch.tensor(2.0).log() + (1 + torch.tensor(-2.0).exp()).log()
    torch.testing.assert_close(target_loss_sum(logits, labels), expected)
