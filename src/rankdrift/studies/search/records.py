"""What a search keeps: of every arm what was tried, and what came of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field

from rankdrift.settings import Section
from rankdrift.spec.search import Span

State = Literal["open", "done", "pruned", "failed"]
"""``open``: asked for, and not carried out yet; ``failed``: its settings cannot be trained with."""


class Trial(Section):
    """One trial: the settings, and what came of them."""

    number: int
    settings: dict[str, Any]
    """Dotted key -> value."""
    own: bool = False
    """Whether they are the recipe's own: the first trial's, if these are in the ranges."""
    bars: dict[int, float] = Field(default_factory=dict)
    """Step -> what has to be reached by then; made when it is asked for."""
    state: State = "open"
    value: float | None = None
    """Mean over seeds after the last step; of a pruned one what it had where it ended."""
    stderr: float | None = None
    """Of that mean; None of one seed."""
    seeds: dict[int, float] = Field(default_factory=dict)
    """Seed -> its value."""
    values: dict[int, float] = Field(default_factory=dict)
    """Step -> value, of the first seed."""
    steps: int = 0
    """Optimizer steps that were made, over all seeds."""
    seconds: float = 0.0
    node: str = ""
    error: str = ""


class ArmRecord(Section):
    """The trials of one arm, by number."""

    method: str
    digest: str
    """Of what is searched; that of trials of another search differs."""
    ranges: dict[str, Span]
    trials: tuple[Trial, ...] = ()

    @property
    def open(self) -> list[Trial]:
        """Those that were asked for and are not carried out."""
        return [trial for trial in self.trials if trial.state == "open"]


class GroupRecord(Section):
    """The search of one group."""

    value: str
    is_better_low: bool
    arms: dict[str, ArmRecord] = Field(default_factory=dict)


def short(value: Any) -> str:
    """Return a setting as a line has room for it."""
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def best(trials: Sequence[Trial], is_better_low: bool) -> Trial | None:
    """Return the best trial of those that were carried out to their end, the first of equals."""
    done = [trial for trial in trials if trial.state == "done" and trial.value is not None]
    sign = 1 if is_better_low else -1
    return min(done, key=lambda trial: (sign * (trial.value or 0.0), trial.number), default=None)
