"""How far a search is, and what it found, on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.box import SIMPLE
from rich.table import Table

from rankdrift.progress import duration
from rankdrift.spec.searched import SearchedArm
from rankdrift.studies.search.ledger import Ledger
from rankdrift.studies.search.records import Trial, best, short


def arms_table(ledger: Ledger) -> Table:
    """Return a line an arm: its trials, what they took, and the best of them beside the recipe's own."""
    rows = Table(box=SIMPLE, title=f"Search by {', '.join({arm.search.value for arm in ledger.arms})}")
    for name in ("arm", "trials", "pruned", "failed", "steps", "time", "best", "settings", "recipe's own"):
        rows.add_column(name, overflow="fold", justify="left" if name in ("arm", "settings") else "right")
    for arm in ledger.arms:
        rows.add_row(*_row(arm, ledger))
    return rows


def _row(arm: SearchedArm, ledger: Ledger) -> Sequence[str]:
    trials = ledger.of(arm).trials
    won = best(trials, ledger.groups[arm.group].is_better_low)
    own = next((trial for trial in trials if trial.own), None)
    over = [trial for trial in trials if trial.state != "open"]
    return (
        arm.name,
        f"{len(over)}/{arm.search.trials}",
        *(str(sum(trial.state == state for trial in trials)) for state in ("pruned", "failed")),
        str(sum(trial.steps for trial in trials)),
        duration(sum(trial.seconds for trial in trials)),
        _value(won),
        ", ".join(f"{key}={short(value)}" for key, value in won.settings.items()) if won else "",
        _value(own),
    )


def _value(trial: Trial | None) -> str:
    if trial is None or trial.value is None:
        return ""
    return f"{trial.value:.4g}" + (f" ± {trial.stderr:.2g}" if trial.stderr is not None else "")
