"""Batches: nothing lost, longest first, padded on the left with positions from a row's first token."""

from __future__ import annotations

import pytest

from rankdrift.data.batches import padded
from rankdrift.scoring.batches import batches_by_length


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
