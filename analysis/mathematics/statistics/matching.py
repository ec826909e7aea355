"""Trajectories compared where they are equal in one quantity, for instance in the loss they have reached."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Trajectory:
    """One run, checkpoint by checkpoint."""

    matched: NDArray[np.float64]
    """(checkpoints,) what is made equal, in the order of steps, counted so that training makes it grow: a
    loss comes with its sign turned."""
    outcome: NDArray[np.float64]
    """(checkpoints,) what is then compared."""

    def at(self, level: float) -> float:
        """Return the outcome where the matched quantity first reaches a level; NaN where it never does.

        Linear between the two checkpoints around the first crossing; what comes after it (an overfitted
        model, say, that passes the same loss again) does not count. Nothing is extrapolated: the level must
        lie between the first checkpoint's value and the largest.
        """
        reached = np.flatnonzero(self.matched >= level)
        if not len(reached) or self.matched[0] > level:
            return math.nan
        after = int(reached[0])
        if after == 0:
            return float(self.outcome[0])
        before = after - 1
        share = (level - self.matched[before]) / (self.matched[after] - self.matched[before])
        return float(self.outcome[before] + share * (self.outcome[after] - self.outcome[before]))


def common_levels(trajectories: Sequence[Trajectory], count: int) -> NDArray[np.float64]:
    """Return ``count`` evenly spaced levels that all trajectories reach, the earliest first; empty if none.

    They lie above the largest first value, where all may still be the same model, and end at the smallest of
    the largest values.
    """
    if not trajectories or any(len(trajectory.matched) == 0 for trajectory in trajectories):
        return np.empty(0)
    start = max(float(trajectory.matched[0]) for trajectory in trajectories)
    end = min(float(trajectory.matched.max()) for trajectory in trajectories)
    return np.linspace(start, end, count + 1)[1:] if start < end else np.empty(0)
