"""Continuations: equal to one unpadded pass a token, whatever is asked together; contexts are read once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers as hf
from families import DECODERS, RECURRENT
from scipy.special import log_softmax

from rankdrift.scoring.continuations import continuation_likelihoods, shared_stems
from rankdrift.tasks.kinds import Continuation

PAD = 0
CHOICES = {
    "single tokens": [(5,), (9,), (60,)],
    "of unequal length, one within another": [(5,), (5, 9), (60, 3, 4), (60, 7), (8, 8, 8, 8)],
    "one": [(7, 60, 9)],
    "with the padding token": [(PAD, 4), (4, PAD, 7), (PAD,)],
}
BUDGETS = (1, 40, 10_000)


@torch.no_grad()
def one_by_one(model, request):
    """log p(continuation | context) and greedy, token by token, each from a full pass over what is before."""
    total, greedy = 0.0, True
    for place, token in enumerate(request.continuation):
        ids = torch.tensor([[*request.context, *request.continuation[:place]]])
        logits = model(input_ids=ids, use_cache=False).logits[0, -1]
        total += log_softmax(logits.double().numpy())[token]
        greedy &= int(logits.argmax()) == token
    return total, greedy


def check(model, requests, budget, pad=PAD):
    expected = [one_by_one(model, request) for request in requests]
    found = continuation_likelihoods(model, requests, pad, budget)
    np.testing.assert_allclose([one.log_likelihood for one in found], [e[0] for e in expected], atol=3e-5)
    assert [one.greedy for one in found] == [e[1] for e in expected]


@torch.no_grad()
def greedy_tokens(model, context, steps):
    """The most likely tokens, each from a full pass."""
    tokens = []
    for _ in range(steps):
        logits = model(input_ids=torch.tensor([[*context, *tokens]]), use_cache=False).logits
        tokens.append(int(logits[0, -1].argmax()))
    return tuple(tokens)


def asked(prompts, choices):
    return [Continuation(prompt, choice) for prompt in prompts for choice in choices]


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("choices", CHOICES.values(), ids=CHOICES.keys())
def test_answers_are_those_of_single_passes(model, prompts, choices, budget):
    check(model, asked(prompts, choices), budget)


@pytest.mark.parametrize("budget", BUDGETS)
def test_what_the_model_would_write_is_greedy_and_nothing_else(model, prompts, budget):
    written = [greedy_tokens(model, prompt, 4) for prompt in prompts]
    requests = [Continuation(prompt, tokens) for prompt, tokens in zip(prompts, written, strict=True)]
    requests += [
        Continuation(prompt, (*tokens[:3], tokens[3] + 1))
        for prompt, tokens in zip(prompts, written, strict=True)
    ]
    found = continuation_likelihoods(model, requests, PAD, budget)
    assert [one.greedy for one in found] == [True] * len(prompts) + [False] * len(prompts)
    check(model, requests, budget)


@pytest.mark.parametrize("family", [*DECODERS, *RECURRENT])
def test_every_family_is_scored_as_by_single_passes(family):
    """Absolute and rotary positions, ALiBi, windows that are shorter than the contexts, states."""
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config((DECODERS | RECURRENT)[family]()).eval()
    numbers = torch.Generator().manual_seed(1)
    prompts = [
        tuple(torch.randint(2, 250, (length,), generator=numbers).tolist()) for length in (3, 40, 21, 22)
    ]
    choices = [(5,), (5, 9, 7), (60, 3, 4, 8, 9, 10), (60, 7)]
    check(model, asked(prompts, choices), budget=130, pad=1)


def passes(model, requests, budget=10_000, of="input_ids"):
    """Shape (rows, columns) of each pass; ``attention_mask`` counts what is in the cache as well."""
    shapes = []

    def passed(module, args, kwargs):
        shapes.append(tuple(kwargs.get(of, kwargs["input_ids"]).shape))

    hook = model.register_forward_pre_hook(passed, with_kwargs=True)
    continuation_likelihoods(model, requests, PAD, budget)
    hook.remove()
    return shapes


def test_single_tokens_of_a_context_take_one_pass(model):
    assert passes(model, asked([tuple(range(2, 22))], [(5,), (9,), (60, 3)])) == [(1, 21)]


def test_a_context_is_read_once_for_several_stems(model):
    context = tuple(range(2, 22))
    probe = (1, 1)  # which cache has the model?
    shapes = passes(model, asked([context], [(5, 6, 7), (9, 8), (60, 3, 4, 5)]))
    assert shapes == [probe, (1, 20), (3, 3)]


def test_a_short_context_is_not_shared(model):
    long = [tuple(range(first, first + 40)) for first in (2, 3, 4)]
    assert passes(model, asked([(5,)], long)) == [(3, 40)]


def test_a_pass_keeps_to_the_budget(model, prompts):
    requests = asked([prompt * 2 for prompt in prompts], CHOICES["of unequal length, one within another"])
    longest = max(len(request.context) + len(request.continuation) for request in requests)
    shapes = passes(model, requests, longest, of="attention_mask")
    assert max(rows * columns for rows, columns in shapes) <= longest
    assert len(passes(model, requests)) < len(shapes)


def test_logits_are_made_at_the_predicting_positions_alone(model, prompts):
    widths = []
    head = model.get_output_embeddings()
    hook = head.register_forward_hook(lambda module, args, output: widths.append(output.shape[1]))
    continuation_likelihoods(model, [Continuation(prompt, (4, 5)) for prompt in prompts], PAD, 10_000)
    hook.remove()
    assert widths == [2 * len(prompts)]


def test_half_precision_is_summed_from_fp32_log_softmax(build, prompts):
    model = build(1).bfloat16()
    request = Continuation(prompts[1], prompts[5])
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([request.context + request.continuation])).logits[0]
    rows = logits[len(request.context) - 1 : -1].double().numpy()
    expected = log_softmax(rows, axis=-1)[range(len(rows)), request.continuation].sum()
    found = continuation_likelihoods(model, [request], PAD, 100)[0].log_likelihood
    assert found == pytest.approx(expected, abs=1e-4)  # sums of bf16 values would be 0.01 off


def test_many_positions_are_taken_in_chunks(model, prompts, monkeypatch):
    requests = asked(prompts, CHOICES["of unequal length, one within another"])
    whole = continuation_likelihoods(model, requests, PAD, 10_000)
    monkeypatch.setattr("rankdrift.scoring.logits.CHUNK_POSITIONS", 3)
    assert continuation_likelihoods(model, requests, PAD, 10_000) == whole


@pytest.mark.parametrize(
    ("choices", "stems"),
    [
        ([(5,), (9,)], {(): [0, 1]}),
        ([(5,), (7,), (3, 4, 5), (3, 6)], {(3, 4): [0, 1, 2, 3]}),
        ([(1, 2), (3, 4), (5,)], {(3,): [1], (1,): [0, 2]}),
        ([(1, 2, 3), (1, 2, 4), (1, 5, 6), (1, 5)], {(1, 2): [0, 1, 3], (1, 5): [2]}),
    ],
)
def test_a_pass_serves_every_continuation_it_can(choices, stems):
    assert shared_stems(choices) == stems
