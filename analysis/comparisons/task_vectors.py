"""Task vectors of a study against each other: do two runs move the weights the same way, and do they collide?

Compared are the last checkpoints of all runs, and consecutive checkpoints of one run. Updates of LoRA stay in
their factors for inner products; for signs each is formed, one matrix at a time. Of one matrix the updates of
the last checkpoints are in memory together, m n x 8 bytes each (float64) for full fine-tuning, and one byte
an entry for signs. Checkpoints of different base models have no common origin and are not compared.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from rankdrift.analysis.contract import Analysis, Params, Tables
from rankdrift.analysis.findings import RUNS, Finding, Listing, Sentence, among
from rankdrift.analysis.mathematics.spectral import task_arithmetic
from rankdrift.analysis.mathematics.spectral.task_arithmetic import PairSums
from rankdrift.analysis.sources.observations import last_pairs
from rankdrift.analysis.sources.opened_weights import weights_of
from rankdrift.analysis.sources.subjects import IDENTITY, Subject
from rankdrift.analysis.sources.updates import touched
from rankdrift.analysis.sources.weights import (
    BaseWeights,
    DenseUpdate,
    Projection,
)

TABLE, SUMS = "task_vectors", "sums"
COLUMNS = {
    **{name: f"{name} of the first checkpoint" for name in IDENTITY},
    **{f"other_{name}": f"{name} of the second checkpoint" for name in IDENTITY},
    "pairing": "last (of two runs, their last checkpoints) or consecutive (two checkpoints of one run)",
    "level": "module (over all blocks), layer (over all modules) or global",
    "layer": "block, 0-based, at level layer (-1 there: embeddings and heads); else -1",
    "module": "projection at level module; else empty",
    "matrices": "matrices summed over",
    "inner_product": "sum of <dW_1, dW_2>_F",
    "norm": "||dW_1||_F",
    "other_norm": "||dW_2||_F",
    "cosine": "inner_product / (norm other_norm), arXiv 2212.04089; NaN where an update is zero",
    "cosine_null": "standard deviation of that cosine for unrelated directions: 1 / sqrt(rows columns) of "
    "one matrix, of which rows and columns that are zero in both do not count, whatever the ranks; "
    "adapters that start from one A are related (then 1 / sqrt(rows r))",
    "sign_conflict": "share, of a matrix's entries among the largest 20 % of both updates, whose signs "
    "differ (as in TIES, arXiv 2306.01708); 0.5 for unrelated updates; NaN without such entries",
    "sign_entries": "entries that are large in both; a product of shares, 0.04 of all, for unrelated updates",
    "reason": "why values are NaN; else empty",
}


@dataclass(frozen=True)
class Pair:
    """Two checkpoints that are compared."""

    pairing: str
    first: Subject
    second: Subject


@dataclass(frozen=True)
class Update:
    """One checkpoint's update of one matrix, with what comparisons need of it alone."""

    factors: tuple[Tensor, Tensor, float] | None
    """B (rows, r), A (r, columns), s; None where the update is dense."""
    values: Tensor | None
    """(rows, columns), float64; None where the update is kept in factors."""
    signs: Tensor
    """(rows, columns), int8: see ``task_arithmetic.large_signs``."""
    square: float
    """||dW||_F^2."""
    touched: tuple[Tensor, Tensor]
    """Which rows and columns are not all zero."""


def split(subjects: Sequence[Subject], params: Params) -> list[str]:
    """Return the matrices of every base model of which two checkpoints are tuned, ``base number:matrix``."""
    return [
        f"{number}:{matrix}"
        for number, base in enumerate(_bases(subjects))
        if _pairs_of(subjects, base)
        for matrix in range(len(BaseWeights(base).names))
    ]


def measure(subjects: Sequence[Subject], params: Params, unit: str) -> Tables:
    """Return the sums of all pairs over one matrix; no row for a pair of which one has no such matrix."""
    number, place = map(int, unit.split(":"))
    base = _bases(subjects)[number]
    matrix = list(BaseWeights(base).names)[place]
    sums = matrix_sums(_pairs_of(subjects, base), matrix)
    where = {"base": number, "layer": matrix.layer, "module": matrix.module}
    rows = [where | {"pair": pair} | vars(found) for pair, found in enumerate(sums) if found]
    columns = [*where, "pair", *(field.name for field in dataclasses.fields(PairSums))]
    return {SUMS: pd.DataFrame(rows, columns=columns)}


def finish(subjects: Sequence[Subject], found: Tables) -> Tables:
    """Return the rows of all pairs; none where the study has no two checkpoints of one base model."""
    if SUMS not in found:
        return {}
    sums, rows = found[SUMS], []
    for number, base in enumerate(_bases(subjects)):
        of_pair = _levels(sums[sums["base"] == number])
        for place, pair in enumerate(_pairs_of(subjects, base)):
            identity = _identity(pair)
            rows += [identity | _numbers(total) for total in of_pair.get(place, ())]
    return {TABLE: pd.DataFrame(rows, columns=list(COLUMNS))} if rows else {}


def _bases(subjects: Sequence[Subject]) -> list[Path]:
    return list(dict.fromkeys(subject.base for subject in subjects if subject.tuned is not None))


def _pairs_of(subjects: Sequence[Subject], base: Path) -> list[Pair]:
    return find_pairs([subject for subject in subjects if subject.tuned is not None and subject.base == base])


def find_pairs(subjects: Sequence[Subject]) -> list[Pair]:
    """Return the pairs of last checkpoints, then each run's consecutive ones, in the subjects' order."""
    runs: dict[str, list[Subject]] = {}
    for subject in sorted(subjects, key=lambda subject: subject.step):
        runs.setdefault(subject.run, []).append(subject)
    trajectories = [runs[name] for name in dict.fromkeys(subject.run for subject in subjects)]
    last = itertools.combinations([trajectory[-1] for trajectory in trajectories], 2)
    consecutive = itertools.chain.from_iterable(map(itertools.pairwise, trajectories))
    return [Pair("last", *two) for two in last] + [Pair("consecutive", *two) for two in consecutive]


def matrix_sums(pairs: Sequence[Pair], matrix: Projection) -> list[PairSums | None]:
    """Return one matrix's sums of every pair; None where one of the two has no such matrix (a head, say).

    Each update is read once, and let go after its last pair.
    """
    last_use = {subject: n for n, pair in enumerate(pairs) for subject in (pair.first, pair.second)}
    held: dict[Subject, Update | None] = {}
    sums = []
    for number, pair in enumerate(pairs):
        for subject in (pair.first, pair.second):
            if subject not in held:
                held[subject] = _read(subject, matrix)
        first, second = held[pair.first], held[pair.second]
        sums.append(pair_sums(first, second) if first and second else None)
        held = {subject: update for subject, update in held.items() if last_use[subject] > number}
    return sums


def pair_sums(x: Update, y: Update) -> PairSums:
    """Return what two updates of one matrix give together."""
    rows, columns = (int((one | other).sum()) for one, other in zip(x.touched, y.touched, strict=True))
    shared, conflicts = task_arithmetic.sign_conflicts(x.signs, y.signs)
    return PairSums(
        inner=inner_product(x, y),
        square=x.square,
        other_square=y.square,
        null_variance=x.square * y.square / max(rows * columns, 1),
        shared=shared,
        conflicts=conflicts,
    )


def inner_product(x: Update, y: Update) -> float:
    """Return <dW_1, dW_2>_F, in factor space as far as the two are given in factors."""
    if x.factors and y.factors:
        return task_arithmetic.factor_inner(x.factors, y.factors)
    if x.values is not None and y.values is not None:
        return task_arithmetic.dense_inner(x.values, y.values)
    dense, factored = (x, y) if x.values is not None else (y, x)
    assert dense.values is not None
    assert factored.factors is not None
    return task_arithmetic.mixed_inner(dense.values, *factored.factors)


def _read(subject: Subject, matrix: Projection) -> Update | None:
    weights = weights_of(subject)
    if matrix not in weights.projections:
        return None
    update = weights.update(matrix)
    if isinstance(update, DenseUpdate):
        square = task_arithmetic.dense_inner(update.values, update.values)
        signs = task_arithmetic.large_signs(update.values)
        return Update(None, update.values, signs, square, touched(update))
    factors = (update.left, update.right, update.scale)
    square = task_arithmetic.factor_square(*factors)
    # what an adapter leaves alone, embeddings above all, is not formed to find no signs in it
    signs = (
        task_arithmetic.large_signs(update.dense())
        if square
        else torch.zeros(*update.shape, dtype=torch.int8)
    )
    return Update(factors, None, signs, square, touched(update))


@dataclass(frozen=True)
class Total:
    """A pair's sums over some of the matrices."""

    level: str
    layer: int
    module: str
    matrices: int
    sums: PairSums


def _levels(sums: pd.DataFrame) -> dict[int, list[Total]]:
    """Return of every pair a total a module, one a layer, and the global one, each in order of appearance."""
    names = [field.name for field in dataclasses.fields(PairSums)]
    found: dict[int, list[Total]] = {}
    for level in ("module", "layer", "global"):
        keys = ["pair", *([level] if level != "global" else [])]
        groups = sums.groupby(keys, sort=False)[names]
        of_key = groups.sum().assign(matrices=groups.size()).reset_index()
        for row in of_key.to_dict("records"):
            place = {"layer": row.get("layer", -1), "module": row.get("module", "")}
            total = PairSums(**{name: row[name] for name in names})
            found.setdefault(row["pair"], []).append(
                Total(level, **place, matrices=row["matrices"], sums=total)
            )
    return found


def _identity(pair: Pair) -> dict[str, Any]:
    return {
        **pair.first.identity(),
        **{f"other_{name}": value for name, value in pair.second.identity().items()},
        "pairing": pair.pairing,
    }


def _numbers(total: Total) -> dict[str, Any]:
    sums = total.sums
    zero = sums.square == 0 or sums.other_square == 0
    return {
        "level": total.level,
        "layer": total.layer,
        "module": total.module,
        "matrices": total.matrices,
        "inner_product": sums.inner,
        "norm": sums.square**0.5,
        "other_norm": sums.other_square**0.5,
        "cosine": sums.cosine,
        "cosine_null": sums.cosine_null,
        "sign_conflict": sums.sign_conflict,
        "sign_entries": int(sums.shared),
        "reason": "an update is zero: it has no direction" if zero else "",
    }


def _squares(vectors: pd.DataFrame, runs: pd.DataFrame) -> pd.DataFrame:
    """Return pairs of runs by arms: of one seed where the first arm comes before the other, else of two."""
    pairs = last_pairs(vectors).dropna(subset=["cosine"])
    place = {arm: number for number, arm in enumerate(runs["arm"].unique())}
    back = pairs.rename(columns={"arm": "other_arm", "other_arm": "arm"}).query("arm != other_arm")
    both = pd.concat([pairs, back]).sort_values("other_arm", key=lambda arms: arms.map(place), kind="stable")
    one_seed = both["seed"] == both["other_seed"]
    above = both["arm"].map(place) < both["other_arm"].map(place)
    quantities = ["cosine", "sign_conflict"]
    both[quantities] = both[quantities].where(above == one_seed)
    return both.assign(bound=1.96 * both["cosine_null"]).drop(columns="run")  # in order of the arms


WHERE = "means over pairs of runs; above the diagonal runs of one seed, on it and below of different seeds"
COSINES = Listing(
    {"": "{arm}", "{other_arm}": "{cosine.mean:number}"}, f"Cosine of task vectors, {WHERE}", by=("arm",)
)
CONFLICTS = Listing(
    {"": "{arm}", "{other_arm}": "{sign_conflict.mean:percent}"},
    f"Entries large in both task vectors that differ in sign, {WHERE}",
    lambda rows: among(rows, rows["sign_conflict"].notna().any()),
    by=("arm",),
)
UNRELATED = Sentence(
    "Unrelated directions have a cosine within ±{bound.max:number 2}, and half of their large entries "
    "differ in sign. Runs of one seed share the order of the data and, if both are LoRA of one r, the start "
    "of their factors."
)
FINDING = Finding("Task vectors", (TABLE, RUNS), _squares, (COSINES, CONFLICTS, UNRELATED))
ANALYSIS = Analysis(
    name="task_vectors",
    columns={TABLE: COLUMNS},
    per="study",
    split=split,
    measure=measure,
    finish=finish,
    version=3,
    findings=(FINDING,),
)
