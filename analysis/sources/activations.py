"""Hidden states of a base or tuned model on given token rows, mean-pooled over tokens, layer by layer.

States are pooled where they arise, so no token's state is ever stored.
"""

from __future__ import annotations

import contextlib
import itertools
import operator
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from rankdrift import records
from rankdrift.analysis.sources import models
from rankdrift.analysis.sources.models import blocks, device
from rankdrift.errors import UserError

BATCH_TOKENS = 512
"""Tokens put through the model at once, padding included; one row may be longer."""
PAD_ID = 0
"""Any id will do: padding is masked."""


@dataclass(frozen=True)
class TokenRows:
    """The inputs over which representations are compared."""

    path: Path
    """Where they were read from."""
    rows: tuple[tuple[int, ...], ...]
    """Token ids of each input, without padding."""


def read_rows(path: Path, limit: int) -> TokenRows:
    """Read the first ``limit`` inputs of a Parquet file with a column ``input_ids`` (lists of token ids).

    Raises
    ------
    UserError
        If the file or the column is missing, or a row is not a list of one or more token ids.

    """
    table = records.read_table(path)
    if "input_ids" not in table.columns:
        raise UserError(f"{path}: no column 'input_ids' (columns: {', '.join(table.columns)}); add token ids")
    values = table["input_ids"].head(limit)
    return TokenRows(path, tuple(_token_ids(path, index, value) for index, value in enumerate(values)))


def _token_ids(path: Path, index: int, value: Any) -> tuple[int, ...]:
    try:
        row = tuple(operator.index(token) for token in value)
    except TypeError:
        row = ()
    if not row or min(row) < 0:
        raise UserError(f"{path}: row {index}: input_ids {value!r} is not a list of one or more token ids")
    return row


def base_states(base: Path, inputs: TokenRows, cache: Path) -> Path:
    """Return a file below ``cache`` with the base's ``pooled_states``, which are computed if it is not there.

    Its name is a digest of the model's files, the token ids and what computes them.
    """
    key = {
        "model": [str(base.resolve()), records.fingerprint(base)],
        "rows": inputs.rows,
        "device": device().type,
        "batch_tokens": BATCH_TOKENS,
        "versions": [torch.__version__, transformers.__version__],
    }
    path = cache / f"states-{records.digest_json(key)[:32]}.safetensors"
    if not path.exists():
        states = pooled_states(models.load_backbone(base), inputs)
        with records.replacing(path) as temporary:
            save_file({"states": states}, temporary)
    return path


def read_states(path: Path) -> Tensor:
    """Return the states (n, layers + 1, d) that ``base_states`` keeps in a file."""
    return load_file(path)["states"]


def pooled_states(model: PreTrainedModel, inputs: TokenRows) -> Tensor:
    """Return each input's mean hidden state over its tokens, (n, layers + 1, d), fp32, on the CPU.

    State 0 is what enters the first block, state i what leaves block i, before any final norm. Rows are
    put together by length, so that little is padded; neither that nor the padding changes a number beyond
    rounding.

    Raises
    ------
    UserError
        If a token is not in the model's vocabulary, or a state is not finite.

    """
    _check_vocabulary(model, inputs)
    model = model.to(device())  # type: ignore[arg-type]
    batches = list(length_batches([len(row) for row in inputs.rows]))
    with torch.inference_mode():
        pooled = [_pooled_batch(model, [inputs.rows[index] for index in batch]) for batch in batches]
    states = torch.cat(pooled)
    states[list(itertools.chain(*batches))] = states.clone()
    if not states.isfinite().all():
        raise UserError(f"{model.name_or_path}: hidden states are not finite; check its weights")
    return states


def length_batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Yield the indices of rows of about the same length, at most ``BATCH_TOKENS`` padded tokens at once."""
    batch: list[int] = []
    for index in sorted(range(len(lengths)), key=lengths.__getitem__):
        if batch and (len(batch) + 1) * lengths[index] > BATCH_TOKENS:
            yield batch
            batch = []
        batch.append(index)
    if batch:
        yield batch


def _pooled_batch(model: PreTrainedModel, rows: Sequence[Sequence[int]]) -> Tensor:
    """Return the pooled states of rows of token ids put through the model together, (n, layers + 1, d)."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[PAD_ID] * (width - len(row)) + list(row) for row in rows], device=device())
    lengths = torch.tensor([len(row) for row in rows], device=device())
    mask = torch.arange(width, device=device()) >= (width - lengths)[:, None]
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    with _recorded(model, mask) as states:
        model(input_ids=ids, attention_mask=mask.long(), position_ids=positions, use_cache=False)
    return torch.stack(states, dim=1).cpu()


@contextlib.contextmanager
def _recorded(model: PreTrainedModel, mask: Tensor) -> Iterator[list[Tensor]]:
    """Yield a list that fills with the pooled states, each (n, d), as the model runs."""
    states: list[Tensor] = []

    def entered(block: nn.Module, inputs: tuple[Any, ...]) -> None:
        states.append(mean_over_tokens(inputs[0], mask))

    def left(block: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        states.append(mean_over_tokens(output[0] if isinstance(output, tuple) else output, mask))

    layers = blocks(model)
    hooks = [layers[0].register_forward_pre_hook(entered)]
    hooks += [block.register_forward_hook(left) for block in layers]
    try:
        yield states
    finally:
        for hook in hooks:
            hook.remove()


def mean_over_tokens(hidden: Tensor, mask: Tensor) -> Tensor:
    """Return the mean of hidden (n, tokens, d) over the tokens where mask (n, tokens) is true, (n, d)."""
    # not a product with the mask: a fully masked position may hold NaN
    kept = hidden.masked_fill(~mask[:, :, None], 0)
    return kept.sum(dim=1) / mask.sum(dim=1, keepdim=True)


def _check_vocabulary(model: PreTrainedModel, inputs: TokenRows) -> None:
    embeddings = model.get_input_embeddings()
    assert isinstance(embeddings, nn.Embedding)
    vocabulary = embeddings.num_embeddings
    for index, row in enumerate(inputs.rows):
        if max(row) >= vocabulary:
            raise UserError(
                f"{inputs.path}: row {index}: token id {max(row)} is not in the vocabulary of "
                f"{model.name_or_path} ({vocabulary} tokens); tokenise with that model's tokenizer"
            )
