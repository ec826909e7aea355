"""Classes: equal to one unpadded prompt at a time; where a row ends is not read off the padding token."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as hf
from families import DECODERS, ENCODERS
from scipy.special import log_softmax
from transformers import LlamaForSequenceClassification

from rankdrift.scoring.class_probabilities import class_log_probabilities
from rankdrift.tasks.kinds import Classes

PAD, BUDGETS = 0, (1, 30, 10_000)


@torch.no_grad()
def one_by_one(model, prompt):
    """Logits of one unpadded prompt, of a decoder's last position: nothing is taken for padding."""
    config = model.config
    known, config.pad_token_id = config.pad_token_id, None
    logits = model(input_ids=torch.tensor([prompt])).logits[0].double().numpy()
    config.pad_token_id = known
    return logits


@pytest.fixture(scope="module")
def classifier(build):
    return build(3, LlamaForSequenceClassification, num_labels=5)


@pytest.mark.parametrize("budget", BUDGETS)
def test_classes_are_scored_as_one_by_one(classifier, prompts, budget):
    expected = [log_softmax(one_by_one(classifier, prompt)) for prompt in prompts]
    found = class_log_probabilities(classifier, [Classes(prompt) for prompt in prompts], PAD, budget)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("budget", BUDGETS)
def test_a_prompt_may_hold_the_padding_token_and_end_in_it(classifier, budget):
    prompts = [(4, 5), (6, PAD), (7, 8, PAD, PAD), (PAD, 9, 3), (PAD, PAD)]
    expected = [log_softmax(one_by_one(classifier, prompt)) for prompt in prompts]
    found = class_log_probabilities(classifier, [Classes(prompt) for prompt in prompts], PAD, budget)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    assert classifier.config.pad_token_id == PAD, "the model is left as it was"


def test_a_task_has_its_own_classes_of_the_head(classifier, prompts):
    ranges = [(0, 2), (2, 3), (0, 0), (4, 1)]
    requests = [Classes(prompt, *own) for prompt in prompts[:2] for own in ranges]
    found = class_log_probabilities(classifier, requests, PAD, 10_000)
    for request, answer in zip(requests, found, strict=True):
        logits = one_by_one(classifier, request.prompt)
        own = logits[request.first : request.first + request.count] if request.count else logits
        np.testing.assert_allclose(answer, log_softmax(own), rtol=0, atol=2e-5)
        assert sum(np.exp(answer)) == pytest.approx(1)


@pytest.mark.parametrize("family", [*DECODERS, *ENCODERS])
def test_every_family_is_scored_as_one_by_one(family):
    torch.manual_seed(0)
    config = (DECODERS | ENCODERS)[family]()
    config.num_labels, config.pad_token_id = 3, 1
    model = hf.AutoModelForSequenceClassification.from_config(config).eval()
    numbers = torch.Generator().manual_seed(1)
    prompts = [tuple(torch.randint(2, 250, (n,), generator=numbers).tolist()) for n in (3, 40, 21, 22)]
    with torch.no_grad():
        logits = [model(input_ids=torch.tensor([prompt])).logits[0].double().numpy() for prompt in prompts]
    found = class_log_probabilities(model, [Classes(prompt) for prompt in prompts], 1, 90)
    np.testing.assert_allclose(found, log_softmax(logits, axis=-1), rtol=0, atol=3e-5)
