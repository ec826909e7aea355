"""Sums over parameters by what they are part of: cell, layer, group, the whole model."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np

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
        self.order = np.array([number for numbers in members.values() for number in numbers], np.intp)
        """The parameters of all rows, one row after the other."""
        sizes = [len(numbers) for numbers in members.values()]
        self.starts = np.cumsum([0, *sizes[:-1]])
        of_rows = [(level, cell.layer, cell.group, cell.factor, name) for level, cell, name in members]
        columns = zip(*of_rows, strict=True)
        titles = ["level", "layer", "group", "factor", *(["parameter"] if single else [])]
        self.columns = {title: _column(values) for title, values in zip(titles, columns, strict=False)}
        """What each row is of."""

    @staticmethod
    @functools.lru_cache(maxsize=64)
    def of(names: tuple[str, ...], single: bool = False) -> Levels:
        """Return the same for the same names: making it takes as long as measuring a small model."""
        return Levels(names, single)

    def sums(self, values: np.ndarray) -> np.ndarray:
        """Return the sums over each row's parameters, shape (rows, ...), of (parameters, ...)."""
        return np.add.reduceat(values[self.order], self.starts)


def _column(values: Sequence[int | str]) -> np.ndarray:
    return np.array(values, dtype=np.int64 if isinstance(values[0], int) else object)
