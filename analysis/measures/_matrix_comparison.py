"""One matrix beside its base: the decompositions that all tables of the spectra are made of."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from rankdrift.analysis.mathematics.spectral import intruders, linalg
from rankdrift.analysis.mathematics.spectral.decomposition import DenseSum, DeviceSum, dense_sum
from rankdrift.analysis.mathematics.spectral.linalg import HalfSystem, SingularSystem
from rankdrift.analysis.mathematics.spectral.lowrank import LowRankSum
from rankdrift.analysis.sources.adapters import LowRankUpdate
from rankdrift.analysis.sources.base_spectra import BaseSpectra
from rankdrift.analysis.sources.updates import touched
from rankdrift.analysis.sources.weights import MatrixPair, Projection, TunedWeights

SIDES = ("left", "right")


@dataclass(frozen=True)
class Comparison:
    """One matrix beside its base: the decompositions that all tables are made of."""

    pair: MatrixPair
    base: HalfSystem
    tuned: SingularSystem
    """All values of W and its leading vectors."""
    update: np.ndarray
    """Singular values of dW: min(m, n), or those of an adapter's factors."""
    total: DenseSum | DeviceSum | None = None
    """W0 + dW where the update is dense; None where it is factors."""

    @cached_property
    def shape(self) -> tuple[int, int]:
        """(rows, columns)."""
        rows, columns = self.pair.base.shape
        return rows, columns

    @cached_property
    def touched(self) -> tuple[int, int]:
        """Rows and columns of dW that are not all zero: the shape of the noise it is compared with."""
        rows, columns = touched(self.pair.update)
        return int(rows.sum()), int(columns.sum())

    @cached_property
    def spectra(self) -> dict[str, np.ndarray]:
        """Matrix -> its singular values."""
        return {"base": self.base.sigma, "tuned": self.tuned.sigma, "update": self.update}

    @cached_property
    def start(self) -> SingularSystem:
        """The base's leading vectors, as many as of W."""
        return self.base.leading(self.tuned.left.shape[1])

    @cached_property
    def gains(self) -> np.ndarray:
        """|u_i^T W v_i| (k,) = |sigma_i + u_i^T dW v_i|: how W acts along the base's directions.

        Sorted singular values of W and W0 would correlate perfectly whatever W is. The change is 0 for values
        lost in rounding.
        """
        if self.total is not None:
            return np.abs(self.base.sigma + self.total.changes())
        update = self.pair.update
        assert isinstance(update, LowRankUpdate), "a dense update comes with its sum"
        left = self.base.components(update.left.double().numpy(), "left")
        right = self.base.components(update.right.double().numpy().T, "right")
        return np.abs(self.base.sigma + update.scale * np.einsum("ij,ij->i", left, right))

    @cached_property
    def update_norm(self) -> float:
        """||dW||_2."""
        return float(self.update.max(initial=0.0))

    @cached_property
    def cosines(self) -> dict[str, np.ndarray]:
        """Side -> largest |cosine| of each leading vector of W with all vectors of W0."""
        return {
            side: intruders.best_cosines(self.base.components(getattr(self.tuned, side), side))
            for side in SIDES
        }

    @cached_property
    def defined(self) -> int:
        """Leading vectors that both W0 and W have: those of values above the precision of the data."""
        values = (self.base.sigma, self.tuned.sigma)
        return min(int(np.count_nonzero(sigma > linalg.UNDEFINED * sigma[0])) for sigma in values)

    @property
    def place(self) -> dict[str, Any]:
        """The columns that say which matrix it is."""
        return {"layer": self.pair.projection.layer, "module": self.pair.projection.module}


def compare(weights: TunedWeights, projection: Projection, cache: Path, top: int) -> Comparison:
    """Return the decompositions of one matrix with the ``top`` leading vectors of W; W0's from the cache."""
    pair = weights.pair(projection)
    base = BaseSpectra(weights.base, cache).system(projection, pair.base.numpy())
    # where nothing was changed, W0's own: a second decomposition would turn vectors of close values
    if isinstance(pair.update, LowRankUpdate):
        update = _product_values(pair.update)
        tuned = _adapted_system(pair.update, base, top) if update.any() else base.leading(top)
        return Comparison(pair, base, tuned, update)
    total = dense_sum(base, pair.update.values.numpy())
    update = total.update_values()
    tuned = total.singular_system(top) if update.any() else base.leading(top)
    return Comparison(pair, base, tuned, update, total)


def _adapted_system(update: LowRankUpdate, base: HalfSystem, top: int) -> SingularSystem:
    """Return all singular values and the leading vectors of W, which is not formed."""
    left, right = update.left.double().numpy(), update.right.double().numpy()
    return LowRankSum(base, update.scale * left, right).singular_system(top)


def _product_values(update: LowRankUpdate) -> np.ndarray:
    return abs(update.scale) * linalg.product_singular_values(update.left.numpy(), update.right.numpy())
