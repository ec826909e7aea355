"""Singular systems of a base model's matrices: computed once, kept on disk, read for every checkpoint."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

from rankdrift import files
from rankdrift.analysis.mathematics.spectral.decomposition import half_system
from rankdrift.analysis.mathematics.spectral.linalg import HalfSystem
from rankdrift.analysis.sources.weights import BaseWeights, Projection


@dataclass(frozen=True)
class BaseSpectra:
    """All singular values and the vectors of the shorter side (float64) of every matrix of a base model.

    One file a matrix, made when it is first asked for, in a folder named after the weights' fingerprint and
    the configuration, by which fused ones are cut: 8 k (k + 1) bytes each, k = min(m, n); 0.6 GB for a model
    of 135 million parameters.
    """

    base: BaseWeights
    cache: Path

    @cached_property
    def folder(self) -> Path:
        """Where this base model's systems are kept."""
        made_of = {"weights": self.base.tensors.fingerprint(), "config": self.base.config}
        return self.cache / f"base-spectra-{files.digest_json(made_of)[:16]}"

    def sigma(self, projection: Projection) -> np.ndarray:
        """Return the singular values (k,) of W0, descending, float64."""
        if not self._path(projection).exists():
            return self.system(projection, self.base.matrix(projection).numpy()).sigma
        with safe_open(self._path(projection), framework="numpy") as handle:
            values: np.ndarray = handle.get_tensor("sigma")
        return values

    def system(self, projection: Projection, matrix: np.ndarray) -> HalfSystem:
        """Return the singular system of W0, whose values (rows, columns) are ``matrix``."""
        path = self._path(projection)
        if not path.exists():
            with files.held(path.with_suffix(".lock")):
                if not path.exists():
                    _store(path, half_system(matrix))
        with safe_open(path, framework="numpy") as handle:
            return HalfSystem(matrix, handle.get_tensor("sigma"), handle.get_tensor("vectors"))

    def _path(self, projection: Projection) -> Path:
        return self.folder / f"{unit_name(projection)}.safetensors"


def unit_name(projection: Projection) -> str:
    """Return ``0003.q_proj``, or ``outside.lm_head`` of a matrix that is in no block."""
    place = f"{projection.layer:04d}" if projection.layer >= 0 else "outside"
    return f"{place}.{projection.module}"


def _store(path: Path, system: HalfSystem) -> None:
    stored = {"sigma": system.sigma, "vectors": system.vectors}
    with files.replacing(path) as temporary:
        save_file({name: np.ascontiguousarray(value) for name, value in stored.items()}, temporary)
