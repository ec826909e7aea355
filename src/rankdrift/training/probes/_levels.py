"""Sums over parameters by what they are part of: cell, layer, group, the whole model."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import pandas as pd

from rankdrift.models.families import Cell, Level, cell_of, levels_of

PARAMETER = "parameter"


class Levels:
    """What the parameters of a model are counted in.

    Parameters
    ----------
    names
        The parameters, in the order of the values that are to be added up.
    single
        Whether each of them has a row of its own as well.

    """

    def __init__(self, names: Sequence[str], single: bool = False) -> None:
        members: dict[tuple[str, Cell, str], list[int]] = {}
        for number, name in enumerate(names):
            cell = cell_of(name)
            keys: list[tuple[Level | str, Cell, str]] = [(*key, "") for key in levels_of(cell)]
            for key in [*keys, *([(PARAMETER, cell, name)] if single else [])]:
                members.setdefault(key, []).append(number)
        self.members = [np.array(numbers) for numbers in members.values()]
        self.index = pd.DataFrame(
            [(level, cell.layer, cell.group, cell.factor, name) for level, cell, name in members],
            columns=["level", "layer", "group", "factor", "parameter"],
        )
        """What each row is of."""
        if not single:
            del self.index["parameter"]

    @staticmethod
    @functools.lru_cache(maxsize=64)
    def of(names: tuple[str, ...], single: bool = False) -> Levels:
        """Return the same for the same names: making it takes as long as measuring a small model."""
        return Levels(names, single)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Return the sums over each row's parameters, shape (rows, ...), of (parameters, ...)."""
        return np.stack([values[numbers].sum(axis=0) for numbers in self.members])
