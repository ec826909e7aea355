"""Matrices with a number in every cell, on colours that keep their order for colour-blind readers."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Normalize

from rankdrift.analysis.figures._style import WIDTH

DIVERGING = "PuOr_r"
"""ColorBrewer's purple to orange: the middle of the scale is white."""
MOST_NAMED = 40
"""Rows or columns above which not each is named."""
DARK = 0.5
"""Luminance below which text is white."""


def labelled_matrix(axes: Axes, values: pd.DataFrame, texts: pd.DataFrame, norm: Normalize) -> Any:
    """Draw rows x columns as cells of a diverging scale, named and written in; return the image.

    The first row is on top. Undefined cells are light grey.
    """
    shown = np.ma.masked_invalid(values.to_numpy(dtype=float))
    image = axes.imshow(shown, norm=norm, cmap=DIVERGING, interpolation="nearest")
    axes.set_facecolor("#e0e0e0")
    axes.grid(False)
    for set_ticks, names in ((axes.set_xticks, values.columns), (axes.set_yticks, values.index)):
        every = math.ceil(len(names) / MOST_NAMED)
        set_ticks(range(0, len(names), every), [str(name) for name in names[::every]])
    write_cells(axes, image, texts)
    return image


def write_cells(axes: Axes, image: Any, texts: pd.DataFrame, size: float = 7.5) -> None:
    """Write a text into every cell of an image: dark on light colours, white on dark ones."""
    values = image.get_array()
    masked = np.ma.getmaskarray(values)
    for (row, column), text in np.ndenumerate(texts.to_numpy()):
        if not text:
            continue
        dark = not masked[row, column] and _luminance(image, values[row, column]) < DARK
        colour = "white" if dark else "#222222"
        axes.text(column, row, text, ha="center", va="center", fontsize=size, color=colour)


def _luminance(image: Any, value: float) -> float:
    """Return the luma (Rec. 601) of a value's colour, 0 to 1."""
    red, green, blue, _ = image.cmap(image.norm(value))
    return float(0.299 * red + 0.587 * green + 0.114 * blue)


def symmetric(values: np.ndarray, least: float) -> Normalize:
    """Return a scale centred at 0 that reaches the largest defined |value|, and at least so far."""
    largest = float(np.nanmax(np.abs(values), initial=0.0))
    return Normalize(-max(largest, least), max(largest, least))


def column_inches(columns: int) -> float:
    """Return the height in inches of a panel that is as high as wide where so many stand side by side."""
    return WIDTH / columns
