"""Gradients of the training loss with respect to a model's parameters, on given rows of every task.

The loss is the one that training takes the mean of: cross-entropy in nats, summed over targets here, so that
it does not depend on how rows are put together. Padding is masked.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from transformers import PreTrainedModel

from rankdrift.analysis.mathematics.gradients.products import GradientSums, Shards, gradient_sums
from rankdrift.analysis.sources.activations import length_batches, padded
from rankdrift.analysis.sources.differentiable import Differentiable, Space
from rankdrift.analysis.sources.loss_rows import IGNORED, LossRows, Row
from rankdrift.analysis.sources.models import device
from rankdrift.errors import UserError
from rankdrift.models.families import Cell, cell_of

HELD_BYTES = 4 * 2**30
"""Gradients held at once, of every shard. A pass takes one parameter at least, whatever its size."""


def shard_sums(subject: Differentiable, inputs: LossRows) -> dict[Space, dict[Cell, GradientSums]]:
    """Return what is kept of the gradients on the rows of each shard, space by space and cell by cell.

    Parameters whose gradients of all shards do not fit into ``HELD_BYTES`` are taken in further passes, each
    of which runs the model again, back to the first of its parameters.

    Raises
    ------
    UserError
        If a token is not in the vocabulary, a label not in the head, or a gradient not finite.

    """
    _check_tokens(subject.model, inputs)
    subject.model.to(device())  # type: ignore[arg-type]
    found: dict[Space, dict[Cell, GradientSums]] = {}
    for names in _passes(subject.parameters, len(inputs.groups)):
        held = _held(subject, names, inputs.groups)
        for name in names:
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


def _passes(parameters: Mapping[str, nn.Parameter], shards: int) -> Iterator[list[str]]:
    """Yield the names of parameters whose gradients are held at once, in the order of the forward pass."""
    names: list[str] = []
    size = 0
    for name, parameter in parameters.items():
        added = shards * parameter.numel() * parameter.element_size()
        if names and size + added > HELD_BYTES:
            yield names
            names, size = [], 0
        names.append(name)
        size += added
    yield names


def _held(
    subject: Differentiable, names: Sequence[str], groups: Sequence[Sequence[Row]]
) -> dict[str, Tensor]:
    """Return the gradients of each shard's summed loss with respect to parameters, (shards, *shape) each."""
    chosen = {name: subject.parameters[name] for name in names}
    held = {name: value.new_zeros(len(groups), *value.shape) for name, value in chosen.items()}
    subject.model.requires_grad_(False)
    for value in chosen.values():
        value.requires_grad_(True)
    for shard, rows in enumerate(groups):
        for name, value in chosen.items():
            value.grad = held[name][shard]  # backward adds to it in place
        for batch in _batches(subject.model, rows):
            loss_sum(subject.model, batch).backward()
    for value in chosen.values():
        value.grad = None
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
    return cross_entropy(logits, classes, reduction="sum")


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
    return cross_entropy(logits[carries[:, 1 - kept :]], labels[carries], reduction="sum")


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
