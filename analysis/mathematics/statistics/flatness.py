"""How much of a range is as good as the best, by trials here and there in it."""

from __future__ import annotations

import numpy as np


def share_within(places: np.ndarray, excess: np.ndarray) -> float:
    """Return the share of a range in which a function is at most 0, read between its values.

    Values in between lie on straight lines; beyond the outermost places nothing is known, nor counted.

    Parameters
    ----------
    places
        Where it was evaluated, shape (n,), from 0 to 1 the range's ends.
    excess
        Its values, shape (n,); infinite where it has none, and no part of a line to there counts.

    Returns
    -------
    float
        From 0 to 1.

    >>> share_within(np.array([0.0, 0.5, 1.0]), np.array([1.0, -1.0, np.inf]))
    0.25

    """
    order = np.argsort(places, kind="stable")
    widths = np.diff(places[order])
    left, right = excess[order][:-1], excess[order][1:]
    inside, outside = np.minimum(left, right), np.maximum(left, right)
    crosses = (inside < 0) & (outside > 0) & np.isfinite(outside)
    part = np.where(outside <= 0, 1.0, 0.0)
    part[crosses] = inside[crosses] / (inside[crosses] - outside[crosses])
    return float(widths @ part)
