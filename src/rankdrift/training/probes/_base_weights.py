"""What a run's parameters were in the base model, read from its files: no rank keeps a second copy."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rankdrift.export.base_weights import BaseTensor, open_base
from rankdrift.training.collectives import device
from rankdrift.training.probes._sums import squares_of

if TYPE_CHECKING:
    from rankdrift.training.trainer import Trainer

_PEFT = re.compile(r"^base_model\.model\.|\.base_layer(?=\.)|\.modules_to_save\.default(?=\.)")
STEPS = 40
"""Matrix-vector products at most for a largest singular value."""
TOLERANCE = 1e-5


class BaseWeights:
    """The base's tensors by the names that a run's model gives them.

    Parameters
    ----------
    trainer
        The run.

    """

    def __init__(self, trainer: Trainer) -> None:
        self.stored = open_base(trainer.setup.base)
        self.prefix = getattr(trainer.engine.module, "base_model_prefix", "")

    def find(self, parameter: str, numel: int) -> BaseTensor | None:
        """Return the base's tensor of a parameter; None of one that it has not (a new head), or another."""
        name = _PEFT.sub("", parameter)
        names = (name, name.removeprefix(f"{self.prefix}."), f"{self.prefix}.{name}")
        found = next((self.stored[key] for key in names if key in self.stored), None)
        return found if found and math.prod(found.shape) == numel else None


def part(tensor: BaseTensor, start: int, count: int) -> Tensor:
    """Return a run of a stored tensor's elements, flat, as it is stored; its file stays mapped."""
    whole: Tensor = tensor.file.get_tensor(tensor.name)
    return whole.reshape(-1)[start : start + count]


def size(tensor: BaseTensor) -> Tensor:
    """Return the square of a matrix' Frobenius norm and its largest singular value, fp64, shape (2,)."""
    matrix = tensor.file.get_tensor(tensor.name).to(device()).float()
    return torch.cat([squares_of([matrix.flatten()]), largest_singular_value(matrix).reshape(1)])


def largest_singular_value(matrix: Tensor) -> Tensor:
    """Return sigma_1 of an fp32 matrix to about 1e-5, fp64, by Golub-Kahan bidiagonalisation.

    The basis is orthogonalised anew in every step, so that rounding leaves no copies of sigma_1 (Golub and
    Van Loan, Matrix Computations, section 10.4).
    """
    generator = torch.Generator().manual_seed(0)
    right = _unit(torch.randn(matrix.shape[1], generator=generator).to(matrix))[0]
    rights: list[Tensor] = [right]
    lefts: list[Tensor] = []
    core, found = np.zeros((STEPS, STEPS + 1)), 0.0
    for step in range(min(STEPS, *matrix.shape)):
        left, core[step, step] = _unit(_orthogonal(matrix @ rights[-1], lefts))
        lefts.append(left)
        right, core[step, step + 1] = _unit(_orthogonal(matrix.T @ left, rights))
        rights.append(right)
        before, found = found, float(np.linalg.norm(core, 2))
        if found - before <= TOLERANCE * found or core[step, step + 1] <= TOLERANCE * found:
            break
    return torch.tensor(found, dtype=torch.float64, device=matrix.device)


def _unit(vector: Tensor) -> tuple[Tensor, float]:
    length = float(vector.norm())
    return (vector / length if length else vector), length


def _orthogonal(vector: Tensor, basis: list[Tensor]) -> Tensor:
    if not basis:
        return vector
    known = torch.stack(basis)
    for _ in range(2):  # once is not enough in fp32
        vector = vector - known.T @ (known @ vector)
    return vector
