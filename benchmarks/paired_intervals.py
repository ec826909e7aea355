"""How long do BCa intervals of all pairs of a study's models take, from one set of draws and pair by pair?

    python benchmarks/paired_intervals.py

Right and wrong answers of 90 models to 10,042 items (30 arms x 3 seeds on HellaSwag's validation split). All
2,610 pairs are too many for SciPy, which is given a few of them; the others are estimated from these. Both
sides use 9,999 draws of one seed, in turn, in one process, and their ends are compared.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from rankdrift import files
from rankdrift.analysis.mathematics.statistics.bootstrap import RESAMPLES, paired_bootstraps

HERE = Path(__file__).resolve().parent
MODELS, ITEMS, PAIRS = 90, 10_042, 2_610


def timed(function: Callable[[], Any]) -> tuple[float, Any]:
    """Return the wall time of a call in seconds, and what it returned."""
    began = time.perf_counter()
    result = function()
    return time.perf_counter() - began, result


def with_scipy(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Return the ends of one pair's interval as SciPy has them."""
    found = stats.bootstrap(
        (second - first,),
        np.mean,
        method="BCa",
        n_resamples=RESAMPLES,
        batch=400,
        rng=np.random.default_rng(0),
    ).confidence_interval
    return float(found.low), float(found.high)


def measure(repeats: int, with_both: int) -> dict[str, Any]:
    """Return medians of both sides, and the largest difference of an end."""
    values = (np.random.default_rng(0).random((MODELS, ITEMS)) < 0.5).astype(float)
    pairs = list(itertools.combinations(range(MODELS), 2))[:PAIRS]
    all_seconds, one_by_scipy, largest = [], [], 0.0
    for _ in range(repeats):
        seconds, found = timed(lambda: paired_bootstraps(list(values), pairs))
        all_seconds.append(seconds)
        for (first, second), ours in itertools.islice(zip(pairs, found, strict=True), with_both):
            seconds, (low, high) = timed(lambda a=first, b=second: with_scipy(values[a], values[b]))
            one_by_scipy.append(seconds)
            largest = max(largest, abs(low - ours.low), abs(high - ours.high))
    return {
        "all_pairs_s": round(statistics.median(all_seconds), 3),
        "scipy_one_pair_s": round(statistics.median(one_by_scipy), 3),
        "scipy_all_pairs_estimated_s": round(statistics.median(one_by_scipy) * PAIRS, 1),
        "largest_difference_of_an_end": largest,
    }


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--pairs-of-scipy", type=int, default=3)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "paired_intervals.json")
    arguments = parser.parse_args()
    facts = measure(arguments.repeats, arguments.pairs_of_scipy)
    settings = {"models": MODELS, "items": ITEMS, "pairs": PAIRS, "draws": RESAMPLES}
    files.write_json(
        arguments.output, {"settings": settings, "result": facts, "environment": files.environment()}
    )
    print(facts)


if __name__ == "__main__":
    main()
