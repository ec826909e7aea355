"""Order, shares and tensors of batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rankdrift.data.batches import (
    class_labels,
    filled,
    padded,
    plan_micro_batches,
    rank_micro_batches,
    rank_packed_batches,
)
from rankdrift.data.mixture import Mixture
from rankdrift.data.tokens import Row
from rankdrift.errors import UserError

PAD = 99


def _row(ids: list[int], prompt: int, label: int | None = None) -> Row:
    return Row(np.array(ids, dtype=np.int32), np.arange(len(ids)) >= prompt, label, "task", 0)


SHORT, LONG = _row([5, 6, 7], 2, 1), _row([8, 9, 10, 11, 12], 2, 0)


def predicted(rows: list[Row]) -> list[tuple[int, int, int]]:
    """Row, column in which it is predicted, and token of every target."""
    batch = filled(rows, PAD)
    columns = batch.predicting[batch.columns]
    return list(zip(batch.rows.tolist(), columns.tolist(), batch.targets.tolist(), strict=True))


def test_rows_are_filled_up_on_the_right_and_only_targets_carry_loss() -> None:
    batch = filled([SHORT, LONG], PAD)
    assert batch.input_ids.tolist() == [[5, 6, 7, PAD, PAD], [8, 9, 10, 11, 12]]
    assert batch.predicting.tolist() == [1, 2, 3]
    assert predicted([SHORT, LONG]) == [(0, 1, 7), (1, 1, 10), (1, 2, 11), (1, 3, 12)]
    assert all(tensor.dtype == torch.int64 for tensor in batch)


def test_a_target_token_equal_to_the_pad_carries_loss() -> None:
    assert predicted([_row([1, PAD], 1), LONG])[0] == (0, 0, PAD)


def test_the_first_token_of_a_row_is_predicted_by_nothing() -> None:
    assert predicted([_row([1, 2], 0), _row([3], 0)]) == [(0, 0, 2)]


def test_classes() -> None:
    labels = class_labels([SHORT, LONG])
    assert labels.tolist() == [1, 0]
    assert labels.dtype == torch.int64


def test_padding_on_the_left_is_unseen() -> None:
    batch = padded([SHORT.input_ids, LONG.input_ids], PAD, "left")
    assert {key: value.tolist() for key, value in batch.items()} == {
        "input_ids": [[PAD, PAD, 5, 6, 7], [8, 9, 10, 11, 12]],
        "attention_mask": [[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]],
        "position_ids": [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]],
    }


def _tiny_llama() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=100, hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def test_a_row_gives_the_same_logits_in_any_batch() -> None:
    model = _tiny_llama()
    with torch.no_grad():
        batch = padded([SHORT.input_ids, LONG.input_ids], PAD, "left")
        left = model(**batch).logits[0, -3:]
        right = model(input_ids=filled([SHORT, LONG], PAD).input_ids).logits[0, :3]
        alone = model(input_ids=torch.tensor([[5, 6, 7]])).logits[0]
    torch.testing.assert_close(left, alone, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(right, alone, rtol=1e-5, atol=1e-6)


def test_every_turn_of_a_chat_carries_loss_and_what_is_between_does_not() -> None:
    ids = np.array([1, 2, 3, 4, 5, 6], dtype=np.int32)
    chat = Row(ids, np.array([False, True, False, False, True, True]), None, "task", 0)
    assert predicted([chat, SHORT]) == [(0, 0, 2), (0, 3, 5), (0, 4, 6), (1, 1, 7)]
    assert (chat.prompt_length, chat.target_tokens) == (1, 3)


@pytest.mark.parametrize(
    ("global_batch", "micro_batch", "world_size", "expected"),
    [
        (16, 8, 1, (8, 2)),
        (16, 8, 2, (8, 1)),
        (16, 8, 4, (4, 1)),
        (12, 5, 1, (4, 3)),
        (7, 4, 1, (1, 7)),
        (6, 64, 3, (2, 1)),
    ],
)
def test_plan(global_batch: int, micro_batch: int, world_size: int, expected: tuple[int, int]) -> None:
    assert plan_micro_batches(global_batch, micro_batch, world_size) == expected
    assert world_size * expected[0] * expected[1] == global_batch


@pytest.mark.parametrize(
    ("global_batch", "world_size", "possible"),
    [(16, 3, "use 15 or 18"), (2, 4, "use 4"), (9, 8, "use 8 or 16")],
)
def test_uneven_shares_are_an_error(global_batch: int, world_size: int, possible: str) -> None:
    message = f"global_batch={global_batch} cannot be shared by {world_size} ranks: {possible}$"
    with pytest.raises(UserError, match=message):
        plan_micro_batches(global_batch, 4, world_size)


@pytest.mark.parametrize(("world_size", "micro_batch"), [(1, 16), (1, 4), (2, 4), (4, 2), (4, 4)])
def test_ranks_share_the_global_batch_exactly(world_size: int, micro_batch: int) -> None:
    lengths = np.random.default_rng(0).integers(5, 60, size=100)
    indices = Mixture({"a": 100}, 16, seed=1).rows(2)
    sizes = (world_size, micro_batch)
    shares = [rank_micro_batches(indices, lengths, rank, *sizes) for rank in range(world_size)]
    assert {len(share) for share in shares} == {16 // (world_size * micro_batch)}
    assert {len(micro) for share in shares for micro in share} == {micro_batch}
    assert sorted(np.concatenate([micro for share in shares for micro in share])) == sorted(indices)


def test_micro_batches_are_even_in_length_over_ranks() -> None:
    lengths = np.array([10, 80, 11, 81, 12, 82, 13, 83])
    first, second = (rank_micro_batches(np.arange(8), lengths, rank, 2, 2) for rank in (0, 1))
    assert [lengths[micro].tolist() for micro in first] == [[83, 80], [13, 10]]
    assert [lengths[micro].tolist() for micro in second] == [[82, 81], [12, 11]]


@pytest.mark.parametrize(("world_size", "budget"), [(1, 60), (2, 60), (2, 97), (4, 250), (4, 10_000)])
def test_packed_batches_keep_to_the_budget_and_are_as_few_as_they_can_be(
    world_size: int, budget: int
) -> None:
    draw = np.random.default_rng(0)
    for _ in range(10):
        lengths = draw.integers(5, 60, size=100)
        indices = draw.permutation(100)[:32]
        shares = [
            rank_packed_batches(indices, lengths, rank, world_size, budget) for rank in range(world_size)
        ]
        assert sorted(np.concatenate([np.concatenate(share) for share in shares])) == sorted(indices)
        assert {sum(map(len, share)) for share in shares} == {32 // world_size}
        assert len({len(share) for share in shares}) == 1
        tokens = [[int(lengths[part].sum()) for part in share] for share in shares]
        assert max(map(max, tokens)) <= budget
        assert min(map(min, tokens)) > 0
        fewest = -(-max(map(sum, tokens)) // budget)
        assert fewest <= len(tokens[0]) <= 1.34 * fewest + 1, "dealing out is within 4/3 of the best"


def test_no_rank_has_many_tokens_more_than_another() -> None:
    """Of sixteen rows a micro-batch on each of four ranks; dealt in turn they differ by 40 to 71 tokens."""
    draw = np.random.default_rng(0)
    for _ in range(20):
        lengths = np.clip(draw.gamma(5.2, 6.0, size=64).astype(int), 5, 128)
        shares = [rank_micro_batches(np.arange(64), lengths, rank, 4, 16) for rank in range(4)]
        tokens = [int(lengths[micro].sum()) for (micro,) in shares]
        assert max(tokens) - min(tokens) <= 0.02 * sum(tokens) / 4
