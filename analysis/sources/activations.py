"""Hidden states of a base or tuned model on given token rows, layer by layer, kept in a file.

A pass stores, for each layer, three representations of the inputs: ``mean`` (over an input's tokens),
``last_token``, and ``token`` (a row a token). Tokens are counted without padding; where the inputs have more
than ``TOKENS_PER_WIDTH`` times d of them, equally many are taken of each input, evenly spread. So a file
holds (tokens kept + 2 n) x d fp32 numbers a layer, tokens kept <= max(4 d, n): it does not grow with the
number of tokens. Only one batch of it is in memory while it is written, and one layer while it is read.

The base's file is kept for all checkpoints tuned from it: reading it costs little beside another pass.
"""

from __future__ import annotations

import contextlib
import itertools
import operator
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from rankdrift import files
from rankdrift.analysis.sources import models
from rankdrift.analysis.sources.models import Precision, arithmetic, blocks, device
from rankdrift.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH_TOKENS = 512
"""Tokens put through the model at once, padding included; one row may be longer."""
VERSION = 2
"""Raised whenever the states change; part of the name of what is kept of the base."""
PAD_ID = 0
"""Any id will do: padding is masked."""
TOKENS_PER_WIDTH = 4
"""Tokens kept for ``token``, in widths of the model: at most 4 d, but one of each input at least."""

Representation = Literal["mean", "last_token", "token"]
REPRESENTATIONS: tuple[Representation, ...] = ("mean", "last_token", "token")


@dataclass(frozen=True)
class TokenRows:
    """The inputs over which representations are compared."""

    path: Path
    """Where they were read from."""
    rows: tuple[tuple[int, ...], ...]
    """Token ids of each input, without padding."""

    def kept_tokens(self, width: int) -> list[list[int]]:
        """Return the positions in each input whose states are kept, for a model of this width.

        All of an input's, or the middles of equal parts of it where it has more than its share.
        """
        share = max(1, TOKENS_PER_WIDTH * width // max(len(self.rows), 1))
        return [_spread(len(row), share) for row in self.rows]


@dataclass(frozen=True)
class States:
    """A file of hidden states: (layers, rows, d) fp32; rows are means, then last tokens, then tokens."""

    path: Path
    inputs: TokenRows

    @property
    def shape(self) -> tuple[int, int]:
        """(layers, d); layer 0 is what enters the first block, layer i what leaves block i."""
        layers, _, width = self._open().shape
        return layers, width

    def rows(self, layer: int, representation: Representation) -> Tensor:
        """Read one layer's rows of a representation, (n, d) fp32; tokens in the order of their inputs."""
        count = len(self.inputs.rows)
        first, last = {
            "mean": (0, count),
            "last_token": (count, 2 * count),
            "token": (2 * count, None),
        }[representation]
        return torch.from_numpy(np.array(self._open()[layer, first:last]))

    def inputs_of(self, representation: Representation) -> Tensor:
        """Return the number of the input that each row belongs to, (n,) int64."""
        numbers = torch.arange(len(self.inputs.rows))
        if representation != "token":
            return numbers
        kept = self.inputs.kept_tokens(self.shape[1])
        return numbers.repeat_interleave(torch.tensor([len(positions) for positions in kept]))

    def _open(self) -> np.ndarray:
        states: np.ndarray = np.load(self.path, mmap_mode="r")
        return states


def read_rows(path: Path, limit: int) -> TokenRows:
    """Read the first ``limit`` inputs of a Parquet file with a column ``input_ids`` (lists of token ids).

    Raises
    ------
    UserError
        If the file or the column is missing, or a row is not a list of one or more token ids.

    """
    table = files.read_table(path)
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


def _spread(length: int, share: int) -> list[int]:
    """Return ``share`` positions evenly spread over 0..length-1, or all where there are no more."""
    if length <= share:
        return list(range(length))
    return [(2 * part + 1) * length // (2 * share) for part in range(share)]


def base_states(base: Path, inputs: TokenRows, cache: Path, precision: Precision = "fp32") -> States:
    """Return the base's states, from a folder of their own below ``cache``; computed if they are not there.

    The folder's name is a digest of the model's files, the token ids and what computes them.
    """
    key = {
        "model": [str(base.resolve()), files.fingerprint(base)],
        "rows": inputs.rows,
        "device": device().type,
        "precision": precision,
        "batch_tokens": BATCH_TOKENS,
        "tokens_per_width": TOKENS_PER_WIDTH,
        "version": VERSION,
        "versions": [torch.__version__, metadata.version("transformers")],
    }
    path = cache / f"states-{files.digest_json(key)[:32]}" / "states.npy"
    with files.held(path.with_suffix(".lock")):  # processes with a checkpoint each wait for one pass
        if not path.exists():
            with files.replacing(path) as temporary:
                record_states(models.load_backbone(base), inputs, temporary, precision)
    return States(path, inputs)


@contextlib.contextmanager
def tuned_states(
    model: PreTrainedModel, inputs: TokenRows, cache: Path, precision: Precision = "fp32"
) -> Iterator[States]:
    """Yield a tuned model's states, in a file below ``cache`` that is deleted afterwards."""
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="states-tuned-", dir=cache) as folder:
        path = Path(folder) / "states.npy"
        record_states(model, inputs, path, precision)
        del model  # what follows needs its memory
        yield States(path, inputs)


def record_states(
    model: PreTrainedModel, inputs: TokenRows, path: Path, precision: Precision = "fp32"
) -> None:
    """Put the inputs through the model and write the file of ``States``.

    State 0 is what enters the first block, state i what leaves block i, before any final norm. Rows are
    put together by length, so that little is padded; neither that nor the padding changes a number beyond
    rounding.

    Raises
    ------
    UserError
        If a token is not in the model's vocabulary, or a state is not finite.

    """
    _check_vocabulary(model, inputs)
    kept = inputs.kept_tokens(_width(model))
    count, starts = len(inputs.rows), [0, *itertools.accumulate(map(len, kept))]
    shape = (len(blocks(model)) + 1, 2 * count + starts[-1], _width(model))
    states = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    for batch, found in _batches(model, inputs, kept, precision):
        tokens = [row for index in batch for row in range(starts[index], starts[index + 1])]
        places = [*batch, *(count + index for index in batch), *(2 * count + row for row in tokens)]
        states[:, places] = found.numpy()
    states.flush()


def _width(model: PreTrainedModel) -> int:
    width: int = model.config.hidden_size
    return width


def _batches(
    model: PreTrainedModel, inputs: TokenRows, kept: Sequence[Sequence[int]], precision: Precision
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield the inputs of each batch and their states (layers, rows, d) on the CPU: means, last, tokens."""
    model = model.to(device())  # type: ignore[arg-type]
    start = first_position(model)
    for batch in length_batches([len(row) for row in inputs.rows]):
        with torch.inference_mode(), arithmetic(precision):
            rows = [inputs.rows[index] for index in batch]
            states = _batch_states(model, rows, [kept[index] for index in batch], start)
        if not states.isfinite().all():
            raise UserError(f"{model.name_or_path}: hidden states are not finite; check its weights")
        yield batch, states


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


def padded(rows: Sequence[Sequence[int]]) -> dict[str, Tensor]:
    """Return the model's inputs for rows of token ids padded on the left, each (n, tokens), on the device.

    Positions are counted from the first token that is no padding.
    """
    width = max(len(row) for row in rows)
    ids = torch.tensor([[PAD_ID] * (width - len(row)) + list(row) for row in rows], device=device())
    lengths = torch.tensor([len(row) for row in rows], device=device())
    mask = torch.arange(width, device=device()) >= (width - lengths)[:, None]
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return {"input_ids": ids, "attention_mask": mask.long(), "position_ids": positions}


def _batch_states(
    model: PreTrainedModel, rows: Sequence[Sequence[int]], kept: Sequence[Sequence[int]], start: int
) -> Tensor:
    """Return the states of rows put through the model together, (layers, rows kept, d), on the CPU.

    Positions begin at ``start``.
    """
    tensors = padded(rows)
    tensors["position_ids"] += start
    mask = tensors["attention_mask"].bool()
    lengths = [len(row) for row in rows]
    places = [
        (row, mask.shape[1] - lengths[row] + position)
        for row, positions in enumerate(kept)
        for position in positions
    ]
    row, column = torch.tensor(places, device=mask.device).unbind(dim=1)

    def taken(hidden: Tensor) -> Tensor:
        hidden = hidden.float()
        return torch.cat([mean_over_tokens(hidden, mask), hidden[:, -1], hidden[row, column]])

    with _recorded(model, taken) as states:
        model(**tensors, use_cache=False)
    return torch.stack(states).cpu()


def first_position(model: PreTrainedModel) -> int:
    """Return the position of a first token: 0, but behind that of padding where it has one (RoBERTa)."""
    tables = (getattr(module, "position_embeddings", None) for module in model.modules())
    paddings = [table.padding_idx for table in tables if isinstance(table, nn.Embedding)]
    return next((index + 1 for index in paddings if index is not None), 0)


@contextlib.contextmanager
def _recorded(model: PreTrainedModel, taken: Callable[[Tensor], Tensor]) -> Iterator[list[Tensor]]:
    """Yield a list that fills with what is taken of each state (n, tokens, d) as the model runs."""
    states: list[Tensor] = []

    def entered(block: nn.Module, inputs: tuple[Any, ...]) -> None:
        states.append(taken(inputs[0]))

    def left(block: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        states.append(taken(output[0] if isinstance(output, tuple) else output))

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
