"""Task vectors in factor space against dense NumPy, their null, and the table of a study of tiny models."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rankdrift.analysis.comparisons import task_vectors
from rankdrift.analysis.comparisons.task_vectors import COLUMNS, SUMS, TABLE, find_pairs
from rankdrift.analysis.contract import Params
from rankdrift.analysis.mathematics.spectral import task_arithmetic
from rankdrift.analysis.mathematics.spectral.task_arithmetic import PairSums
from rankdrift.analysis.sources.subjects import Subject, base_subject
from rankdrift.analysis.sources.updates import DenseUpdate, touched
from rankdrift.analysis.sources.weights import open_weights

M, N = 24, 40
TARGETS = ["q_proj", "v_proj", "down_proj"]


def compute_all(subjects: list[Subject], params: Params, folder: Path) -> dict[str, pd.DataFrame]:
    """As the engine does: matrix after matrix, then all together."""
    units = task_vectors.split(subjects, params)
    frames = [task_vectors.measure(subjects, params, unit)[SUMS] for unit in units]
    return task_vectors.finish(subjects, {SUMS: pd.concat(frames)} if frames else {})


def factors(rank: int, seed: int, scale: float = 0.5) -> tuple[torch.Tensor, torch.Tensor, float]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(M, rank, generator=generator), torch.randn(rank, N, generator=generator), scale


def formed(update: tuple[torch.Tensor, torch.Tensor, float]) -> np.ndarray:
    left, right, scale = update
    return scale * left.double().numpy() @ right.double().numpy()


@pytest.mark.parametrize(("rank", "other"), [(4, 4), (1, 8), (3, 0)])
def test_factor_space_gives_the_dense_inner_product(rank: int, other: int) -> None:
    x, y = factors(rank, 0), factors(other, 1, scale=2.0)
    assert task_arithmetic.factor_inner(x, y) == pytest.approx(np.sum(formed(x) * formed(y)), rel=1e-12)
    dense = torch.from_numpy(formed(x))
    assert task_arithmetic.mixed_inner(dense, *y) == pytest.approx(np.sum(formed(x) * formed(y)), rel=1e-12)
    assert task_arithmetic.dense_inner(dense, dense) == pytest.approx(np.sum(formed(x) ** 2), rel=1e-12)


@pytest.mark.parametrize("rank", [0, 1, 4, 60])
def test_the_square_of_factors_is_the_dense_one(rank: int) -> None:
    x = factors(rank, 0)
    assert task_arithmetic.factor_square(*x) == pytest.approx(np.sum(formed(x) ** 2), rel=1e-12)


def test_the_square_of_factors_that_nearly_cancel_is_exact() -> None:
    """A start of norm 1 and a step of 1e-7 from it: the inner product has no digit of the square left."""
    left, right, _ = factors(4, 0)
    step = torch.randn(M, 4, generator=torch.Generator().manual_seed(1)) * 2**-20
    moved = (left * 1024 + step).float()  # what float32 holds of it
    both = (torch.hstack([moved, -1024 * left]), torch.vstack([right, right]), 0.5)
    exact = np.sum((0.5 * (moved.double() - 1024 * left.double()).numpy() @ right.double().numpy()) ** 2)
    assert task_arithmetic.factor_square(*both) == pytest.approx(exact, rel=1e-4)
    assert abs(task_arithmetic.factor_inner(both, both) / exact - 1) > 1e-3


def test_factors_may_be_rescaled() -> None:
    left, right, scale = factors(4, 0)
    y = factors(4, 1)
    rescaled = (left * 1024, right / 1024, scale)  # a power of two, which is exact
    assert task_arithmetic.factor_inner(rescaled, y) == task_arithmetic.factor_inner((left, right, scale), y)


def haar(size: int, draws: int, generator: np.random.Generator) -> np.ndarray:
    """Return uniform rotations (draws, size, size): QR of Gaussians, signs fixed (math-ph/0609050)."""
    q, r = np.linalg.qr(generator.normal(size=(draws, size, size)))
    return q * np.sign(np.diagonal(r, axis1=1, axis2=2))[:, None, :]


@pytest.mark.parametrize("rank", [1, 4, M], ids=["rank-1", "rank-4", "full"])
def test_the_null_is_the_spread_of_cosines_of_turned_updates(rank: int) -> None:
    """Rotations of one of the two, 1,000 draws: 1 / sqrt(m n) whatever the rank."""
    generator = np.random.default_rng(0)
    x, y = formed(factors(rank, 0)), formed(factors(2, 1))
    turned = haar(M, 1000, generator) @ x @ haar(N, 1000, generator)
    cosines = np.sum(turned * y, axis=(1, 2)) / np.linalg.norm(x) / np.linalg.norm(y)
    sums = PairSums(0.0, np.sum(x**2), np.sum(y**2), np.sum(x**2) * np.sum(y**2) / (M * N), 0, 0)
    assert sums.cosine_null == pytest.approx(1 / np.sqrt(M * N))
    assert np.sqrt(np.mean(cosines**2)) == pytest.approx(sums.cosine_null, rel=0.1)


def test_rows_that_neither_trains_are_no_part_of_the_null() -> None:
    """Updates in 12 of the rows, one turned within them: their cosines spread as those of 12 rows."""
    generator = np.random.default_rng(0)
    rows, x = 12, formed(factors(3, 0))
    x[rows:] = 0
    turned = haar(rows, 1000, generator) @ x[:rows] @ haar(N, 1000, generator)
    padded = np.concatenate([turned, np.zeros((1000, M - rows, N))], axis=1)
    cosines = np.sum(padded * x, axis=(1, 2)) / np.linalg.norm(x) ** 2
    one, other = (read(torch.from_numpy(values)) for values in (x, padded[0]))
    null = task_vectors.pair_sums(one, other).cosine_null
    assert null == pytest.approx(1 / np.sqrt(rows * N))
    assert np.sqrt(np.mean(cosines**2)) == pytest.approx(null, rel=0.1)


def read(values: torch.Tensor) -> task_vectors.Update:
    signs = task_arithmetic.large_signs(values)
    return task_vectors.Update(None, values, signs, float((values**2).sum()), touched(DenseUpdate(values)))


def test_adapters_that_start_from_one_A_are_related() -> None:  # noqa: N802
    """The null for a kept A with orthonormal rows is 1 / sqrt(m r), several times as wide."""
    generator = np.random.default_rng(0)
    a = haar(N, 1, generator)[0][:3]
    x, y = (generator.normal(size=(1000, M, 3)) @ a for _ in range(2))
    cosines = np.sum(x * y, axis=(1, 2)) / np.linalg.norm(x, axis=(1, 2)) / np.linalg.norm(y, axis=(1, 2))
    assert np.sqrt(np.mean(cosines**2)) == pytest.approx(1 / np.sqrt(M * 3), rel=0.1)


def test_signs_of_the_largest_entries() -> None:
    x = torch.tensor([[5.0, -4.0, 0.1, 0.2, 0.0], [3.0, 0.3, -0.1, 0.0, 0.2]])
    assert task_arithmetic.large_signs(x, 0.3).tolist() == [[1, -1, 0, 0, 0], [1, 0, 0, 0, 0]]
    y = torch.tensor([[5.0, 4.0, 0.1, 0.2, 0.0], [3.0, 0.3, -0.2, 0.0, 0.2]])
    signs = [task_arithmetic.large_signs(each, 0.3) for each in (x, y)]
    assert task_arithmetic.sign_conflicts(*signs) == (3, 1)
    assert not task_arithmetic.large_signs(torch.zeros(3, 3)).any()


def test_unrelated_updates_conflict_in_half_of_what_they_share() -> None:
    generator = torch.Generator().manual_seed(0)
    x, y = (torch.randn(400, 400, generator=generator, dtype=torch.float64) for _ in range(2))
    shared, conflicts = task_arithmetic.sign_conflicts(*map(task_arithmetic.large_signs, (x, y)))
    entries = 400 * 400
    assert shared / entries == pytest.approx(0.04, abs=4 * np.sqrt(0.04 * 0.96 / entries))
    assert conflicts / shared == pytest.approx(0.5, abs=4 * np.sqrt(0.25 / shared))


def subject(run: str, models, tuned: Path, step: int = 1, seed: int = 0) -> Subject:  # type: ignore[no-untyped-def]
    method, rank = ("full", 0) if run.startswith("full") else ("lora", 4)
    return Subject(run, method, rank, ("topic",), seed, step, models.base, tuned)


@pytest.fixture(scope="module")
def study(models, lora: Path) -> list[Subject]:  # type: ignore[no-untyped-def]
    other = models.adapter("other", r=2, lora_alpha=2, target_modules=TARGETS)[0]
    return [
        base_subject(models.base),
        subject("full", models, models.full),
        subject("lora", models, other, step=1),
        subject("lora", models, lora, step=2),
        subject("still", models, models.base),
    ]


@pytest.fixture(scope="module")
def table(study: list[Subject], tmp_path_factory: pytest.TempPathFactory) -> pd.DataFrame:
    folder = tmp_path_factory.mktemp("tables")
    return compute_all(study, Params(cache=folder, workers=1), folder)[TABLE]


def vector(subject: Subject, layer: int | None = None) -> np.ndarray:
    """The whole update, densely, independently of any factor."""
    assert subject.tuned is not None
    weights = open_weights(subject.base, subject.tuned)
    names = [name for name in weights.base.names if layer is None or name.layer == layer]
    return np.concatenate([weights.pair(name).update.dense().numpy().ravel() for name in names])


def test_the_table_has_every_pair_once(study: list[Subject], table: pd.DataFrame) -> None:
    found = table[table["level"] == "global"][["run", "other_run", "pairing", "step", "other_step"]]
    assert found.to_numpy().tolist() == [
        ["full", "lora", "last", 1, 2],
        ["full", "still", "last", 1, 1],
        ["lora", "still", "last", 2, 1],
        ["lora", "lora", "consecutive", 1, 2],
    ]
    assert list(table.columns) == list(COLUMNS)


@pytest.mark.parametrize(("one", "other", "pairing"), [(1, 3, "last"), (2, 3, "consecutive")])
@pytest.mark.parametrize("layer", [None, 1])
def test_cosines_are_those_of_dense_updates(
    study: list[Subject], table: pd.DataFrame, one: int, other: int, pairing: str, layer: int | None
) -> None:
    x, y = vector(study[one], layer), vector(study[other], layer)
    rows = table[(table["run"] == study[one].run) & (table["other_run"] == study[other].run)]
    rows = rows[(rows["pairing"] == pairing) & (rows["level"] == ("global" if layer is None else "layer"))]
    row = rows[rows["layer"] == (-1 if layer is None else layer)].iloc[0]
    assert row["inner_product"] == pytest.approx(x @ y, rel=1e-6)
    assert row["norm"] == pytest.approx(np.linalg.norm(x), rel=1e-6)
    assert row["cosine"] == pytest.approx(x @ y / np.linalg.norm(x) / np.linalg.norm(y), rel=1e-6)


def test_the_null_of_matrices_weighs_them_by_their_norms(study: list[Subject], table: pd.DataFrame) -> None:
    """Each matrix turned on its own: the variances of their inner products add up."""
    one, other = (open_weights(each.base, each.tuned) for each in (study[1], study[3]) if each.tuned)
    norms, variance = np.zeros(2), 0.0
    for name in one.base.names:
        x, y = (weights.pair(name).update.dense().numpy() for weights in (one, other))
        squares = np.array([np.sum(x**2), np.sum(y**2)])
        norms, variance = norms + squares, variance + squares.prod() / x.size
    row = table.query("run == 'full' and other_run == 'lora' and level == 'global'").iloc[0]
    assert row["cosine_null"] == pytest.approx(np.sqrt(variance / norms.prod()), rel=1e-9)


def test_levels_add_up(table: pd.DataFrame) -> None:
    for _, rows in table.groupby(["run", "other_run", "pairing"]):
        sums = rows.groupby("level")[["inner_product", "sign_entries", "matrices"]].sum()
        assert np.allclose(sums.loc["module"], sums.loc["global"], rtol=1e-9)
        assert np.allclose(sums.loc["layer"], sums.loc["global"], rtol=1e-9)


def test_a_zero_update_has_no_direction_and_says_so(table: pd.DataFrame) -> None:
    still = table[table["other_run"] == "still"]
    assert still[["cosine", "cosine_null", "sign_conflict"]].isna().all(axis=None)
    assert (still["other_norm"] == 0).all()
    assert still["reason"].str.contains("zero").all()
    full = table[(table["other_run"] == "lora") & (table["level"] == "global")]
    assert (full["reason"] == "").all()


@pytest.mark.parametrize("count", [0, 1, 2])
def test_nothing_to_compare_is_no_error(study: list[Subject], tmp_path: Path, count: int) -> None:
    assert compute_all(study[:count], Params(cache=tmp_path), tmp_path) == {}


def test_different_base_models_are_not_compared(study: list[Subject], tmp_path: Path) -> None:
    elsewhere = dataclasses.replace(study[1], run="elsewhere", base=study[1].tuned)
    assert compute_all([study[1], elsewhere], Params(cache=tmp_path), tmp_path) == {}


def test_a_matrix_that_one_of_two_lacks_is_left_out(models, edited, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    """A classifier made of a base model has no LM head: beside it only the other matrices are compared."""
    untied = type(models)(tmp_path)
    config = LlamaConfig.from_pretrained(models.base, tie_word_embeddings=False)
    LlamaForCausalLM(config).save_pretrained(untied.base)
    plain = untied.adapter("plain", r=2, target_modules=TARGETS)[0]
    runs = {"lora-1": plain, "lora-2": plain, "classifier": edited(plain, config={"task_type": "SEQ_CLS"})}
    subjects = [subject(run, untied, folder) for run, folder in runs.items()]
    rows = compute_all(subjects, Params(cache=tmp_path, workers=1), tmp_path)[TABLE]
    found = rows[rows["level"] == "global"].set_index(["run", "other_run"])["matrices"]
    assert found["lora-1", "lora-2"] == 2 * 7 + 2
    assert found["lora-1", "classifier"] == found["lora-2", "classifier"] == 2 * 7 + 1


def test_updates_are_taken_from_the_adapter_before_training(
    models, lora: Path, edited, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    """An adapter that was subtracted from the base and has not moved since is no update, in no direction."""
    still = subject("pissa", models, edited(lora, config={"init_lora_weights": "pissa"}))
    still = dataclasses.replace(still, initial=lora)
    params = Params(cache=tmp_path, workers=1)
    rows = compute_all([subject("lora", models, lora), still], params, tmp_path)[TABLE]
    row = rows[rows["level"] == "global"].iloc[0]
    assert row["other_norm"] == 0
    assert np.isnan(row["cosine"])
    assert row["reason"] == "an update is zero: it has no direction"


def test_pairs_follow_the_steps_not_the_order_given(study: list[Subject]) -> None:
    steps = [dataclasses.replace(study[2], step=step) for step in (30, 10, 20)]
    pairs = find_pairs(steps)
    assert [(pair.first.step, pair.second.step) for pair in pairs] == [(10, 20), (20, 30)]
    assert functools.reduce(lambda all_, pair: all_ | {pair.pairing}, pairs, set()) == {"consecutive"}
