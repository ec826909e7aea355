"""What numbers a stored model may not have, found a piece at a time: memory does not depend on the model."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from rankdrift.errors import IntegrityError

_PIECE = 4 * 2**20  # elements looked at together
_REMEDY = "use an earlier step, and train on from there with a lower learning rate"


class Readable(Protocol):
    """A stored tensor that is read in flat pieces."""

    def pieces(self) -> Iterator[Tensor]:
        """Yield its elements in order."""


def check_finite(
    tensors: Mapping[str, Readable], where: Path, what: str = "", minimum: float = -math.inf
) -> int:
    """Count numbers; raise IntegrityError at a NaN, an infinity, or one below ``minimum``.

    ``what`` says in the message which of a parameter's tensors they are.
    """
    count = 0
    for name, tensor in tensors.items():
        for piece in _pieces(tensor):
            lowest, highest = (float(bound) for bound in torch.aminmax(piece))  # NaN if any is
            if not (math.isfinite(lowest) and math.isfinite(highest)):
                raise IntegrityError(f"{where}: {what}'{name}' holds NaN or infinity; {_REMEDY}")
            if lowest < minimum:
                raise IntegrityError(
                    f"{where}: {what}'{name}' holds {lowest:g}, below {minimum:g}; {_REMEDY}"
                )
            count += piece.numel()
    return count


def check_updates(tensors: Mapping[str, Readable], step: int, where: Path) -> str:
    """Say how many of LoRA's factors B are zero, as all are before the first step of training.

    Raises IntegrityError where there is none, or where training has left every one of them zero.
    """
    kind = "E" if _factors(tensors, "E") else "B"  # AdaLoRA's B is drawn, its E begins as zero
    factors = _factors(tensors, kind)
    if not factors:
        raise IntegrityError(f"{where}: it holds no LoRA factor B; use another step")
    zero = [name for name in factors if not any(bool(piece.any()) for piece in _pieces(tensors[name]))]
    if len(zero) == len(factors) and step > 0:
        raise IntegrityError(
            f"{where}: all {len(zero)} LoRA factors {kind} are zero after {step} steps: nothing was trained "
            "or stored; use another step, and look at the learning rate and the targets"
        )
    return f"{len(factors)} factors {kind}, {len(zero)} of them zero" + (f" ({zero[0]} ...)" if zero else "")


def _factors(names: Iterable[str], kind: str) -> list[str]:
    return [name for name in names if {f"lora_{kind}", f"lora_embedding_{kind}"} & set(name.split("."))]


def check_ties(tensors: Mapping[str, Readable], tied: Mapping[str, str], where: Path) -> None:
    """Raise IntegrityError where a parameter that the model shares is stored twice, with two values."""
    for alias, owner in tied.items():
        if alias in tensors and owner in tensors:
            pairs = zip(_pieces(tensors[alias]), _pieces(tensors[owner]), strict=True)
            if not all(torch.equal(one, other) for one, other in pairs):
                raise IntegrityError(
                    f"{where}: '{alias}' is tied to '{owner}' but not equal to it; use another step"
                )


def _pieces(tensor: Readable) -> Iterator[Tensor]:
    for piece in tensor.pieces():
        yield from (part for part in piece.split(_PIECE) if part.numel())
