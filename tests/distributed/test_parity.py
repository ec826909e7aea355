"""Losses and norms do not depend on how a run is divided: a selection of a matrix of 648 ways.

Here are ways in which every two values of any two columns meet; ``RANKDRIFT_WHOLE_MATRIX=1`` trains all.
"""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from ranks import CONFIGS, RECIPE, job, run_of, train_jobs

from rankdrift import files

STEPS, ROWS = 3, 24
TRAINING = {
    **{"steps": STEPS, "global_batch": ROWS, "warmup_steps": 0, "learning_rate": 5e-3, "eval_rows": 1},
    **{"precision": "fp32", "schedule": "constant", "epsilon": 1e-4, "probe_every": STEPS},
}
DATA = {"tasks": ["topic"], "train_limit": 60, "validation_limit": 2, "max_length": 40}
COLUMNS: dict[str, tuple[Any, ...]] = {
    "method": ("full", "lora", "dora"),
    "stage": (0, 1, 2, 3, "2_offload", "3_offload"),
    "ranks": (1, 2, 3),
    "accumulation": (1, 2, 4),
    "checkpointing": (False, True),
    "packing": ("on", "off"),
}


class Way(NamedTuple):
    """One way to divide the same run."""

    method: str
    stage: int | str
    ranks: int
    accumulation: int
    checkpointing: bool
    packing: str

    @property
    def arm(self) -> str:
        return "-".join(map(str, self)).lower()


WHOLE = [Way(*values) for values in itertools.product(*COLUMNS.values())]


def pairs_of(way: Way) -> set[tuple[Any, ...]]:
    return {
        (first, second, way[first], way[second])
        for first, second in itertools.combinations(range(len(way)), 2)
    }


def covering(ways: list[Way]) -> list[Way]:
    """Return few ways that have all pairs of values which any of these has: the most useful first."""
    left = set().union(*map(pairs_of, ways))
    chosen = []
    while left:
        best = max(ways, key=lambda way: len(pairs_of(way) & left))
        chosen.append(best)
        left -= pairs_of(best)
    return chosen


WAYS = WHOLE if os.environ.get("RANKDRIFT_WHOLE_MATRIX") else covering(WHOLE)
HOURS = 4 if WAYS is WHOLE else 0.14
"""What the trainings may take."""
REFERENCES = [Way(method, 0, 1, 1, False, "off") for method in COLUMNS["method"]]


def started(folder: Path, way: Way) -> dict[str, Any]:
    options = [f"method.name={way.method}", f"training.micro_batch={ROWS // way.ranks // way.accumulation}"]
    options += ["method.rank=4"] if way.method != "full" else []
    options += [
        f"model.gradient_checkpointing={way.checkpointing}".lower(),
        f"training.packing={way.packing}",
    ]
    return job(folder, way.arm, CONFIGS / f"zero{way.stage}.json", *options)


@pytest.fixture(scope="module")
def runs(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("parity")
    ways = list(dict.fromkeys([*REFERENCES, *WAYS]))
    groups = [
        (ranks, [started(folder, way) for way in ways if way.ranks == ranks]) for ranks in COLUMNS["ranks"]
    ]
    recipe = RECIPE | {"data": DATA, "training": TRAINING, "method": {}}
    train_jobs(folder, recipe, groups, HOURS * 3600)
    return folder


def logged(runs: Path, way: Way, key: str) -> list[float]:
    rows = files.read_jsonl(run_of(runs, way.arm).metrics)
    return [row[key] for row in rows if row["split"] == "train"]


def moved(runs: Path, way: Way) -> float:
    """Return the size of the last update: of DoRA too, which the drift of single matrices leaves out."""
    table = files.read_table(run_of(runs, way.arm).probe("updates"))
    return float(table.query("level == 'global'")["update_norm"].iloc[-1])


def test_the_selection_has_every_pair() -> None:
    chosen = covering(WHOLE)
    assert set().union(*map(pairs_of, chosen)) == set().union(*map(pairs_of, WHOLE))
    assert len(chosen) < 30


@pytest.mark.distributed
@pytest.mark.timeout(max(600, HOURS * 3600))
@pytest.mark.parametrize("way", WAYS, ids=[way.arm for way in WAYS])
def test_a_run_is_the_same_however_it_is_divided(runs: Path, way: Way) -> None:
    reference = next(other for other in REFERENCES if other.method == way.method)
    assert len(logged(runs, way, "loss")) == STEPS
    np.testing.assert_allclose(logged(runs, way, "loss"), logged(runs, reference, "loss"), rtol=2e-5)
    np.testing.assert_allclose(
        logged(runs, way, "gradient_norm"), logged(runs, reference, "gradient_norm"), rtol=2e-4
    )
    assert moved(runs, way) == pytest.approx(moved(runs, reference), rel=1e-3)
