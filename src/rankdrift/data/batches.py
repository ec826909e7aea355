"""How the rows of a step are shared out, and how they become tensors."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rankdrift.data.tokens import Row
from rankdrift.errors import UserError

Side = Literal["left", "right"]


class MicroBatchPlan(NamedTuple):
    """How each rank takes its share of a global batch."""

    micro_batch: int
    """Rows a forward pass."""
    accumulation: int
    """Forward passes an optimizer step."""


def plan_micro_batches(global_batch: int, micro_batch: int, world_size: int) -> MicroBatchPlan:
    """Return the largest micro-batch of at most ``micro_batch`` rows that divides a rank's share.

    Raises
    ------
    UserError
        If the ranks cannot share the global batch evenly; it states the nearest sizes that they can.

    """
    share, rest = divmod(global_batch, world_size)
    if rest:
        nearest = [share * world_size, (share + 1) * world_size]
        possible = " or ".join(str(size) for size in nearest if size > 0)
        raise UserError(
            f"training.global_batch={global_batch} cannot be shared by {world_size} ranks: use {possible}"
        )
    micro = max(size for size in range(1, min(micro_batch, share) + 1) if share % size == 0)
    return MicroBatchPlan(micro, share // micro)


def rank_micro_batches(
    indices: np.ndarray, lengths: Sequence[int] | np.ndarray, rank: int, world_size: int, micro_batch: int
) -> list[np.ndarray]:
    """Return one rank's micro-batches of a global batch, the longest rows first.

    Of rows sorted by length each goes to the rank that has the fewest tokens in its micro-batch and room
    left, so the ranks' n-th micro-batches have nearly as many tokens, none waits for another, and little is
    padded where rows are filled up; over all ranks each row is taken once.

    Parameters
    ----------
    indices
        Shape (global_batch,): rows of this step; a multiple of ``world_size * micro_batch``.
    lengths
        Tokens of every row of the data set, indexed by ``indices``.
    rank, world_size, micro_batch
        As planned by :func:`plan_micro_batches`.

    """
    window = world_size * micro_batch
    assert len(indices) % window == 0, f"{len(indices)} rows are no multiple of {window}"
    lengths = np.asarray(lengths)
    longest_first = _longest_first(indices, lengths).reshape(-1, window)
    return [np.array(_dealt(part, lengths, world_size, micro_batch)[rank]) for part in longest_first]


def rank_packed_batches(
    indices: np.ndarray, lengths: Sequence[int] | np.ndarray, rank: int, world_size: int, budget: int
) -> list[np.ndarray]:
    """Return one rank's micro-batches of a global batch where rows are packed, within a budget of tokens.

    Ranks have as many rows and nearly as many tokens each, and as many micro-batches, the fewest with which
    all of them keep to the budget; over all ranks each row is taken once.

    Parameters
    ----------
    indices
        Shape (global_batch,): rows of this step; a multiple of ``world_size``.
    lengths
        Tokens of every row of the data set, indexed by ``indices``; none is above the budget.
    rank, world_size
        This rank, and how many there are.
    budget
        Most tokens of a micro-batch.

    """
    lengths = np.asarray(lengths)
    assert lengths[indices].max() <= budget, "the longest row is above the budget"
    share = len(indices) // world_size
    ranks = _dealt(_longest_first(indices, lengths), lengths, world_size, share)
    tokens = max(int(lengths[own].sum()) for own in ranks)
    for count in range(-(-tokens // budget), share + 1):
        cut = [_dealt(np.array(own), lengths, count, share) for own in ranks]
        if all(lengths[part].sum() <= budget for own in cut for part in own):
            break
    return [np.array(part) for part in cut[rank]]


def own_micro_batches(
    indices: np.ndarray, lengths: np.ndarray, rank: int, world_size: int, budget: int, packs: bool
) -> list[np.ndarray]:
    """Return one rank's micro-batches of a global batch: packed ones, or of as many rows as have room.

    Parameters
    ----------
    indices, lengths, rank, world_size
        As :func:`rank_micro_batches` takes them.
    budget
        Most tokens at once; of rows that are filled up, as many of the longest as keep to it.
    packs
        Whether rows lie end to end.

    """
    if packs:
        return rank_packed_batches(indices, lengths, rank, world_size, budget)
    plan = plan_micro_batches(len(indices), budget // int(lengths.max()), world_size)
    return rank_micro_batches(indices, lengths, rank, world_size, plan.micro_batch)


def rank_batches_apart(
    indices: np.ndarray,
    labels: np.ndarray,
    lengths: Sequence[int] | np.ndarray,
    rank: int,
    world_size: int,
    budget: int,
    packs: bool,
) -> list[np.ndarray]:
    """Return one rank's micro-batches of a global batch, rows of different labels in different ones.

    Ranks have as many micro-batches; some have no rows. Over all ranks each row is taken once. On one rank
    every label has two at least, if it has two rows.

    Parameters
    ----------
    indices, labels
        Rows of this step and what each is of, both (global_batch,).
    lengths
        Tokens of every row of the data set, indexed by ``indices``; none is above the budget.
    rank, world_size
        This rank, and how many there are.
    budget
        Most tokens of a micro-batch.
    packs
        Whether rows lie end to end, or are filled up to the longest.

    """
    lengths, batches = np.asarray(lengths), []
    for label in np.unique(labels):
        rows = _longest_first(indices[labels == label], lengths)
        ranks = _dealt(rows, lengths, world_size, -(-len(rows) // world_size))
        most = max(map(len, ranks))
        for count in range(min(2, most) if world_size == 1 else 1, most + 1):
            cut = [_dealt(np.array(own), lengths, count, -(-most // count)) for own in ranks]
            if all(_put_through(lengths[part], packs) <= budget for own in cut for part in own):
                break
        batches += [np.array(part, np.int64) for part in cut[rank]]
    return batches


def _put_through(lengths: np.ndarray, packs: bool) -> int:
    """Return the tokens that rows are put through a model as."""
    if not len(lengths):
        return 0
    return int(lengths.sum() if packs else lengths.max() * len(lengths))


def _longest_first(indices: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    return np.asarray(indices)[np.argsort(-lengths[indices], kind="stable")]


def _dealt(rows: np.ndarray, lengths: np.ndarray, hands: int, most: int) -> list[list[int]]:
    """Deal rows, longest first, out: the next one to the hand that has the fewest tokens and room left."""
    dealt: list[list[int]] = [[] for _ in range(hands)]
    room = [(0, hand) for hand in range(hands)]  # a heap of tokens and hands that are not full
    for row in rows.tolist():
        tokens, hand = heapq.heappop(room)
        dealt[hand].append(row)
        if len(dealt[hand]) < most:
            heapq.heappush(room, (tokens + int(lengths[row]), hand))
    return dealt


def padded(
    sequences: Sequence[Sequence[int] | np.ndarray],
    pad_id: int,
    side: Side,
    device: torch.device | str = "cpu",
) -> dict[str, Tensor]:
    """Return ``input_ids`` and ``attention_mask``, int64 (rows, longest), such that padding is unseen.

    On the left for causal models, so that every row ends at the same column; with ``position_ids`` counted
    from a row's first own token, or absolute positions would begin in the padding. On the right for models
    that see in both directions (``models.direction``): their heads read the first column, and each family
    counts positions in its own way (RoBERTa's begin at 2), which is right where padding comes last.
    """
    longest = max(map(len, sequences))
    ids = torch.full((len(sequences), longest), pad_id, dtype=torch.int64)
    mask = torch.zeros_like(ids)
    for number, sequence in enumerate(sequences):
        first = longest - len(sequence) if side == "left" else 0
        own = slice(first, first + len(sequence))
        ids[number, own] = torch.from_numpy(np.array(sequence, np.int64))
        mask[number, own] = 1
    batch = {"input_ids": ids, "attention_mask": mask}
    if side == "left":
        batch["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return {name: tensor.to(device) for name, tensor in batch.items()}


def labelled(rows: Sequence[Row], pad_id: int) -> dict[str, Tensor]:
    """Return rows filled up on the right, as transformers' language models take them with their targets.

    ``input_ids``, ``attention_mask`` and ``labels``, int64 (rows, longest); labels are -100 where no loss is.
    """
    batch = padded([row.input_ids for row in rows], pad_id, "right")
    carries = padded([row.carries_loss for row in rows], 0, "right")["input_ids"].bool()
    return {**batch, "labels": batch["input_ids"].masked_fill(~carries, -100)}


class Packed(NamedTuple):
    """Rows laid end to end; int64, on the CPU."""

    input_ids: Tensor
    """Shape (1, tokens)."""
    lengths: list[int]
    """Tokens of each row."""
    predicting: Tensor
    """Where a token is predicted that carries loss: one before it, shape (targets,)."""
    targets: Tensor
    """The tokens that carry loss, shape (targets,)."""
    rows: Tensor
    """The number of each target's row, shape (targets,)."""


def packed(rows: Sequence[Row]) -> Packed:
    """Lay rows end to end; a row's first token is predicted by nothing and carries no loss."""
    ids = np.concatenate([row.input_ids for row in rows]).astype(np.int64)
    lengths = np.array([len(row.input_ids) for row in rows])
    carries = np.concatenate([row.carries_loss for row in rows])
    carries[lengths.cumsum() - lengths] = False
    places = carries.nonzero()[0]
    of_rows = np.repeat(np.arange(len(rows)), lengths)[places]
    of_targets = map(torch.from_numpy, (places - 1, ids[places], of_rows))
    return Packed(torch.from_numpy(ids[None]), lengths.tolist(), *of_targets)


class Filled(NamedTuple):
    """Rows filled up on the right, where a causal model's real tokens see no padding; int64, on the CPU."""

    input_ids: Tensor
    """Shape (rows, longest)."""
    predicting: Tensor
    """The columns in which any row predicts a token that carries loss, shape (columns,)."""
    columns: Tensor
    """Where in ``predicting`` each target's column is, shape (targets,)."""
    targets: Tensor
    """The tokens that carry loss, shape (targets,)."""
    rows: Tensor
    """The number of each target's row, shape (targets,)."""


def filled(rows: Sequence[Row], pad_id: int) -> Filled:
    """Fill rows up to the longest; a row's first token is predicted by nothing and carries no loss."""
    longest = max(len(row.input_ids) for row in rows)
    ids = np.full((len(rows), longest), pad_id, np.int64)
    carries = np.zeros(ids.shape, bool)
    for number, row in enumerate(rows):
        ids[number, : len(row.input_ids)] = row.input_ids
        carries[number, : len(row.input_ids)] = row.carries_loss
    of_rows, places = carries[:, 1:].nonzero()
    predicting, columns = np.unique(places, return_inverse=True)
    return Filled(*map(torch.from_numpy, (ids, predicting, columns, ids[of_rows, places + 1], of_rows)))


def class_labels(rows: Sequence[Row]) -> Tensor:
    """Return the classes of rows for a classification head, int64, shape (rows,)."""
    assert all(row.label is not None for row in rows), "the classifier was given a row without a label"
    return torch.tensor([row.label for row in rows], dtype=torch.int64)
