"""Singular systems of a base model's matrices: computed once, kept on disk, read for every checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from rankdrift import records
from rankdrift.analysis.linalg import SingularSystem, singular_system
from rankdrift.analysis.parallel import parallel_map
from rankdrift.analysis.sources.weights import BaseWeights, Projection


@dataclass(frozen=True)
class BaseSpectra:
    """All singular values (float64) and vectors (float32) of every projection of a base model.

    One file a matrix, in a folder named after the fingerprint of the weights: 4 (m + n) min(m, n) bytes
    each, 0.6 GB for a model of 135 million parameters.
    """

    base: BaseWeights
    cache: Path

    @cached_property
    def folder(self) -> Path:
        """Where this base model's systems are kept."""
        return self.cache / f"spectra-{self.base.tensors.fingerprint()[:16]}"

    def prepare(self, workers: int) -> None:
        """Compute what is not there yet, with ``workers`` processes (0: one a core)."""
        missing = [projection for projection in self.base.names if not self._path(projection).exists()]
        parallel_map(self._store, missing, workers)

    def sigma(self, projection: Projection) -> np.ndarray:
        """Return the singular values (k,) of W0, descending, float64."""
        with safe_open(self._path(projection), framework="numpy") as handle:
            values: np.ndarray = handle.get_tensor("sigma")
        return values

    def system(self, projection: Projection) -> SingularSystem:
        """Return the singular values and all k = min(m, n) left and right vectors of W0."""
        with safe_open(self._path(projection), framework="numpy") as handle:
            return SingularSystem(**{name: handle.get_tensor(name) for name in ("sigma", "left", "right")})

    def _store(self, projection: Projection) -> None:
        system = singular_system(self.base.matrix(projection).numpy())
        stored = {
            "sigma": np.ascontiguousarray(system.sigma),
            "left": np.ascontiguousarray(system.left, dtype=np.float32),
            "right": np.ascontiguousarray(system.right, dtype=np.float32),
        }
        with records.replacing(self._path(projection)) as temporary:
            save_file(stored, temporary)

    def _path(self, projection: Projection) -> Path:
        return self.folder / f"{projection.layer:04d}.{projection.module}.safetensors"
