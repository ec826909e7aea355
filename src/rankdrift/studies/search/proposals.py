"""What to try next, by Optuna's TPE. The only module that knows Optuna.

Nothing is kept of Optuna's: each proposal is made from the trials there are, by a sampler whose seed is the
trial's number. So a search that was killed goes on as if it had not been, and what it keeps is plain JSON.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from rankdrift.errors import UserError
from rankdrift.spec.search import Span
from rankdrift.studies.search.records import Trial

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial

SEED = 20260
"""The same for all arms: their first trials are at the same places of their ranges."""
FIRST = 6
"""Trials that are drawn at random, before TPE has what to learn from."""


def require() -> None:
    """Raise UserError where Optuna is not installed."""
    try:
        import optuna  # noqa: F401
    except ImportError:
        raise UserError("a search needs Optuna, which is an extra: pip install 'rankdrift[search]'") from None


def propose(ranges: Mapping[str, Span], trials: Sequence[Trial], is_better_low: bool) -> dict[str, Any]:
    """Return the settings of the next trial.

    Parameters
    ----------
    ranges
        Dotted key -> range or choices.
    trials
        Those before it; open ones count as bad, so that those at one time are not all alike.
    is_better_low
        Whether small values are good.

    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    distributions = {key: _distribution(span) for key, span in ranges.items()}
    seed = int(np.random.SeedSequence([SEED, len(trials)]).generate_state(1)[0])
    sampler = optuna.samplers.TPESampler(n_startup_trials=FIRST, constant_liar=True, seed=seed)
    study = optuna.create_study(sampler=sampler, direction="minimize" if is_better_low else "maximize")
    for trial in trials:
        study.add_trial(_frozen(trial, distributions))
    asked = study.ask(distributions)
    return {key: _decoded(ranges[key], value) for key, value in asked.params.items()}


def _distribution(span: Span) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(span, tuple):
        return CategoricalDistribution([json.dumps(choice) for choice in span])
    if isinstance(span.low, int) and isinstance(span.high, int):
        return IntDistribution(span.low, span.high, log=span.log)
    return FloatDistribution(span.low, span.high, log=span.log)


def _decoded(span: Span, value: Any) -> Any:
    return json.loads(value) if isinstance(span, tuple) else value


def _frozen(trial: Trial, distributions: Mapping[str, BaseDistribution]) -> FrozenTrial:
    """Return a trial as Optuna has it; one that failed is a pruned one that came to nothing: the worst."""
    from optuna.distributions import CategoricalDistribution
    from optuna.trial import TrialState, create_trial

    states = {"open": TrialState.RUNNING, "done": TrialState.COMPLETE}
    params = {
        key: json.dumps(value) if isinstance(distributions[key], CategoricalDistribution) else value
        for key, value in trial.settings.items()
    }
    return create_trial(
        state=states.get(trial.state, TrialState.PRUNED),
        value=trial.value if trial.state == "done" else None,
        params=params,
        distributions=dict(distributions),
        intermediate_values=trial.values if trial.state in ("done", "pruned") else {},
    )
