"""Requests of all kinds asked together: answers in their order, whatever is asked beside them."""

from __future__ import annotations

import random

import pytest
from transformers import LlamaForSequenceClassification

from rankdrift.models.tiny import tiny_tokenizer
from rankdrift.scoring.answers import answer
from rankdrift.scoring.batches import batches_by_tokens
from rankdrift.scoring.detokenizer import Detokenizer
from rankdrift.tasks.kinds import Classes, Completion, Continuation, Likelihood

CODEC = Detokenizer(0, frozenset({1}), lambda tokens: "".join(f"<{token}>" for token in tokens))


@pytest.fixture(scope="module")
def requests(prompts):
    made = []
    for number, prompt in enumerate(prompts):
        made += [Continuation(prompt, choice) for choice in ((5,), (5, 9), (60, 3, 4), (8, 8, 8, 8))]
        made.append(Completion(prompt, 3 + number, ("3><4",)))
    return made


def alike(found, expected):
    """Texts equal, log-likelihoods but for rounding in fp32."""
    values = [one.log_likelihood for one in expected if isinstance(one, Likelihood)]
    assert [one.log_likelihood for one in found if isinstance(one, Likelihood)] == pytest.approx(
        values, rel=1e-5
    )
    rest = [one.greedy if isinstance(one, Likelihood) else one for one in expected]
    assert [one.greedy if isinstance(one, Likelihood) else one for one in found] == rest


@pytest.mark.parametrize("budget", [1, 50, 300, 10_000])
def test_answers_do_not_depend_on_budget_and_order(model, requests, budget):
    alone = [answer(model, [request], CODEC, 100)[0] for request in requests]
    order = random.Random(budget).sample(range(len(requests)), len(requests))
    found = answer(model, [requests[number] for number in order], CODEC, budget)
    alike(found, [alone[number] for number in order])


def test_a_classifier_is_asked_for_classes_alone(build, prompts):
    model = build(3, LlamaForSequenceClassification, num_labels=3)
    requests = [Classes(prompt) for prompt in prompts]
    alone = [answer(model, [request], CODEC, 100)[0] for request in requests]
    for found, expected in zip(answer(model, requests, CODEC, 40), alone, strict=True):
        assert found == pytest.approx(expected, rel=1e-5)


def test_requests_may_be_as_long_as_the_model_reads(build):
    model = build(1, max_position_embeddings=8)
    longest = [Continuation((2, 3, 4), (5,) * 6), Completion((2, 3, 4), 6)]
    assert len(answer(model, longest, CODEC, 100)) == 2
    for request in (Continuation((2, 3, 4), (5,) * 7), Completion((2, 3, 4), 7)):
        with pytest.raises(AssertionError, match="longer than the model can read"):
            answer(model, [request], CODEC, 100)


def test_nothing_asked_is_nothing_answered(model):
    assert answer(model, [], CODEC, 100) == []


def test_progress_counts_requests_up_to_all_of_them(model, requests):
    said = []
    answer(model, requests, CODEC, 60, progress=lambda done, total: said.append((done, total)))
    assert [done for done, _ in said] == sorted({done for done, _ in said})
    assert len(said) > 4
    assert said[-1] == (len(requests), len(requests))
    assert {total for _, total in said} == {len(requests)}


def test_batches_are_within_the_budget_and_the_longest_come_first(prompts):
    lengths = [len(prompt) for prompt in prompts]
    batches = batches_by_tokens(lengths, 15)
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert batches[0] == [lengths.index(16)], "longer than the budget: alone"
    assert all(len(batch) * max(lengths[index] for index in batch) <= 15 for batch in batches[1:])
    order = [lengths[index] for batch in batches for index in batch]
    assert order == sorted(order, reverse=True)


def test_what_ends_a_text_is_the_tokenizers():
    tokenizer = tiny_tokenizer()
    detokenizer = Detokenizer.of(tokenizer)
    assert (detokenizer.pad_id, detokenizer.eos_ids) == (tokenizer.pad_token_id, {tokenizer.eos_token_id})
    tokens = tokenizer(" two words .")["input_ids"]
    assert detokenizer.decode([*tokens, tokenizer.pad_token_id]) == " two words ."
