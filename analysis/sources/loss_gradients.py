"""Gradients of the training loss with respect to a model's parameters, on given rows of every task.

The loss is the one that training takes the mean of: cross-entropy in nats, summed over targets here, so that
it does not depend on how rows are put together. Padding is masked.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rankdrift.analysis.mathematics.gradients.products import GradientSums, Shards, gradient_sums
from rankdrift.analysis.sources.activations import length_batches, padded
from rankdrift.analysis.sources.differentiable import Differentiable, Space
from rankdrift.analysis.sources.loss_rows import IGNORED, LossRows, Row
from rankdrift.analysis.sources.models import Precision, arithmetic, device
from rankdrift.errors import UserError
from rankdrift.models.families import Cell, cell_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

HELD_BYTES = 5 * 2**30
"""Gradients held at once, of every shard; beside them a backward pass makes one parameter's own."""

Piece = tuple[str, slice]
"""A parameter's name, and which of its rows."""


def shard_sums(
    subject: Differentiable, inputs: LossRows, precision: Precision = "fp32"
) -> dict[Space, dict[Cell, GradientSums]]:
    """Return what is kept of the gradients on the rows of each shard, space by space and cell by cell.

    Parameters whose gradients of all shards do not fit into ``HELD_BYTES`` are taken in further passes, each
    of which runs the model again, back to the first of its parameters. One that does not fit alone, an
    embedding of 128,000 tokens, is taken some rows at a time; unless LoRA adapts it, whose factors' gradients
    are sums over all of them.

    Raises
    ------
    UserError
        If a token is not in the vocabulary, a label not in the head, or a gradient not finite.

    """
    _check_tokens(subject.model, inputs)
    subject.model.to(device())  # type: ignore[arg-type]
    found: dict[Space, dict[Cell, GradientSums]] = {}
    for pieces in _passes(subject, len(inputs.groups)):
        held = _held(subject, pieces, inputs.groups, precision)
        for name, _ in pieces:
            for space, cell, sums in _parameter_sums(subject, name, held.pop(name), inputs.shards):
                cells = found.setdefault(space, {})
                cells[cell] = cells[cell] + sums if cell in cells else sums
    return found


def _parameter_sums(
    subject: Differentiable, name: str, gradients: Tensor, shards: Shards
) -> Iterator[tuple[Space, Cell, GradientSums]]:
    for space, factor, values in subject.spaces(name, gradients):
        sums = gradient_sums(values, shards)
        if not np.isfinite(sums.gram).all():
            raise UserError(
                f"{subject.model.name_or_path}: the gradient of {name} is NaN or infinite on some "
                "row; the run diverged, use an earlier checkpoint"
            )
        yield space, cell_of(name, factor), sums


def _passes(subject: Differentiable, shards: int) -> Iterator[list[Piece]]:
    """Yield what gradients are held of at once, in the order of the forward pass, no parameter twice."""
    pieces: list[Piece] = []
    size = 0
    for name, rows, added in _pieces(subject, shards):
        if pieces and (size + added > HELD_BYTES or name == pieces[-1][0]):
            yield pieces
            pieces, size = [], 0
        pieces.append((name, rows))
        size += added
    yield pieces


def _pieces(subject: Differentiable, shards: int) -> Iterator[tuple[str, slice, int]]:
    """Yield (parameter, rows, bytes of their gradients of all shards)."""
    for name, parameter in subject.parameters.items():
        rows = len(parameter) if parameter.ndim else 1
        of_row = shards * parameter.numel() * parameter.element_size() // rows
        step = rows if name in subject.factors else max(1, min(rows, HELD_BYTES // of_row))
        for first in range(0, rows, step):
            yield name, slice(first, min(first + step, rows)), of_row * min(step, rows - first)


def _held(
    subject: Differentiable, pieces: Sequence[Piece], groups: Sequence[Sequence[Row]], precision: Precision
) -> dict[str, Tensor]:
    """Return the gradients of each shard's summed loss with respect to pieces, (shards, rows, ...) each."""
    chosen = {name: subject.parameters[name] for name, _ in pieces}
    held = {
        name: chosen[name].new_zeros(len(groups), *torch.atleast_1d(chosen[name])[rows].shape)
        for name, rows in pieces
    }
    subject.model.requires_grad_(False)
    for value in chosen.values():
        value.requires_grad_(True)
    for shard, group in enumerate(groups):
        for name, value in chosen.items():
            # backward adds to it in place; of a part of its rows, to a gradient of its own
            value.grad = held[name][shard] if held[name][shard].shape == value.shape else None
        for batch in _batches(subject.model, group):
            with arithmetic(precision):
                loss = loss_sum(subject.model, batch)
            loss.backward()
        for name, rows in pieces:
            grad = chosen[name].grad
            if held[name][shard].shape != chosen[name].shape and grad is not None:
                held[name][shard] = torch.atleast_1d(grad)[rows]
            chosen[name].grad = None
    return held


def _batches(model: PreTrainedModel, rows: Sequence[Row]) -> Iterator[list[Row]]:
    """Yield the rows put through the model together: of one length where its head cannot take padding."""
    for batch in length_batches([len(row.input_ids) for row in rows]):
        chosen = [rows[index] for index in batch]
        if rows[0].classifies and not _reads_the_last_token(model):
            yield from (list(alike) for _, alike in itertools.groupby(chosen, lambda row: len(row.input_ids)))
        else:
            yield chosen


def _reads_the_last_token(model: PreTrainedModel) -> bool:
    """Return whether a classifier's head is on the last token, as transformers' ``score`` of decoders is.

    Heads of encoders are called otherwise, and read the first token: behind padding on the left it is one.
    """
    return hasattr(model, "score")


def loss_sum(model: PreTrainedModel, rows: Sequence[Row]) -> Tensor:
    """Return the cross-entropy summed over the targets of rows put through the model together, in nats."""
    return _class_loss(model, rows) if rows[0].classifies else _token_loss(model, rows)


def _class_loss(model: PreTrainedModel, rows: Sequence[Row]) -> Tensor:
    ids, where = [row.input_ids for row in rows], model.device
    classes = torch.tensor([row.labels[0] for row in rows], device=where)
    if _reads_the_last_token(model):
        logits = model(**padded(ids), use_cache=False).logits
    else:  # encoders count positions in ways of their own, and have no cache to be told of
        logits = model(input_ids=torch.tensor(ids, device=where)).logits
    return cross_entropy(logits.float(), classes, reduction="sum")


def _token_loss(model: PreTrainedModel, rows: Sequence[Row]) -> Tensor:
    inputs = padded([row.input_ids for row in rows])
    width, where = inputs["input_ids"].shape[1], model.device
    # a row's first label is left out: what is before it is padding
    labels = torch.tensor(
        [[IGNORED] * (width + 1 - len(row.labels)) + list(row.labels[1:]) for row in rows], device=where
    )
    carries = labels != IGNORED
    kept = width - int(carries.any(dim=0).nonzero()[0]) + 1
    logits = model(**inputs, use_cache=False, logits_to_keep=kept).logits[:, :-1]
    return cross_entropy(logits[carries[:, 1 - kept :]].float(), labels[carries], reduction="sum")


def _check_tokens(model: PreTrainedModel, inputs: LossRows) -> None:
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)
    known = embeddings.num_embeddings
    classes = model.config.num_labels or 0 if inputs.classifies else known
    for index, row in enumerate(inputs.rows):
        bad = [token for token in row.input_ids if token >= known]
        bad += [label for label in row.labels if label != IGNORED and not 0 <= label < classes]
        if bad:
            raise UserError(
                f"{inputs.path}: row {index}: {bad[0]} is no token or label of {model.name_or_path} "
                f"({known} tokens, {classes} labels); tokenise with that model's tokenizer"
            )
