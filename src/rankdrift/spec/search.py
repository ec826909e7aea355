"""Searches: which settings of each arm are searched over which ranges, with how much, judged by what."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Discriminator, Field, Tag, ValidationError, field_validator, model_validator

from rankdrift.errors import UserError
from rankdrift.settings import NonNegativeInt, PositiveInt, Section, problems

S = TypeVar("S", bound=Section)

RATE = "training.learning_rate"
"""What is searched of an arm that is given no ranges."""
SPLIT = "validation"
"""What selects; the split that reports is not looked at."""


class Range(Section):
    """Numbers between two ends, both included."""

    low: int | float
    high: int | float
    log: bool = False
    """Whether equal ratios, and not equal differences, are equally far apart."""

    @model_validator(mode="after")
    def _goes_up(self) -> Range:
        if not self.low < self.high:
            raise ValueError(f"low={self.low} is not below high={self.high}")
        if self.log and self.low <= 0:
            raise ValueError(f"low={self.low}: a logarithmic range begins above 0")
        return self

    @property
    def ends(self) -> tuple[Any, ...]:
        """The least and the largest value."""
        return self.low, self.high


def _kind(given: Any) -> str:
    return "choices" if isinstance(given, list | tuple) else "range"


Span = Annotated[
    Annotated[Range, Tag("range")] | Annotated[tuple[Any, ...], Tag("choices")], Discriminator(_kind)
]
"""What a setting is searched over: a range, or choices."""


class OwnSearch(Section):
    """What an arm has of its own."""

    ranges: dict[str, Span] = Field(default_factory=dict)
    """Dotted key -> what it is searched over; beside the search's, and in their place where both have one."""

    @field_validator("ranges")
    @classmethod
    def _several(cls, given: dict[str, Span]) -> dict[str, Span]:
        for key, span in given.items():
            if isinstance(span, tuple) and len({repr(choice) for choice in span}) < max(2, len(span)):
                raise ValueError(f"{key}: give two or more choices, each once, got {list(span)}")
        return given


class SearchSpec(OwnSearch):
    """A search: every arm has as many trials, each as long as the others'."""

    trials: PositiveInt = 20
    """Trials of every arm: equal budgets."""
    seeds: tuple[NonNegativeInt, ...] = (7,)
    """Seeds that a trial trains with, one after the other; its value is their mean. None of the study's."""
    value: str = "validation/loss"
    """The logged value that decides, as ``training.best`` has it, after a trial's last step."""
    steps: PositiveInt | None = None
    """Optimizer steps of a trial; None: as long as the study's runs."""
    eval_every: PositiveInt | None = None
    """Steps between evaluations of a trial, at which it may be pruned; None: a fifth of its steps, or, where
    epochs or tokens say how many these are, those of the recipe."""
    at_once: PositiveInt = 4
    """Trials that each arm begins before it learns from any of them. So it does not depend on the machine,
    nor on which of them ends first, what is tried."""
    prune: Literal["median", "none"] = "median"
    """Whether a trial ends where all that it has reached is worse than the median of earlier ones there."""

    @field_validator("trials")
    @classmethod
    def _more_than_one(cls, given: int) -> int:
        if given < 2:
            raise ValueError("one trial is no search; give 2 or more")
        return given

    @field_validator("seeds")
    @classmethod
    def _each_once(cls, given: tuple[int, ...]) -> tuple[int, ...]:
        if not given or len(set(given)) < len(given):
            raise ValueError("give one or more seeds, each once")
        return given

    @field_validator("value")
    @classmethod
    def _of_validation(cls, given: str) -> str:
        if given.split("/")[0] != SPLIT or "/" not in given:
            raise ValueError(f"only what is logged of {SPLIT} may select, as validation/loss")
        return given

    def require_apart(self, seeds: Iterable[int]) -> None:
        """Raise UserError where a seed is one of the study's: what was selected by would be reported."""
        if shared := sorted(set(self.seeds) & set(seeds)):
            raise UserError(
                f"search.seeds={list(self.seeds)}: {shared[0]} is a seed of the study too; runs that select "
                "settings must not be those that are reported: give others"
            )


def take_search(tree: dict[str, Any]) -> SearchSpec | None:
    """Take the search out of a recipe's tree; None where it has none."""
    if "search" not in tree:
        return None
    return _checked(SearchSpec, tree.pop("search"), "search")


def take_own(settings: dict[str, Any], arm: str) -> dict[str, Span]:
    """Take an arm's own ranges out of its settings."""
    return _checked(OwnSearch, settings.pop("search", None), f"arms.{arm}.search").ranges


def _checked(section: type[S], given: Any, name: str) -> S:
    if not isinstance(given or {}, Mapping):
        raise UserError(f"'{name}' is a mapping of settings, got {given!r}")
    try:
        return section.model_validate(given or {})
    except ValidationError as error:
        lines = problems(error, lambda path: _keys(section, path), name.split("."))
        raise UserError("\n  ".join([f"'{name}' is not valid:", *lines])) from None


def _keys(section: type[Section], path: Sequence[Any]) -> list[str]:
    """Return the keys at a path: of the section, or of one of its ranges."""
    return list((Range if path else section).model_fields)
