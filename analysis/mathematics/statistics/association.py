"""How two quantities go together over checkpoints, with intervals that know which ones belong together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from rankdrift.analysis.mathematics.statistics.bootstrap import BootstrapInterval, cluster_bootstrap


@dataclass(frozen=True)
class Association:
    """Rank and log-log correlation of two quantities."""

    spearman: BootstrapInterval
    pearson_log: BootstrapInterval
    """Pearson's correlation of the logarithms, over the checkpoints where both are positive."""
    clusters: int
    checkpoints: int
    """Checkpoints where both are known."""
    log_checkpoints: int
    """Of these, the ones where both are positive."""

    @property
    def reason(self) -> str:
        """Why values or intervals are missing; empty where none is."""
        parts = {"spearman": self.spearman.reason, "pearson_log": self.pearson_log.reason}
        reasons = [f"{name}: {reason}" for name, reason in parts.items() if reason]
        if without := self.checkpoints - self.log_checkpoints:
            reasons.append(
                f"pearson_log leaves out {without} of {self.checkpoints} checkpoints: not both above 0"
            )
        return "; ".join(reasons)


def associate(predictor: ArrayLike, outcome: ArrayLike, clusters: ArrayLike) -> Association:
    """Return the association of two quantities over checkpoints, with 95 % intervals over resampled clusters.

    Parameters
    ----------
    predictor, outcome
        (checkpoints,) NaN where unknown.
    clusters
        (checkpoints,) the cluster of each: its arm, whose runs and checkpoints are drawn together.

    """
    both = np.stack([np.asarray(predictor, dtype=np.float64), np.asarray(outcome, dtype=np.float64)], axis=1)
    known = np.isfinite(both).all(axis=1)
    both, names = both[known], np.asarray(clusters)[known]
    positive = (both > 0).all(axis=1)
    return Association(
        spearman=cluster_bootstrap(spearman, both, names),
        pearson_log=cluster_bootstrap(pearson, np.log(both[positive]), names[positive]),
        clusters=len(np.unique(names)),
        checkpoints=len(both),
        log_checkpoints=int(positive.sum()),
    )


def pearson(rows: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return Pearson's correlation of two columns, for many draws of the rows at once.

    Parameters
    ----------
    rows
        (n, 2).
    counts
        (draws, n) how often each row is drawn.

    Returns
    -------
    array
        (draws,) NaN where fewer than three rows are drawn, or a column is constant.

    """
    x, y = (np.broadcast_to(column, counts.shape) for column in rows.T)
    return np.where(_defined(rows, counts), _correlation(x, y, counts), np.nan)


def spearman(rows: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return Spearman's rank correlation as :func:`pearson` does, ties at their mean rank."""
    x, y = (_ranks(column, counts) for column in rows.T)
    return np.where(_defined(rows, counts), _correlation(x, y, counts), np.nan)


def _ranks(column: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return the mean rank of each row among the rows of each draw, (draws, n)."""
    of_value, which = _drawn_values(column, counts)
    ranks = np.cumsum(of_value, axis=1) - (of_value - 1) / 2
    result: NDArray[np.float64] = ranks[:, which]
    return result


def _drawn_values(
    column: NDArray[np.float64], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.intp]]:
    """Return how often each distinct value is drawn (draws, values), ascending, and which value a row has."""
    values, which = np.unique(column, return_inverse=True)
    of_value = counts[:, np.argsort(which, kind="stable")]
    if len(values) < len(column):  # ties: the rows of a value are next to each other now
        starts = np.searchsorted(np.sort(which), np.arange(len(values)))
        of_value = np.add.reduceat(of_value, starts, axis=1)
    return of_value, which


def _defined(rows: NDArray[np.float64], counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Return which draws hold three rows or more and two values of either column, (draws,)."""
    enough = counts.sum(axis=1) >= 3
    for column in rows.T:
        enough &= (_drawn_values(column, counts)[0] > 0).sum(axis=1) > 1
    return enough


def _correlation(
    x: NDArray[np.float64], y: NDArray[np.float64], counts: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Return the correlation of x and y (draws, n), each entry taken ``counts`` times; all in two passes."""
    total = np.maximum(counts.sum(axis=1, keepdims=True), 1)
    x, y = (values - (counts * values).sum(axis=1, keepdims=True) / total for values in (x, y))
    products = [np.einsum("dn,dn,dn->d", counts, one, other) for one, other in ((x, y), (x, x), (y, y))]
    with np.errstate(divide="ignore", invalid="ignore"):  # of constants, which the callers mark as undefined
        result: NDArray[np.float64] = np.clip(products[0] / np.sqrt(products[1] * products[2]), -1, 1)
    return result
