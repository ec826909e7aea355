"""How often does each interval hold the truth? Nominal 95 %, by simulation.

    python benchmarks/interval_coverage.py            one to two minutes on one core
    python benchmarks/interval_coverage.py --quick    checks the script itself

Three cases, all draws seeded. Seeds: the mean of n = 3, 5, 10 normal values, by Student's t interval (which
the analysis uses) and by the percentile and BCa bootstraps. Items: the paired difference of two models over
items that are alike within a document, resampling items and resampling documents (which the analysis does
where documents are named). Runs: Spearman's correlation over checkpoints that are alike within a run,
resampling checkpoints and resampling runs (which the analysis does).
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from rankdrift import files
from rankdrift.analysis.mathematics.statistics.association import spearman
from rankdrift.analysis.mathematics.statistics.bootstrap import (
    BootstrapInterval,
    cluster_bootstrap,
    paired_bootstrap,
)
from rankdrift.analysis.mathematics.statistics.intervals import Interval, t_interval

HERE = Path(__file__).resolve().parent
CONFIDENCE = 0.95
SEEDS = (3, 5, 10)
DOCUMENTS, ITEMS_EACH = 40, 5
RUNS, CHECKPOINTS_EACH = (5, 8, 16), 5
CORRELATION = 0.6
ALIKE = 0.8
"""Share of the variance that items of a document, or checkpoints of a run, have in common."""
RANK_CORRELATION = 6 / math.pi * math.asin(CORRELATION / 2)  # of normal values: Kendall and Gibbons, 1990


def coverage(held: np.ndarray) -> dict[str, float]:
    """Return the share of draws whose interval held the truth, with its binomial standard error."""
    share = float(np.mean(held))
    return {"coverage": share, "stderr": math.sqrt(share * (1 - share) / len(held)), "draws": len(held)}


def of_seeds(seeds: int, draws: int, resamples: int) -> dict[str, dict[str, float]]:
    """Return the coverage of the mean of a few normal values by each interval."""
    values = np.random.default_rng(seeds).normal(size=(draws, seeds))
    sides = {"t": coverage(np.array([_holds(t_interval(of_draw), 0.0) for of_draw in values]))}
    for method in ("percentile", "BCa"):
        interval = stats.bootstrap(
            (values,),
            np.mean,
            axis=-1,
            vectorized=True,
            method=method,
            confidence_level=CONFIDENCE,
            n_resamples=resamples,
            batch=50,
            rng=np.random.default_rng(0),
        ).confidence_interval
        sides[method] = coverage((interval.low <= 0) & (interval.high >= 0))
    return sides


def of_items(draws: int, resamples: int) -> dict[str, dict[str, float]]:
    """Return the coverage of a paired difference (truth .5) of skewed items that are alike in a document."""
    documents = np.repeat(np.arange(DOCUMENTS), ITEMS_EACH)

    def holds(clusters: np.ndarray | None, seed: int) -> bool:
        generator = np.random.default_rng(seed)
        first = generator.normal(size=len(documents))
        common = generator.exponential(size=DOCUMENTS)[documents]
        change = ALIKE * common + (1 - ALIKE) * generator.exponential(size=len(documents)) - 0.5
        found = paired_bootstrap(first, first + change, clusters=clusters, resamples=resamples)
        return _holds(found, 0.5)

    return {
        "items": coverage(np.array([holds(None, seed) for seed in range(draws)])),
        "documents": coverage(np.array([holds(documents, seed) for seed in range(draws)])),
    }


def of_runs(runs: int, draws: int, resamples: int) -> dict[str, dict[str, float]]:
    """Return the coverage of Spearman's correlation of checkpoints that are alike in a run."""
    names = np.repeat(np.arange(runs), CHECKPOINTS_EACH)
    root = np.linalg.cholesky([[1, CORRELATION], [CORRELATION, 1]])

    def holds(clusters: np.ndarray, seed: int) -> bool:
        generator = np.random.default_rng(seed)
        common = generator.normal(size=(runs, 2))[names]
        own = generator.normal(size=(len(names), 2))
        rows = (math.sqrt(ALIKE) * common + math.sqrt(1 - ALIKE) * own) @ root.T
        return _holds(cluster_bootstrap(spearman, rows, clusters, resamples=resamples), RANK_CORRELATION)

    sides: dict[str, Callable[[int], bool]] = {
        "checkpoints": lambda seed: holds(np.arange(len(names)), seed),
        "runs": lambda seed: holds(names, seed),
    }
    return {side: coverage(np.array([draw(seed) for seed in range(draws)])) for side, draw in sides.items()}


def _holds(found: Interval | BootstrapInterval, truth: float) -> bool:
    assert found.low is not None
    assert found.high is not None
    return found.low <= truth <= found.high


def main(arguments: argparse.Namespace) -> None:
    """Simulate all cases and write the result."""
    few, many, resamples = (20, 50, 99) if arguments.quick else (400, 4000, 1999)
    result: dict[str, Any] = {
        "claim": "the intervals the analysis states cover close to 95 %; a bootstrap of three seeds does not",
        "settings": {"confidence": CONFIDENCE, "resamples": resamples, "quick": arguments.quick},
        "seeds": {str(seeds): of_seeds(seeds, many, resamples) for seeds in SEEDS},
        "items": of_items(few, resamples),
        "runs": {str(runs): of_runs(runs, few, resamples) for runs in RUNS},
        "environment": files.environment(),
    }
    files.write_json(arguments.output, result)
    tables = [*result["seeds"].items(), ("items", result["items"]), *result["runs"].items()]
    for name, sides in tables:
        shares = ", ".join(f"{side} {found['coverage']:.3f}" for side, found in sides.items())
        print(f"{name}: {shares}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "interval_coverage.json")
    main(parser.parse_args())
