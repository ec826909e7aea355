"""Pruning by the median, as Optuna's ``MedianPruner`` does it, in terms that a trial can carry with it.

What a trial has to reach is decided when it is asked for, from the trials that are done by then. So it
depends neither on when somebody looks, nor on which of the trials at one time is the fastest, and a trial is
pruned where it runs, by whoever carries it out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median

from rankdrift.studies.search.records import Trial

FEWEST = 5
"""Trials that have to be done before any is pruned: Optuna's default."""


def bars(trials: Sequence[Trial]) -> dict[int, float]:
    """Return for each step of a trial but the last the median of what finished trials had there.

    The base model, at step 0, is no trial's own doing.
    """
    done = [trial.values for trial in trials if trial.state == "done"]
    if len(done) < FEWEST:
        return {}
    last = max(step for values in done for step in values)
    steps = sorted({step for values in done for step in values} - {0, last})
    return {step: median(values[step] for values in done if step in values) for step in steps}


def pruned_at(values: Mapping[int, float], bars: Mapping[int, float], is_better_low: bool) -> int | None:
    """Return the first step at which the best so far is worse than the bar; None where there is none.

    >>> pruned_at({0: 1.0, 2: 3.0, 4: 1.5}, {2: 3.5, 4: 1.2}, is_better_low=True)
    4
    """
    sign = 1 if is_better_low else -1
    best = float("inf")
    for step in sorted(set(values) - {0}):
        best = min(best, sign * values[step])
        if step in bars and best > sign * bars[step]:
            return step
    return None
