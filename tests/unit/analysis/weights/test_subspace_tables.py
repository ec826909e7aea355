"""Tables of subspaces, intruders, spikes and reasons against dense decompositions and planted structure."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
from safetensors.torch import load_file, save_file

from rankdrift.analysis.contract import Params
from rankdrift.analysis.measures import spectra
from rankdrift.analysis.sources.subjects import Subject

ROWS, COLUMNS = 256, 192
UP_PROJ = "model.layers.1.mlp.up_proj.weight"
OneMatrix = Callable[[str, np.ndarray], Path]


def measure(base: Path, tuned: Path, cache: Path, unit: str = "0000.q_proj") -> dict[str, pd.DataFrame]:
    subject = Subject("run", "full", 0, ("topic",), 0, 10, base, tuned)
    return spectra.measure(subject, Params(cache=cache), unit)


def gaussian(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def spike(seed: int, size: float) -> np.ndarray:
    left, right = gaussian(ROWS, 1, seed=seed), gaussian(1, COLUMNS, seed=seed + 100)
    return size * left @ right / np.linalg.norm(left) / np.linalg.norm(right)


Measured = Callable[[np.ndarray, np.ndarray], tuple[pd.Series, dict[str, pd.DataFrame]]]


@pytest.fixture
def measured(one_matrix: OneMatrix, tmp_path: Path) -> Measured:
    """Return measured(W0, W): the matrix's row of the spectra, and all tables."""

    def compute(base: np.ndarray, tuned: np.ndarray) -> tuple[pd.Series, dict[str, pd.DataFrame]]:
        name = f"{len(list(tmp_path.iterdir()))}"
        folders = one_matrix(f"base {name}", base), one_matrix(f"tuned {name}", tuned)
        tables = measure(*folders, tmp_path / "cache")
        return tables["svd_analysis_results"].iloc[0], tables

    return compute


def up_projections(models: Any) -> list[np.ndarray]:
    return [load_file(f / "model.safetensors")[UP_PROJ].double().numpy() for f in (models.base, models.full)]


def test_subspace_drift_is_that_of_dense_decompositions(models: Any, tmp_path: Path) -> None:
    rows = measure(models.base, models.full, tmp_path, "0001.up_proj")["subspace_drift"]
    base, tuned = up_projections(models)
    (u0, s0, v0), (u1, s1, v1) = (np.linalg.svd(w, full_matrices=False) for w in (base, tuned))
    assert sorted(rows["k"].unique()) == [1, 2, 5, 10, 20, 32]  # a matrix of 32 columns has not 64 vectors
    for _, row in rows.iterrows():
        k = row["k"]
        first, second, size = (u0, u1, 48) if row["side"] == "left" else (v0.T, v1.T, 32)
        angles = scipy.linalg.subspace_angles(first[:, :k], second[:, :k])
        following = (s0[k], s1[k]) if k < 32 else (0, 0)
        gap, update = s0[k - 1] - following[0], np.linalg.norm(tuned - base, 2)
        separation = max(s1[k - 1] - following[0], s0[k - 1] - following[1])
        projectors = [w[:, :k] @ w[:, :k].T for w in (first, second)]
        expected = {
            "angle_mean": angles.mean(),
            "angle_max": angles.max(),
            "overlap": np.linalg.norm(first[:, :k].T @ second[:, :k]) ** 2 / k,
            "overlap_random": k / size,
            "vector_drift": np.linalg.norm(np.subtract(*projectors)) / np.sqrt(2 * k),
            "gap": gap,
            "wedin_bound": min(1, update / separation) if separation > 0 else 1,
        }
        for column, value in expected.items():
            assert row[column] == pytest.approx(value, rel=1e-5, abs=1e-7), column
        assert row["reliable"] == (gap > 2 * update)
        assert np.sin(row["angle_max"]) <= row["wedin_bound"] + 1e-9
        assert 0 <= row["naive_drift"] <= 1


def test_intruders_of_every_threshold_and_number_are_the_published_count(models: Any, tmp_path: Path) -> None:
    rows = measure(models.base, models.full, tmp_path, "0001.up_proj")["intruder_dimensions"]
    base, tuned = (w.astype(np.float32) for w in up_projections(models))
    assert len(rows) == 2 * 7 * 6
    for _, row in rows.iterrows():
        turn = np.transpose if row["side"] == "right" else np.asarray
        new, sigma, _ = np.linalg.svd(turn(tuned), full_matrices=False)
        old = np.linalg.svd(turn(base), full_matrices=False)[0]
        # the repository reeceshuttle/intruder-dimensions: abs(U^T U0).max < threshold, of the first k
        flags = (np.abs(new.T @ old).max(axis=1) < row["threshold"])[: row["k"]]
        energy = np.square(sigma[: row["k"]])
        assert row["count"] == flags.sum()
        assert row["energy_share"] == pytest.approx(energy[flags].sum() / energy.sum(), rel=1e-4)
        # simulated: a random direction of 32 dimensions with 32 vectors, of 48 with 32
        assert row["cosine_random"] == pytest.approx(0.42 if row["side"] == "right" else 0.345, abs=0.01)
    assert 0 < rows["count"].sum() < rows["k"].sum()


def test_spikes_of_an_update_are_counted_above_its_own_noise(measured: Measured) -> None:
    base, level = gaussian(ROWS, COLUMNS, seed=1), 0.01
    update = level * gaussian(ROWS, COLUMNS, seed=2) + sum(spike(seed, 1.0) for seed in range(3, 6))
    found, _ = measured(base, base + update)
    assert found["update_noise_std"] == pytest.approx(level, rel=0.03)
    assert found["update_bulk_edge"] == pytest.approx(level * (16 + np.sqrt(192)), rel=0.03)
    assert (found["update_spikes"], found["update_hard_rank"]) == (3, 3)
    assert found["base_noise_std"] == pytest.approx(1, rel=0.03)
    assert found["intruder_onset"] == pytest.approx((ROWS * COLUMNS) ** 0.25, rel=0.03)
    assert found["onset_ratio"] == pytest.approx(found["update_sigma1"] / found["intruder_onset"])
    assert found["reason"] == ""


@pytest.mark.parametrize(("strength", "intruding"), [(0.7, 0), (3.0, 1)])
def test_a_direction_intrudes_above_the_onset(measured: Measured, strength: float, intruding: int) -> None:
    base = gaussian(ROWS, COLUMNS, seed=1)
    update = spike(3, strength * (ROWS * COLUMNS) ** 0.25)
    found, tables = measured(base, base + update)
    assert found["onset_ratio"] == pytest.approx(strength, rel=0.03)
    rows = tables["intruder_dimensions"].query("threshold == 0.5 and k == 1")
    assert rows["count"].tolist() == [intruding, intruding]


def test_a_zero_base_matrix_has_no_subspaces_and_says_so(measured: Measured) -> None:
    update = gaussian(ROWS, COLUMNS, seed=1)
    found, tables = measured(0 * update, update)
    undefined = ["relative_update_norm", "sigma1_ratio", "wasserstein_sigma", "onset_ratio", "angle_left_max"]
    assert found[undefined].isna().all()
    assert "W0 is zero" in found["reason"]
    for table, column in (("subspace_drift", "overlap"), ("intruder_dimensions", "count")):
        assert tables[table][column].isna().all()
        assert tables[table]["reason"].str.startswith("only 0 singular values").all()


def test_a_base_of_low_rank_has_that_many_vectors(measured: Measured) -> None:
    base = np.zeros((ROWS, COLUMNS))
    base[:6, :6] = np.diag([6.0, 5, 4, 3, 2, 1])
    tuned = base + 1e-3 * gaussian(ROWS, COLUMNS, seed=1)
    found, tables = measured(base, tuned)
    rows = tables["subspace_drift"].set_index(["side", "k"]).sort_index()
    for side in ("left", "right"):
        assert rows.loc[(side, 5), "overlap"] == pytest.approx(1, abs=1e-3)
        assert np.isnan(rows.loc[(side, 10), "overlap"])
        assert rows.loc[(side, 10), "reason"].startswith("only 6 singular values")
    assert np.isnan(found["base_condition_number"])
    assert "base_condition_number: smallest" in found["reason"]


def test_rows_that_never_train_are_no_part_of_the_noise(measured: Measured) -> None:
    """Tokens that no row holds: the law of all rows would take plain noise for spikes and a low rank."""
    base, update = gaussian(ROWS, COLUMNS, seed=1), np.zeros((ROWS, COLUMNS))
    places = np.random.default_rng(3).choice(ROWS, 100, replace=False)
    update[places] = 0.01 * gaussian(100, COLUMNS, seed=2)
    found, _ = measured(base, base + update)
    alone, _ = measured(base[:100], base[:100] + update[places])
    assert (found["update_rows"], found["update_columns"]) == (100, COLUMNS)
    assert found["update_noise_std"] == pytest.approx(0.01, rel=0.03)
    assert found["update_spikes"] <= 1
    compared = [
        f"update_{name}" for name in ("noise_std", "bulk_edge", "spikes", "hard_rank", "entropy_rank_null")
    ]
    assert found[compared].tolist() == pytest.approx(alone[compared].tolist(), rel=1e-6)
    assert found["update_entropy_rank"] / found["update_entropy_rank_null"] == pytest.approx(1, abs=0.02)
    assert f"{ROWS - 100} rows and 0 columns of dW are zero" in found["reason"]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        (np.full(COLUMNS, 2.0), "spearman_sigma: all singular values of W0 are equal"),
        (np.r_[np.linspace(3, 1, 50), np.zeros(COLUMNS - 50)], "onset_ratio: half of W0's singular values"),
    ],
)
def test_what_has_no_order_or_bulk_is_undefined(measured: Measured, values: np.ndarray, reason: str) -> None:
    base = np.zeros((ROWS, COLUMNS))
    base[:COLUMNS] = np.diag(values)
    tuned = base + 0.01 * gaussian(ROWS, COLUMNS, seed=1)
    found, _ = measured(base, tuned)
    assert reason in found["reason"]
    assert np.isnan(found[reason.split(":")[0]])


def test_the_threshold_rank_of_a_tiny_update_is_beside_that_of_noise_as_small(measured: Measured) -> None:
    """Half of what it has is below 1e-5; beside noise of any other size that would look like a low rank."""
    base = 0.02 * gaussian(ROWS, COLUMNS, seed=1)
    tuned = base + 7e-7 * gaussian(ROWS, COLUMNS, seed=2)
    found, _ = measured(base, tuned)
    assert found["tuned_threshold_rank_null"] == COLUMNS
    assert 30 < found["update_threshold_rank"] < 150
    assert found["update_threshold_rank"] == pytest.approx(found["update_threshold_rank_null"], abs=5)


def test_an_update_within_the_rounding_of_storage_is_known(one_matrix: OneMatrix, tmp_path: Path) -> None:
    base = gaussian(ROWS, COLUMNS, seed=1)
    folder = one_matrix("tuned", base + 1e-4 * gaussian(ROWS, COLUMNS, seed=2))
    stored = load_file(folder / "model.safetensors")
    save_file({name: value.bfloat16() for name, value in stored.items()}, folder / "model.safetensors")
    found = measure(one_matrix("base", base), folder, tmp_path / "cache")["svd_analysis_results"].iloc[0]
    # rounding is 0.0017 of ||W||, the update a seventeenth of that: what is read is the rounding
    assert found["stored_dtype"] == "bfloat16"
    assert found["noise_floor_ratio"] == pytest.approx(1, abs=0.03)
    assert found["bf16_floor_ratio"] == pytest.approx(1, abs=0.1)
    assert "rounding to bfloat16 may be the larger part of dW" in found["reason"]
