"""What a layer's comparison needs of the base alone: computed once, kept beside the base's states."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from rankdrift import files
from rankdrift.analysis.mathematics.representation.moments import HsicEstimates
from rankdrift.analysis.mathematics.representation.principal import Principal
from rankdrift.analysis.mathematics.representation.similarity import Side, side


def stored_side(path: Path, rows: Tensor, inputs: Tensor) -> Side:
    """Return ``side(rows, inputs)``, from the safetensors file ``path``, which is written if it is not there.

    The file must stand for these rows alone. Raises UserError for fewer than four rows.
    """
    if path.exists():
        return _side(load_file(path))
    computed = side(rows, inputs)
    with files.replacing(path) as temporary:
        save_file(_tensors(computed), temporary)
    return computed


def _tensors(of: Side) -> dict[str, Tensor]:
    return {
        "hsic_debiased": of.hsic.debiased,
        "hsic_biased": of.hsic.biased,
        "squares": of.principal.squares,
        "directions": of.principal.directions,
    }


def _side(tensors: dict[str, Tensor]) -> Side:
    return Side(
        hsic=HsicEstimates(debiased=tensors["hsic_debiased"], biased=tensors["hsic_biased"]),
        principal=Principal(squares=tensors["squares"], directions=tensors["directions"]),
    )
