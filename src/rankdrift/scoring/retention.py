"""General text: how well a checkpoint still predicts it, and how far its predictions moved from the base's.

Accuracy of a small model on public benchmarks is near chance; the loss and the KL divergence on held-out
text are far more sensitive (KL from the base predicts forgetting, arXiv 2509.04259). Everything is taken
over the full vocabulary, teacher-forced, with log-softmax in fp32, a few hundred tokens at a time.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from rankdrift.data.batches import padded
from rankdrift.data.general_text import TextWindow
from rankdrift.errors import UserError
from rankdrift.scoring.batches import batches_by_tokens
from rankdrift.scoring.shares import Shares

CHUNK_TOKENS = 256  # tokens whose log-probabilities are in memory at once


@dataclass(frozen=True)
class GeneralText:
    """The text, and how it is put through a model."""

    windows: tuple[TextWindow, ...]
    pad_id: int
    """Padding token."""
    batch_tokens: int
    """Tokens passed at once, padding included."""

    def share(self, shares: Shares | None) -> GeneralText:
        """Return the windows of this rank."""
        if shares is None:
            return self
        own = shares.dealt([len(window.input_ids) for window in self.windows])
        return replace(self, windows=tuple(self.windows[row] for row in own))


@dataclass(frozen=True)
class Reference:
    """What of the base model is needed to compare checkpoints with it; made once, the base can be let go."""

    head: nn.Module
    """A copy of the base's LM head: adapters come and go on the base itself."""
    states: tuple[Tensor, ...]
    """The base's last hidden states at the predicting positions, batch by batch, (tokens, width) each."""

    @classmethod
    @torch.inference_mode()
    def of(cls, base: PreTrainedModel, text: GeneralText, shares: Shares | None = None) -> Reference:
        """Run the base model, in evaluation mode, over the text, or over this rank's share of it."""
        states = tuple(states for _, states, _ in _passes(base, text.share(shares)))
        return cls(head=copy.deepcopy(base.get_output_embeddings()), states=states)


@torch.inference_mode()
def measure_windows(
    model: PreTrainedModel,
    text: GeneralText,
    reference: Reference | None = None,
    shares: Shares | None = None,
) -> pd.DataFrame:
    """Return one row a window, in the text's order: sums over its predicted tokens, all but the first.

    Columns: ``index``, ``document``, ``words``, ``tokens`` (predicted ones), ``nll`` (nats, targets shifted
    by one); with a reference also ``kl_from_base`` = sum of KL(base ‖ model), ``kl_to_base`` = sum of
    KL(model ‖ base), both in nats, and ``top1_agreement`` (tokens whose most likely prediction is the
    base's).

    Parameters
    ----------
    model
        A causal language model in evaluation mode.
    text
        The text.
    reference
        The base model over the same text and share.
    shares
        The ranks that measure together; every one of them gets all rows.

    Raises
    ------
    UserError
        If the model's predictions are not finite numbers, or its logits are not its head's output.

    """
    sums = _window_sums(model, text.share(shares), reference)
    if shares is not None:
        sums = shares.gathered(sums)
    facts = [
        {
            "index": window.index,
            "document": window.document,
            "words": window.words,
            "tokens": len(window.input_ids) - 1,
            **sums[window.index],
        }
        for window in text.windows
    ]
    table = pd.DataFrame(facts)
    if not np.isfinite(table.to_numpy(dtype=np.float64)).all():
        raise UserError("the predictions on general text are not finite numbers: the training diverged")
    return table


def _window_sums(
    model: PreTrainedModel, text: GeneralText, reference: Reference | None
) -> dict[int, dict[str, float]]:
    """Return the measures of each window, by its index."""
    head = model.get_output_embeddings()
    sums: dict[int, dict[str, float]] = {}
    for number, (rows, states, targets) in enumerate(_passes(model, text)):
        base = (reference.head, reference.states[number]) if reference else None
        values = _token_values(head, states, targets, base)
        windows = [text.windows[row] for row in rows]
        tokens = [len(window.input_ids) - 1 for window in windows]
        parts = {name: tensor.split(tokens) for name, tensor in values.items()}
        for place, window in enumerate(windows):
            sums[window.index] = {name: float(part[place].sum()) for name, part in parts.items()}
    return sums


def _passes(model: PreTrainedModel, text: GeneralText) -> Iterator[tuple[list[int], Tensor, Tensor]]:
    """Yield per batch: window numbers, hidden states (tokens, width), tokens to predict (tokens,)."""
    sequences = [window.input_ids for window in text.windows]
    if sequences:  # a rank of many may have none
        _check_head(model, sequences[0])
    for rows in batches_by_tokens([len(ids) for ids in sequences], text.batch_tokens):
        batch = padded([sequences[row] for row in rows], text.pad_id, "left", model.device)
        states = model.get_decoder()(**batch, use_cache=False).last_hidden_state
        predicting = batch["attention_mask"][:, :-1].bool()
        yield rows, states[:, :-1][predicting], batch["input_ids"][:, 1:][predicting]


def _check_head(model: PreTrainedModel, sequence: Sequence[int]) -> None:
    """Refuse a model that changes its head's output (soft caps, scaling): the measures would be another's."""
    ids = torch.tensor([list(sequence[:4])], device=model.device)
    states = model.get_decoder()(input_ids=ids, use_cache=False).last_hidden_state
    logits = model(input_ids=ids, use_cache=False).logits
    if not torch.allclose(
        model.get_output_embeddings()(states), logits, rtol=1e-3, atol=1e-3, equal_nan=True
    ):
        raise UserError(
            f"a {model.config.model_type} model's logits are not its head applied to its last hidden "
            "states; general text cannot be scored for it"
        )


def _token_values(
    head: nn.Module, states: Tensor, targets: Tensor, base: tuple[nn.Module, Tensor] | None
) -> dict[str, Tensor]:
    """Return each token's measures, name -> (tokens,) in fp64, computed a chunk of tokens at a time."""
    chunks: dict[str, list[Tensor]] = {}
    for first in range(0, len(states), CHUNK_TOKENS):
        chunk = slice(first, first + CHUNK_TOKENS)
        log_probs = head(states[chunk]).float().log_softmax(-1)
        measures = {"nll": -log_probs.gather(-1, targets[chunk, None])[:, 0]}
        if base is not None:
            base_head, base_states = base
            measures |= divergences(base_head(base_states[chunk]).float().log_softmax(-1), log_probs)
        for name, values in measures.items():
            chunks.setdefault(name, []).append(values.double())
    return {name: torch.cat(parts) for name, parts in chunks.items()}


def divergences(base_log_probs: Tensor, log_probs: Tensor) -> dict[str, Tensor]:
    """Return KL divergences both ways and top-1 agreement of log-probabilities, each of shape (tokens,).

    KL(p ‖ q) = sum over the vocabulary of p (log p - log q), in nats. Inputs: (tokens, vocabulary), fp32.
    """
    difference = base_log_probs - log_probs
    return {
        "kl_from_base": torch.einsum("tv,tv->t", base_log_probs.exp(), difference),
        "kl_to_base": -torch.einsum("tv,tv->t", log_probs.exp(), difference),
        "top1_agreement": (base_log_probs.argmax(-1) == log_probs.argmax(-1)).float(),
    }
