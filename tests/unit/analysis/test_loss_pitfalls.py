"""What goes wrong when the loss that gradients are of is taken naively: each naive loss, beside ours."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM

from rankdrift.analysis.sources.loss_gradients import loss_sum
from rankdrift.analysis.sources.loss_rows import IGNORED, Row

TEXT = (5, 17, 9, 33, 21, 8)
PAIR = (11, 40, 29)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    return LlamaForCausalLM(
        LlamaConfig(**sizes, vocab_size=50, tie_word_embeddings=True, initializer_range=0.2)
    ).eval()


def published(model: LlamaForCausalLM, ids: tuple[int, ...], labels: tuple[int, ...]) -> float:
    """Transformers' own mean loss of one unpadded row, times its targets."""
    targets = sum(label != IGNORED for label in labels[1:])
    return targets * model(input_ids=torch.tensor([ids]), labels=torch.tensor([labels])).loss.item()


@torch.no_grad()
def test_targets_are_the_next_tokens(model: LlamaForCausalLM) -> None:
    """Unshifted, logits are compared with the tokens they were made from (a retention benchmark did so)."""
    logits = model(input_ids=torch.tensor([TEXT])).logits[0]
    unshifted = cross_entropy(logits[1:], torch.tensor(TEXT[1:]), reduction="sum").item()
    found = loss_sum(model, [Row("text", TEXT, TEXT)]).item()
    assert found == pytest.approx(published(model, TEXT, TEXT), rel=1e-5)
    assert abs(unshifted / found - 1) > 0.05


@torch.no_grad()
def test_a_mean_of_row_means_is_not_the_mean_over_targets(model: LlamaForCausalLM) -> None:
    """Rows of one and of five targets: a mean of means gives the lone target five times its weight."""
    labels = (IGNORED, IGNORED, PAIR[2])
    rows = [Row("text", TEXT, TEXT), Row("text", PAIR, labels)]
    sums = [published(model, TEXT, TEXT), published(model, PAIR, labels)]
    naive = (sums[0] / 5 + sums[1]) / 2
    found = loss_sum(model, rows).item() / sum(row.targets for row in rows)
    assert found == pytest.approx(sum(sums) / 6, rel=1e-5)
    assert abs(naive / found - 1) > 0.02
