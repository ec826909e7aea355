"""What goes wrong with spectra when it is done naively: each naive formula is wrong here, and ours is not.

Figures of 1536 x 576 (a projection of a model of 135 million parameters) that are compared with were measured
for the project with dense float64 decompositions.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from safetensors.torch import save_file

from rankdrift.analysis.contract import Params
from rankdrift.analysis.mathematics.spectral import intruders, linalg, nulls, spiked, subspaces
from rankdrift.analysis.mathematics.spectral.lowrank import LowRankSum
from rankdrift.analysis.measures import spectra
from rankdrift.analysis.sources.subjects import Subject

ROWS, SIZE = 1536, 576


def gaussian(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def basis(rows: int, columns: int, seed: int) -> np.ndarray:
    return np.linalg.qr(gaussian(rows, columns, seed=seed))[0]


def entropy_rank(sigma: np.ndarray) -> float:
    return linalg.rank_metrics(sigma, ROWS, SIZE).entropy_rank


# ---- counting singular values above an absolute threshold


def test_rank_by_a_threshold_of_1e_5_is_full_whatever_was_learned() -> None:
    shape, rank = (160, 120), 8
    update = gaussian(160, rank, seed=1) @ gaussian(rank, 120, seed=2) + 0.1 * gaussian(*shape, seed=3)
    sigma = linalg.singular_values(update)
    naive = np.count_nonzero(np.linalg.svd(update, compute_uv=False) > 1e-5)
    assert naive == np.linalg.matrix_rank(update.astype(np.float32)) == 120
    noise = spiked.noise_level(sigma, *shape)
    assert np.count_nonzero(sigma > spiked.spike_threshold(noise, *shape)) == rank
    assert np.count_nonzero(sigma > spiked.hard_threshold(noise, *shape)) == rank


# ---- the update as a difference of weights in bfloat16


@pytest.mark.parametrize(
    ("share", "naive_rank", "naive_zeros"), [(0.01, 170, 0.18), (0.003, 373, 0.48), (0.001, 474, 0.78)]
)
def test_an_update_of_merged_bfloat16_weights_is_rounding(
    share: float, naive_rank: float, naive_zeros: float
) -> None:
    base = torch.tensor(0.02 * gaussian(ROWS, SIZE, seed=1)).bfloat16().double().numpy()
    left, right = gaussian(ROWS, 16, seed=2), gaussian(16, SIZE, seed=3)
    left *= share * np.linalg.norm(base) / np.linalg.norm(left @ right)
    merged = torch.tensor(base + left @ right).bfloat16().double().numpy()
    naive = merged - base
    assert entropy_rank(linalg.singular_values(naive)) == pytest.approx(naive_rank, rel=0.03)
    assert np.mean(naive == 0) == pytest.approx(naive_zeros, abs=0.02)  # taken for sparsity
    sigma = linalg.product_singular_values(left, right)
    assert 15 < entropy_rank(sigma) <= 16
    assert np.count_nonzero(left @ right) == ROWS * SIZE


# ---- energy, and noise beside it


def test_ninety_percent_of_sigma_is_not_ninety_percent_of_energy() -> None:
    null = nulls.gaussian_null(2048, 2048)
    assert null.e90_nuclear == pytest.approx(1377, rel=0.01)  # the sum of sigma, called energy
    assert null.e90_energy == pytest.approx(1044, rel=0.01)
    matrix = gaussian(200, 150, seed=1)
    sigma = linalg.singular_values(matrix)
    kept = int(linalg.rank_metrics(sigma, 200, 150).e90_energy)
    for count, enough in ((kept, True), (kept - 1, False)):
        u, s, v = np.linalg.svd(matrix, full_matrices=False)
        rest = matrix - (u[:, :count] * s[:count]) @ v[:count]
        assert (np.linalg.norm(rest) ** 2 <= 0.1 * np.linalg.norm(matrix) ** 2) == enough


def test_the_published_rank_of_full_fine_tuning_is_that_of_noise() -> None:
    # arXiv 2405.09673 reports about 2000 of 4096 for 90 % of the energy; its own figure S8 shows noise
    assert nulls.gaussian_null(4096, 4096).e90_energy == pytest.approx(2089, rel=0.01)
    null = nulls.gaussian_null(300, 300)
    noise = linalg.rank_metrics(linalg.singular_values(gaussian(300, 300, seed=1)), 300, 300)
    learned = gaussian(300, 300, seed=1) * np.linspace(3, 0.1, 300)
    structured = linalg.rank_metrics(linalg.singular_values(learned), 300, 300)
    assert noise.e90_energy > 0.4 * 300  # reads as "high rank" alone
    assert noise.e90_energy / null.e90_energy == pytest.approx(1, abs=0.03)
    assert structured.e90_energy / null.e90_energy < 0.9


def test_the_condition_number_of_a_square_matrix_is_noise() -> None:
    found = [
        linalg.rank_metrics(linalg.singular_values(gaussian(80, 80, seed=seed)), 80, 80) for seed in range(40)
    ]
    conditions = np.array([metrics.condition_number for metrics in found])
    stable = np.array([metrics.stable_rank for metrics in found])
    assert conditions.max() / conditions.min() > 20
    assert stable.max() / stable.min() < 1.4
    null = nulls.gaussian_null(80, 80).condition_number
    assert 10 <= np.count_nonzero(conditions < null) <= 30  # half of all draws are below the null


# ---- singular vectors one by one


def test_random_signs_alone_are_seven_tenths_of_the_largest_naive_drift() -> None:
    vectors = basis(SIZE, 32, seed=1)
    drifts = []
    for seed in range(20):
        flipped = vectors * np.random.default_rng(seed).choice([-1, 1], 32)
        drifts.append(subspaces.naive_drift(vectors, flipped))
        assert subspaces.vector_drift(subspaces.principal_angles(vectors, flipped)) < 1e-12
    assert np.mean(drifts) == pytest.approx(0.7, abs=0.03)


def test_one_new_vector_at_the_front_shifts_all_others() -> None:
    vectors = basis(SIZE, 33, seed=1)
    before, after = vectors[:, 1:], vectors[:, :32]
    angles = subspaces.principal_angles(before, after)
    assert subspaces.naive_drift(before, after) == pytest.approx(0.707, abs=1e-3)
    assert subspaces.subspace_overlap(angles) == pytest.approx(0.97, abs=0.002)
    assert subspaces.vector_drift(angles) == pytest.approx(32**-0.5)


def test_vectors_of_equal_values_rotate_freely_and_their_space_does_not() -> None:
    sigma = np.r_[np.full(6, 5.0), np.linspace(1, 0.1, 54)]
    left, right = basis(90, 60, seed=1), basis(60, 60, seed=2)
    base = (left * sigma) @ right.T
    tuned = base + 1e-6 * gaussian(90, 60, seed=3)
    old, new = linalg.singular_system(base, 7), linalg.singular_system(tuned, 7)
    matched = np.abs(np.sum(old.right * new.right, axis=0))[:6]
    assert matched.min() < 0.9  # read as change, of a change of 1e-6
    angles = subspaces.principal_angles(old.right[:, :6], new.right[:, :6])
    assert angles.max() < 1e-5
    update = np.linalg.norm(tuned - base, 2)
    assert subspaces.wedin_bound(old.sigma, new.sigma, update, 6) < 1e-5
    # within the block the gap says that nothing can be said
    assert subspaces.spectral_gap(old.sigma, 3) < update
    assert subspaces.wedin_bound(old.sigma, new.sigma, update, 3) > 0.5


def test_angles_of_the_left_vectors_alone_miss_a_change_of_the_inputs() -> None:
    base = gaussian(80, 60, seed=1) * np.linspace(3, 0.3, 60)
    tuned = base @ basis(60, 60, seed=2).T
    old, new = linalg.singular_system(base, 10), linalg.singular_system(tuned, 10)
    overlaps = {
        side: subspaces.subspace_overlap(subspaces.principal_angles(getattr(old, side), getattr(new, side)))
        for side in ("left", "right")
    }
    assert overlaps["left"] == pytest.approx(1)
    assert overlaps["right"] == pytest.approx(10 / 60, abs=0.12)  # no more than chance


def test_the_vectors_of_a_tall_matrix_do_not_span_its_outputs() -> None:
    # the chance level of a thin basis is not that of a full one
    directions = gaussian(400, 500, seed=1)
    directions /= np.linalg.norm(directions, axis=0)
    thin, full = (intruders.best_cosines(basis(400, t, seed=2).T @ directions).mean() for t in (40, 400))
    assert thin < 0.8 * full
    assert intruders.random_cosine(400, 40) == pytest.approx(thin, rel=0.02)
    assert intruders.random_cosine(400, 400) == pytest.approx(full, rel=0.02)


def test_against_the_leading_base_vectors_alone_a_known_direction_looks_new() -> None:
    base = gaussian(200, 150, seed=1) * np.linspace(3, 0.3, 150)
    u, _, v = np.linalg.svd(base, full_matrices=False)
    tuned = base + 60 * np.outer(u[:, 100], v[100])  # a direction of W0, amplified
    half, system = linalg.half_system(base), linalg.singular_system(tuned, 10)
    for side, vectors in (("left", u), ("right", v.T)):
        naive = np.abs(vectors[:, :10].T @ getattr(system, side)).max(axis=0)
        assert np.count_nonzero(naive < 0.5) == 1
        cosines = intruders.best_cosines(half.components(getattr(system, side), side))
        assert intruders.intruders(cosines, system.sigma[:10], 0.5).count == 0


# ---- an adapter's scale


@pytest.mark.parametrize(("settings", "scale"), [({}, 8.0), ({"use_rslora": True}, 16.0)])
def test_an_adapter_read_without_its_scale_is_another_model(
    tmp_path: Path, settings: dict[str, bool], scale: float
) -> None:
    name = "model.layers.0.self_attn.q_proj"
    base = torch.tensor(gaussian(48, 40, seed=1), dtype=torch.float32)
    a, b = (torch.tensor(gaussian(*s, seed=2), dtype=torch.float32) for s in ((4, 40), (48, 4)))
    for folder in ("base", "lora"):
        (tmp_path / folder).mkdir()
    save_file({f"{name}.weight": base}, tmp_path / "base" / "model.safetensors")
    factors = {f"base_model.model.{name}.lora_{key}.weight": value for key, value in (("A", a), ("B", b))}
    save_file(factors, tmp_path / "lora" / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 32, "target_modules": ["q_proj"]} | settings
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(config))
    subject = Subject("run", "lora", 4, (), 0, 1, tmp_path / "base", tmp_path / "lora")
    found = spectra.measure(subject, Params(cache=tmp_path / "c"), "0000.q_proj")["svd_analysis_results"]
    row, product = found.iloc[0], (b.double() @ a.double()).numpy()
    naive = np.linalg.norm(base.double().numpy() + product, 2)
    assert row["update_norm"] == pytest.approx(scale * np.linalg.norm(product), rel=1e-6)
    assert row["tuned_sigma1"] == pytest.approx(np.linalg.norm(base.double().numpy() + scale * product, 2))
    assert row["tuned_sigma1"] > 4 * naive


# ---- algorithms


def test_randomised_values_of_a_flat_spectrum_are_too_small() -> None:
    matrix = gaussian(300, 300, seed=1)
    exact = scipy.linalg.svdvals(matrix)[:10]
    torch.manual_seed(0)
    naive = torch.svd_lowrank(torch.tensor(matrix), q=10, niter=2)[1].numpy()
    assert np.all(naive < 0.98 * exact)
    assert naive[-1] < 0.9 * exact[-1]
    np.testing.assert_allclose(linalg.singular_values(matrix)[:10], exact, rtol=1e-12)
    update = LowRankSum(linalg.half_system(matrix), gaussian(300, 2, seed=3), gaussian(2, 300, seed=4))
    exact = scipy.linalg.svdvals(matrix + update.left @ update.right)[:10]
    np.testing.assert_allclose(update.leading_system(10).sigma, exact, rtol=1e-12)


def test_a_gram_matrix_in_float32_loses_small_values() -> None:
    sigma = np.logspace(0, -6, 200)
    matrix = ((basis(300, 200, seed=1) * sigma) @ basis(200, 200, seed=2).T).astype(np.float32)
    exact = scipy.linalg.svdvals(matrix.astype(np.float64))
    naive = np.sqrt(np.clip(np.linalg.eigvalsh(matrix.T @ matrix), 0, None))[::-1]
    at = np.searchsorted(-exact, -1e-3)
    assert abs(naive[at] / exact[at] - 1) > 1e-6
    assert abs(naive[at + 66] / exact[at + 66] - 1) > 0.1  # at 1e-5 of the largest
    found = linalg.singular_values(matrix)
    assert abs(found[at] / exact[at] - 1) < 1e-9
    assert abs(found[at + 66] / exact[at + 66] - 1) < 1e-5
    counted, wrong = (linalg.rank_metrics(s, 300, 200).numerical_rank for s in (found, naive))
    assert counted == linalg.rank_metrics(exact, 300, 200).numerical_rank
    assert wrong != counted


def test_vectors_in_float16_blur_what_they_are_compared_with() -> None:
    vectors = basis(SIZE, 40, seed=1)
    rounded = vectors.astype(np.float16).astype(np.float64)
    naive = np.arccos(np.clip(scipy.linalg.svdvals(vectors.T @ rounded), -1, 1))
    assert naive.max() > 1e-4  # of vectors that are the same
    assert subspaces.principal_angles(vectors, vectors).max() < 1e-12
