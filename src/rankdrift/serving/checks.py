"""Before anything is timed: does what is served say what it should?

A server that loses an adapter, or gives a row another's, is fast and wrong. Each check that fails ends the
benchmark, with the adapter's name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from rankdrift.errors import IntegrityError
from rankdrift.serving.bank import Bank, Served
from rankdrift.serving.deployed import Deployed, Tuned
from rankdrift.serving.passes import generate
from rankdrift.serving.record import Checked

CLOSE = 1e-5
"""Largest difference of two ways to compute the same logits in fp32, as a part of the largest logit."""
APART = 100 * CLOSE
"""How different adapters must be for a mix-up to be seen."""


def check_arm(bank: Bank, tuned: Tuned, prompt: Tensor, tokens: int) -> list[Checked]:
    """Check every way to serve an adapter against the others.

    Parameters
    ----------
    bank
        The models.
    tuned
        An adapter.
    prompt
        (rows, positions) with a row for each of the bank's adapters at least.
    tokens
        How many are generated.

    Raises
    ------
    IntegrityError
        Of the first check that fails.

    """
    found = [*_merged(bank, tuned, prompt, tokens)]
    if tuned.can_be_mixed:
        found += _mixed(bank, tuned, prompt)
    for each in found:
        if each.limit is not None and not each.value <= each.limit:  # a NaN is not within it either
            raise IntegrityError(
                f"{tuned.arm}: {each.check}: differs by {each.value:.3g} of the largest logit, more than "
                f"{each.limit:g}; nothing is timed ({tuned.export})"
            )
    return found


def _merged(bank: Bank, tuned: Tuned, prompt: Tensor, tokens: int) -> Iterator[Checked]:
    merged, unmerged = bank.served(Deployed("merged", tuned)), bank.served(Deployed("unmerged", tuned))
    unmerged.activate()
    one, other = _logits(merged, prompt), _logits(unmerged, prompt)
    is_exact = bank.place.dtype == torch.float32
    yield Checked("merged against unmerged", tuned.arm, distance(one, other), CLOSE if is_exact else None)
    yield Checked("merged against unmerged, KL divergence (nats)", tuned.arm, divergence(one, other), None)
    with bank.without_adapters() as base, torch.inference_mode():
        effect = distance(base(input_ids=prompt).logits.float(), other)
    if effect == 0:
        raise IntegrityError(
            f"{tuned.arm}: with its adapter the base model says exactly what it says without; nothing is "
            f"timed ({tuned.export})"
        )
    yield Checked("with the adapter against without", tuned.arm, effect, None)
    if bank.place.labels == 0:
        yield _same_text(merged, unmerged, prompt, tokens, is_exact)


def _same_text(merged: Served, unmerged: Served, prompt: Tensor, tokens: int, is_exact: bool) -> Checked:
    """Compare greedy texts; where they part, the better of the two next tokens must have been a tie."""
    texts = [generate(served, prompt, tokens, lambda: 0.0).tokens for served in (merged, unmerged)]
    margin = 0.0
    for row in range(len(prompt)):
        parted = torch.nonzero(texts[0][row] != texts[1][row])
        if len(parted):
            place = int(parted[0])
            read = torch.cat([prompt[row], texts[0][row, :place]])[None]
            logits = _logits(merged, read)[0, -1]
            two = logits[[int(texts[0][row, place]), int(texts[1][row, place])]]
            margin = max(margin, float((two[0] - two[1]).abs() / logits.abs().max()))
    return Checked(
        "greedy text, margin where it differs", unmerged.deployed.arm, margin, CLOSE if is_exact else None
    )


def _mixed(bank: Bank, tuned: Tuned, prompt: Tensor) -> Iterator[Checked]:
    """See that each row of a mixed batch has its own adapter: planted ones differ enough to tell."""
    mixed = bank.served(Deployed("mixed", tuned))
    alone = []
    for name in mixed.adapters:
        mixed.model.set_adapter(name)
        with torch.inference_mode():
            alone.append(mixed.model(input_ids=prompt).logits.float())
    apart = min(
        distance(one[row], other[row])
        for row in range(len(prompt))
        for number, one in enumerate(alone)
        for other in alone[:number]
    )
    if apart < APART:
        raise IntegrityError(
            f"{tuned.arm}: its {len(alone)} adapters differ by {apart:.2g} of the largest logit, too little "
            "to tell whether a row has its own"
        )
    mixed.activate()
    together = _logits(mixed, prompt)
    own = torch.stack([alone[row % len(alone)][row] for row in range(len(prompt))])
    limit = CLOSE if bank.place.dtype == torch.float32 else apart / 2
    yield Checked(
        "rows of a mixed batch against their own adapters", tuned.arm, distance(together, own), limit
    )


def distance(one: Tensor, other: Tensor) -> float:
    """Return the largest difference of two sets of logits, as a part of the largest logit."""
    return float((one - other).abs().max() / one.abs().max())


def divergence(one: Tensor, other: Tensor) -> float:
    """Return the mean KL divergence of the distributions of (..., classes) logits, in nats."""
    logs = [torch.log_softmax(logits.double(), -1) for logits in (one, other)]
    return float((logs[0].exp() * (logs[0] - logs[1])).sum(-1).mean())


@torch.inference_mode()
def _logits(served: Served, tokens: Tensor) -> Tensor:
    found: Any = served(tokens)
    logits: Tensor = found.logits.float()
    return logits


def prompt_of(rows: Sequence[Sequence[int]], count: int, length: int, device: str) -> Tensor:
    """Return (count, length) tokens of texts, one behind the other, each row from another place."""
    stream = torch.tensor([token for row in rows for token in row])
    if len(stream) < length + 1:
        stream = stream.repeat(length // max(len(stream), 1) + 2)
    starts = torch.linspace(0, len(stream) - length - 1, count).long()
    return torch.stack([stream[start : start + length] for start in starts]).to(device)
