"""Classification: equal to one unpadded pass a prompt and choice, whatever the batch; the classifier too."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.special import log_softmax
from transformers import LlamaForSequenceClassification

from rankdrift.errors import UserError
from rankdrift.scoring.classification import choice_log_likelihoods, class_log_likelihoods, shared_stems

PAD = 0
CHOICES = {
    "single tokens": [(5,), (9,), (60,)],
    "of unequal length, one within another": [(5,), (5, 9), (60, 3, 4), (60, 7), (8, 8, 8, 8)],
}


@torch.no_grad()
def one_by_one(model, prompt, choice):
    """log p(choice | prompt) token by token, each from a full pass over what comes before it."""
    total = 0.0
    for place, token in enumerate(choice):
        logits = model(input_ids=torch.tensor([[*prompt, *choice[:place]]])).logits[0, -1]
        total += log_softmax(logits.double().numpy())[token]
    return total


@pytest.mark.parametrize("batch_size", [1, 3, 8])
@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES.keys())
def test_choices_are_scored_as_one_by_one(model, prompts, choices, batch_size):
    expected = [[one_by_one(model, prompt, choice) for choice in choices] for prompt in prompts]
    found = choice_log_likelihoods(model, prompts, choices, PAD, batch_size)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    ("choices", "stems"),
    [
        ([(5,), (9,)], {(): [0, 1]}),
        ([(5,), (7,), (3, 4, 5), (3, 6)], {(3, 4): [0, 1, 2, 3]}),
        ([(1, 2), (3, 4), (5,)], {(1,): [0, 2], (3,): [1]}),
    ],
)
def test_a_pass_serves_every_choice_it_can(choices, stems):
    assert shared_stems(choices) == stems


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_classes_are_scored_as_one_by_one(build, prompts, batch_size):
    model = build(3, LlamaForSequenceClassification, num_labels=3)
    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([prompt])).logits[0].double().numpy() for prompt in prompts]
    found = class_log_likelihoods(model, prompts, PAD, batch_size)
    np.testing.assert_allclose(found, log_softmax(logits, axis=-1), rtol=0, atol=2e-5)


def test_a_prompt_that_ends_in_padding_is_refused(build):
    model = build(3, LlamaForSequenceClassification, num_labels=3)
    with pytest.raises(UserError, match="prompt 1 ends in the padding token 0"):
        class_log_likelihoods(model, [(4, 5), (6, PAD)], PAD, 2)
