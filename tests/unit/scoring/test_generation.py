"""Generation and batches: transformers' own greedy search is the reference, and batches change nothing."""

from __future__ import annotations

import pytest
import torch
from transformers import GenerationConfig

from rankdrift.data.batches import padded
from rankdrift.scoring.batches import batches_by_length
from rankdrift.scoring.generation import greedy_continuations

PAD, STEPS = 0, 12


def reference(model, prompt, eos):
    """One unpadded prompt through ``generate`` with nothing but greedy settings."""
    settings = GenerationConfig(max_new_tokens=STEPS, do_sample=False, eos_token_id=eos, pad_token_id=PAD)
    ids = torch.tensor([prompt])
    tokens = model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    tokens = tokens[0, len(prompt) :].tolist()
    return tuple(tokens[: tokens.index(eos)] if eos in tokens else tokens)


@pytest.fixture(scope="module")
def eos(model, prompts):
    """A token that the model gives in the midst of some continuation, so that one stops before the end."""
    return reference(model, prompts[0], eos=-1)[4]


@pytest.mark.parametrize("batch_size", [1, 3, 8])
def test_continuations_are_those_of_transformers(model, prompts, eos, batch_size):
    expected = [reference(model, prompt, eos) for prompt in prompts]
    assert len(set(map(len, expected))) > 1, "some must stop early for this test to say anything"
    assert greedy_continuations(model, prompts, eos, PAD, STEPS, batch_size) == expected


def test_settings_saved_with_a_model_do_not_change_the_answer(build, prompts):
    model = build(1)
    plain = greedy_continuations(model, prompts, -1, PAD, STEPS, 4)
    model.generation_config.repetition_penalty = 5.0
    assert reference(model, prompts[1], eos=-1) != plain[1], "generate obeys the saved penalty"
    assert greedy_continuations(model, prompts, -1, PAD, STEPS, 4) == plain


def test_an_immediate_end_is_an_empty_answer(model, prompts):
    first = reference(model, prompts[0], eos=-1)[0]
    assert greedy_continuations(model, prompts[:1], first, PAD, STEPS, 1) == [()]


@pytest.mark.parametrize("size", [1, 3, 100])
def test_every_sequence_is_in_one_batch_and_the_longest_come_first(prompts, size):
    batches = batches_by_length(prompts, size)
    order = [index for batch in batches for index in batch]
    assert sorted(order) == list(range(len(prompts)))
    assert max(map(len, batches)) <= size
    lengths = [len(prompts[index]) for index in order]
    assert lengths == sorted(lengths, reverse=True)


def test_padding_is_on_the_left_and_positions_do_not_count_it():
    batch = padded([(5, 6, 7), (8,)], 9, "left")
    assert batch["input_ids"].tolist() == [[5, 6, 7], [9, 9, 8]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
    assert batch["position_ids"].tolist() == [[0, 1, 2], [0, 0, 0]]


def test_padding_on_the_right_leaves_counting_to_the_model():
    batch = padded([(5, 6, 7), (8,)], 9, "right")
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 9, 9]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert "position_ids" not in batch
