"""The spectra analysis on planted structure, and against a plain dense computation."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.linalg
import scipy.stats
from peft import PeftModel
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from rankdrift.analysis.contract import Params
from rankdrift.analysis.mathematics.spectral.linalg import HalfSystem, half_system
from rankdrift.analysis.measures import spectra
from rankdrift.analysis.measures._spectra_columns import METRICS
from rankdrift.analysis.sources import base_spectra
from rankdrift.analysis.sources.subjects import Subject, base_subject
from rankdrift.analysis.sources.weights import BaseWeights
from rankdrift.errors import UserError

ROWS, COLUMNS, TOP = 256, 192, 10
MATRICES = 15  # seven in each of two blocks, and the embedding


def checkpoint(base: Path, tuned: Path) -> Subject:
    return Subject("run", "lora", 4, ("topic",), 0, 10, base, tuned)


def measure(base: Path, tuned: Path, cache: Path, **settings: Any) -> dict[str, pd.DataFrame]:
    return of_subject(checkpoint(base, tuned), Params(cache=cache, settings=(spectra.Settings(**settings),)))


def of_subject(subject: Subject, params: Params) -> dict[str, pd.DataFrame]:
    """Return a checkpoint's tables, the units of the analysis put together."""
    found = [spectra.measure(subject, params, unit) for unit in spectra.split(subject, params)]
    return {table: pd.concat([rows[table] for rows in found], ignore_index=True) for table in found[0]}


def gaussian(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def heavy_tailed(seed: int = 0) -> np.ndarray:
    """Return a matrix of sigma_i = i^-0.3: sigma_1 = 1, sigma_10 = 0.50."""
    left = np.linalg.qr(gaussian(ROWS, COLUMNS, seed=seed))[0]
    right = np.linalg.qr(gaussian(COLUMNS, COLUMNS, seed=seed + 1))[0]
    return (left * np.arange(1, COLUMNS + 1) ** -0.3) @ right.T


def low_rank(rank: int, largest: float) -> np.ndarray:
    """Return a random matrix of that rank and sigma_1."""
    product = gaussian(ROWS, rank, seed=5) @ gaussian(rank, COLUMNS, seed=6)
    return largest * product / np.linalg.norm(product, 2)


def noise(share: float) -> np.ndarray:
    """Return iid Gaussian noise of that share of the norm of W0."""
    values = gaussian(ROWS, COLUMNS, seed=7)
    return share * np.linalg.norm(heavy_tailed()) * values / np.linalg.norm(values)


Row = Callable[..., pd.Series]


@pytest.fixture
def row(one_matrix: Callable[[str, np.ndarray], Path], tmp_path: Path) -> Row:
    """Return row(dW): what the analysis says of W0 + dW."""

    def compute(update: np.ndarray, **settings: Any) -> pd.Series:
        base, tuned = one_matrix("base", heavy_tailed()), one_matrix("tuned", heavy_tailed() + update)
        return measure(base, tuned, tmp_path / "cache", **settings)["svd_analysis_results"].iloc[0]

    return compute


def test_a_planted_spike_above_the_base_is_an_intruder_on_both_sides(row: Row) -> None:
    found = row(low_rank(1, 1.2))
    assert (found["intruders_left"], found["intruders_right"]) == (1, 1)
    sigma = np.linalg.svd(heavy_tailed() + low_rank(1, 1.2), compute_uv=False)[:TOP]
    share = sigma[0] ** 2 / np.sum(sigma**2)  # the spike is the first of the top k
    for side in ("left", "right"):
        assert found[f"intruder_energy_{side}"] == pytest.approx(share, rel=1e-5)
        assert found[f"angle_{side}_max"] > 1.2
        assert found[f"overlap_{side}"] == pytest.approx(1 - 1 / TOP, abs=0.02)
    assert found["sigma1_ratio"] == pytest.approx(1.2, rel=1e-5)


@pytest.mark.parametrize("rank", [1, 16])
def test_a_spike_below_the_leading_values_is_no_intruder(row: Row, rank: int) -> None:
    found = row(low_rank(rank, 0.3))
    assert (found["intruders_left"], found["intruders_right"]) == (0, 0)
    assert (found["intruder_energy_left"], found["intruder_energy_right"]) == (0, 0)


def test_a_base_direction_that_is_amplified_is_no_intruder(row: Row) -> None:
    # its vectors are in the middle of the base's spectrum, so they must be compared with all of them
    left, _, right = np.linalg.svd(heavy_tailed(), full_matrices=False)
    found = row(2 * np.outer(left[:, 100], right[100]))
    assert (found["intruders_left"], found["intruders_right"]) == (0, 0)
    assert found["overlap_left"] == pytest.approx(1 - 1 / TOP, abs=1e-5)


@pytest.mark.parametrize("threshold", [0.5, 0.6, 0.9])
def test_noise_makes_no_intruders_and_has_the_ranks_of_its_null(row: Row, threshold: float) -> None:
    found = row(noise(0.1), intruder_threshold=threshold)
    assert (found["intruders_left"], found["intruders_right"]) == (0, 0)
    assert found["relative_update_norm"] == pytest.approx(0.1, rel=1e-5)
    assert found["bf16_floor_ratio"] == pytest.approx(0.1 / 0.0017, rel=1e-5)
    for rank in ("entropy_rank", "energy_entropy_rank", "stable_rank", "participation_ratio", "e90_energy"):
        assert found[f"update_{rank}"] == pytest.approx(found[f"update_{rank}_null"], rel=0.03)


def assert_nothing_changed(table: pd.DataFrame) -> None:
    zeros = [f"update_{metric}" for metric in METRICS if metric != "condition_number"]
    zeros += ["relative_update_norm", "sigma1_ratio", "bf16_floor_ratio", "onset_ratio"]
    zeros += ["wasserstein_sigma", "wasserstein2_sigma"]
    zeros += [f"intruder{kind}_{side}" for kind in ("s", "_energy") for side in ("left", "right")]
    assert (table[zeros] == 0).all(axis=None)
    angles = [column for column in table if column.startswith("angle_")]
    assert table[angles].to_numpy().max() < 1e-12
    for one in ("spearman_sigma", "overlap_left", "overlap_right"):
        np.testing.assert_allclose(table[one], 1, rtol=1e-12)
    for metric in METRICS:
        pd.testing.assert_series_equal(table[f"tuned_{metric}"], table[f"base_{metric}"], check_names=False)
    undefined = ["update_condition_number", "update_noise_std", "update_spikes", "noise_floor_ratio"]
    assert table[undefined].isna().all(axis=None)
    assert table["reason"].str.contains("dW is zero").all()


def test_an_unchanged_model_has_moved_nowhere(models: Any, tmp_path: Path) -> None:
    shutil.copytree(models.base, tmp_path / "copy")
    table = measure(models.base, tmp_path / "copy", tmp_path / "cache")["svd_analysis_results"]
    assert len(table) == MATRICES
    assert_nothing_changed(table)


def test_an_adapter_with_zero_b_has_moved_nowhere(
    models: Any, lora: Path, edited: Callable[..., Path], tmp_path: Path
) -> None:
    tensors = load_file(lora / "adapter_model.safetensors")
    start = {name.replace(".", "__"): 0 * value for name, value in tensors.items() if "lora_B" in name}
    tables = measure(models.base, edited(lora, **start), tmp_path / "cache")
    assert_nothing_changed(tables["svd_analysis_results"])
    values = tables["singular_values"].query("matrix == 'update'")
    assert len(values) == 2 * 3 * 4  # layers x adapted modules x r
    assert (values["sigma"] == 0).all()


def test_a_row_is_what_a_dense_computation_gives(models: Any, tmp_path: Path) -> None:
    tables = measure(models.base, models.full, tmp_path, top_k=4, intruder_threshold=0.9)
    table = tables["svd_analysis_results"]
    found = table.query("layer == 1 and module == 'up_proj'").iloc[0]
    name = "model.layers.1.mlp.up_proj.weight"
    stored = (load_file(folder / "model.safetensors") for folder in (models.base, models.full))
    base, tuned = (tensors[name].double().numpy() for tensors in stored)
    (u0, s0, v0), (u1, s1, v1) = (np.linalg.svd(w, full_matrices=False) for w in (base, tuned))
    update = np.linalg.svd(tuned - base, compute_uv=False)
    left = scipy.linalg.subspace_angles(u0[:, :4], u1[:, :4])
    right = scipy.linalg.subspace_angles(v0[:4].T, v1[:4].T)
    flags_left = [max(abs(u0[:, i] @ u1[:, j]) for i in range(32)) < 0.9 for j in range(4)]
    flags_right = [max(abs(v0[i] @ v1[j]) for i in range(32)) < 0.9 for j in range(4)]
    expected = {
        "rows": 48,
        "columns": 32,
        "base_sigma1": s0[0],
        "tuned_nuclear_norm": s1.sum(),
        "update_norm": np.linalg.norm(tuned - base),
        "update_entropy_rank": np.exp(scipy.stats.entropy(update)),
        "tuned_energy_entropy_rank": np.exp(scipy.stats.entropy(s1**2)),
        "relative_update_norm": np.linalg.norm(tuned - base) / np.linalg.norm(base),
        "sigma1_ratio": update[0] / s0[0],
        "spearman_sigma": scipy.stats.spearmanr(np.abs(np.diag(u0.T @ tuned @ v0.T)), s0).statistic,
        "angle_left_mean": left.mean(),
        "angle_left_max": left.max(),
        "angle_right_mean": right.mean(),
        "angle_right_max": right.max(),
        "overlap_left": np.mean(np.cos(left) ** 2),
        "overlap_right": np.linalg.norm(v0[:4] @ v1[:4].T) ** 2 / 4,
        "overlap_random": (4 / 48 + 4 / 32) / 2,
        "tuned_condition_number": s1[0] / s1[-1],
        "update_nuclear_spectral_ratio": update.sum() / update[0],
        "wasserstein_sigma": scipy.stats.wasserstein_distance(s0, s1) / s0[0],
        "wasserstein2_sigma": np.sqrt(np.mean((s1 - s0) ** 2)) / s0[0],
        "noise_floor_ratio": np.inf,
        "intruders_left": sum(flags_left),
        "intruders_right": sum(flags_right),
        "intruder_energy_left": sum(s1[:4][flags_left] ** 2) / sum(s1[:4] ** 2),
        "intruder_energy_right": sum(s1[:4][flags_right] ** 2) / sum(s1[:4] ** 2),
    }
    assert 0 < sum(flags_left) < 4
    for column, value in expected.items():
        assert found[column] == pytest.approx(value, rel=1e-5), column


def test_an_adapter_gives_what_its_merged_model_gives(models: Any, lora: Path, tmp_path: Path) -> None:
    merged = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(models.base), lora).merge_and_unload()
    merged.save_pretrained(tmp_path / "merged")
    factored, dense = (
        measure(models.base, folder, tmp_path / "cache")["svd_analysis_results"]
        for folder in (lora, tmp_path / "merged")
    )
    compared = ["update_norm", "update_sigma1", "update_entropy_rank", "spearman_sigma", "intruders_left"]
    compared += [f"tuned_{metric}" for metric in METRICS] + [f"angle_{s}_max" for s in ("left", "right")]
    for column in compared:
        np.testing.assert_allclose(factored[column], dense[column], rtol=2e-4, atol=1e-6)
    adapted = factored["module"].isin(["q_proj", "v_proj", "down_proj"])
    nulls = factored["update_stable_rank_null"]
    assert nulls[adapted].between(1, 4).all()
    assert nulls[~adapted].isna().all()


def test_the_order_of_the_units_changes_nothing(models: Any, lora: Path, tmp_path: Path) -> None:
    subject, params = checkpoint(models.base, lora), Params(cache=tmp_path / "one")
    one = of_subject(subject, params)
    other = dataclasses.replace(params, cache=tmp_path / "two")
    units = spectra.split(subject, other)
    assert units[:2] == ["outside.embed_tokens", "0000.q_proj"]
    found = {unit: spectra.measure(subject, other, unit) for unit in reversed(units)}
    for table, rows in one.items():
        again = pd.concat([found[unit][table] for unit in units], ignore_index=True)
        pd.testing.assert_frame_equal(rows, again, check_exact=True)


def test_a_matrix_wanted_twice_at_once_is_decomposed_once(
    models: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    decomposed = []

    def slowly(matrix: np.ndarray) -> HalfSystem:
        decomposed.append(matrix.shape)
        time.sleep(0.005)
        return half_system(matrix)

    monkeypatch.setattr(base_spectra, "half_system", slowly)
    base = BaseWeights(models.base)
    places = [base_spectra.BaseSpectra(base, tmp_path) for _ in range(3)]
    with ThreadPoolExecutor(3) as pool:  # each opens the lock: as good as processes
        found = list(pool.map(lambda spectra: [spectra.sigma(name) for name in base.names], places))
    assert len(decomposed) == MATRICES
    for sigmas in found[1:]:
        np.testing.assert_array_equal(np.concatenate(sigmas), np.concatenate(found[0]))


def test_the_base_is_decomposed_once_and_as_numpy_does(models: Any, lora: Path, tmp_path: Path) -> None:
    params = Params(cache=tmp_path, workers=1)
    tables = of_subject(base_subject(models.base), params)
    assert list(tables) == ["singular_values"]
    assert set(tables["singular_values"]["matrix"]) == {"base"}
    weights = load_file(models.base / "model.safetensors")
    for (layer, module), rows in tables["singular_values"].groupby(["layer", "module"]):
        part = "mlp" if module in ("gate_proj", "up_proj", "down_proj") else "self_attn"
        name = "embed_tokens" if layer == -1 else f"layers.{layer}.{part}.{module}"
        dense = np.linalg.svd(weights[f"model.{name}.weight"].double(), compute_uv=False)
        np.testing.assert_allclose(rows["sigma"], dense, rtol=1e-9)
    stored = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    assert len(stored) == MATRICES
    measure(models.base, lora, tmp_path)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == stored


def test_a_corrected_configuration_is_decomposed_anew(models: Any, tmp_path: Path) -> None:
    """Fused weights are cut by it: what was cut by other heads is not taken from the cache."""
    shutil.copytree(models.base, tmp_path / "base")
    folders = set()
    for heads in (4, 8):
        path = tmp_path / "base" / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"num_attention_heads": heads}))
        folders.add(base_spectra.BaseSpectra(BaseWeights(tmp_path / "base"), tmp_path / "cache").folder)
    assert len(folders) == 2


def test_changed_files_are_opened_again(models: Any, lora: Path, tmp_path: Path) -> None:
    copy, norms = tmp_path / "copy", []
    shutil.copytree(lora, copy)
    for alpha in (8, 16):
        settings = json.loads((copy / "adapter_config.json").read_text())
        (copy / "adapter_config.json").write_text(json.dumps(settings | {"lora_alpha": alpha}))
        table = measure(models.base, copy, tmp_path / "cache")["svd_analysis_results"]
        norms.append(table["update_norm"].to_numpy())
    np.testing.assert_allclose(norms[1], 2 * norms[0], rtol=1e-12)
    assert norms[0].any()


def test_a_model_of_another_architecture_is_refused_before_anything_is_computed(
    models: Any, one_matrix: Callable[[str, np.ndarray], Path], tmp_path: Path
) -> None:
    other = one_matrix("other", heavy_tailed())
    with pytest.raises(UserError, match=str(other)):
        spectra.split(checkpoint(models.base, other), Params(cache=tmp_path / "cache"))
    assert not (tmp_path / "cache").exists()
