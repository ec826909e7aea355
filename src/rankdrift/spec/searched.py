"""The arms of a recipe that are searched: over what, from where, and as which runs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from rankdrift import files, registry
from rankdrift.errors import UserError, did_you_mean
from rankdrift.spec import grid
from rankdrift.spec.grid import merged
from rankdrift.spec.identity import flattened, role
from rankdrift.spec.recipe import Recipe, parse_spec
from rankdrift.spec.search import RATE, Range, SearchSpec, Span
from rankdrift.spec.sections import Spec
from rankdrift.spec.trials import ALONE

FACTOR = 100.0
"""The largest learning rate over the smallest, of an arm that is given no ranges; its method's own rate
(docs/methods.md) is in the middle."""
EVALUATIONS = 5
"""Evaluations of a trial where nobody has said how many."""
FOLDER = "search"
"""Folder of a study that holds its trials."""
NOT_SEARCHED = {
    "method.name": "methods are compared: give each an arm",
    **dict.fromkeys(("training.steps", "training.epochs", "training.tokens"), "it is the budget"),
    **dict.fromkeys(("seed", "arm", "study", "output"), "it is no setting of what is trained"),
}


@dataclass(frozen=True)
class SearchedArm:
    """One arm in one group, and what is searched of it."""

    group: str
    arm: str
    spec: Spec
    """The arm as the recipe has it."""
    search: SearchSpec
    ranges: Mapping[str, Span]
    """Dotted key -> range, whose ends are whole numbers where only these are, or choices."""

    @property
    def name(self) -> str:
        """The arm, behind its group where there are several."""
        return f"{self.group}/{self.arm}" if self.group else self.arm

    @property
    def digest(self) -> str:
        """SHA-256 of the search: what is tried, in what, judged by what; not of how many trials it is."""
        fixed = {
            key: value
            for key, value in flattened(self.spec).items()
            if role(key) in ("identity", "content") and key not in (*self.ranges, "seed")
        }
        ranges = {key: _plain(span) for key, span in self.ranges.items()}
        return files.digest_json(
            [fixed, ranges, self.search.model_dump(mode="json", exclude={"trials", "ranges"})]
        )

    @property
    def own(self) -> dict[str, Any] | None:
        """The settings that the recipe has; None where they are not within the ranges."""
        given = flattened(self.spec)
        point = {key: given[key] for key in self.ranges}
        return point if all(_holds(span, point[key]) for key, span in self.ranges.items()) else None

    def trial(self, number: int, seed: int, settings: Mapping[str, Any]) -> Spec:
        """Return one run of a trial: the study's run with other settings, and nothing beside its steps."""
        tree = self.spec.as_dict()
        if self.search.steps:
            tree = merged(tree, {"training": {"steps": self.search.steps}})
        for key, value in settings.items():
            tree = merged(tree, grid.nested(key, value))
        name = f"{self.arm}-trial{number:03d}"
        tree |= {"study": f"{self.spec.study}/{FOLDER}", "arm": name, "seed": seed}
        alone = {key: value for key, value in ALONE.items() if key not in grid.LENGTHS}
        tree["training"] |= (
            alone | self._evaluated(tree["training"]) | {"probe_every": 0, "probe_conflict": False}
        )
        return parse_spec(tree)

    def _evaluated(self, training: Mapping[str, Any]) -> dict[str, Any]:
        """Return when a trial is evaluated, and what is taken then."""
        every = self.search.eval_every
        if every is None and (steps := training.get("steps")):
            every = max(1, steps // EVALUATIONS)
        of_loss = self.search.value.endswith("/loss")
        return {
            "eval_every": every or training["eval_every"] or training["save_every"],
            "eval_items": 0 if of_loss else training["eval_items"],
            "best": self.search.value,
        }


def searched_arms(recipe: Recipe) -> list[SearchedArm]:
    """Return what a recipe's search is about, group by group.

    Raises UserError where it has none, or a range cannot be: of a setting that the arm lacks, that changes no
    weight, that is compared or is the budget, or with an end that is no value of it.
    """
    if recipe.search is None:
        raise UserError("the recipe has no search; give it one, 'search: {}' for learning rates alone")
    return list(_arms(recipe, recipe.search))


def _arms(recipe: Recipe, search: SearchSpec) -> Iterator[SearchedArm]:
    plain = recipe.model_copy(update={"found": {}})
    for group in recipe.groups:
        for arm in recipe.arms:
            spec = plain.spec(arm, search.seeds[0], group)
            ranges = recipe.ranges.get(arm) or {RATE: _around(spec)}
            for key in ranges:
                _require_setting(key, spec)
            found = SearchedArm(
                group, arm, spec, search, {k: _of_kind(k, v, spec) for k, v in ranges.items()}
            )
            _require_values(found)
            yield found


def require_not_overridden(recipe: Recipe, arms: list[SearchedArm]) -> None:
    """Raise UserError where the command sets what is searched: all trials would be alike."""
    for override in recipe.overrides:
        key = override.partition("=")[0]
        for arm in arms:
            if any(f"{searched}.".startswith(f"{key}.") for searched in arm.ranges):
                raise UserError(f"'{override}': '{key}' is searched ({arm.name}); leave it out here")


def _around(spec: Spec) -> Range:
    """Return the range around the rate that a method comes with."""
    rate: float = registry.load("method", spec.method.name).learning_rate
    return Range(low=rate / FACTOR**0.5, high=rate * FACTOR**0.5, log=True)


def _require_setting(key: str, spec: Spec) -> None:
    known = flattened(spec)
    if why := NOT_SEARCHED.get(key):
        raise UserError(f"search: '{key}' cannot be searched: {why}")
    if grid.is_of_group(key):
        raise UserError(f"search: '{key}' is of what all arms have in common; make it an axis of the grid")
    if key not in known:
        whose = f"'{spec.arm}' ({spec.method.name})" if key.startswith("method.") else "an experiment"
        raise UserError(
            f"search: {whose} has no '{key}': {did_you_mean(key, known)} "
            "What one arm alone has is in its own search"
        )
    if role(key) != "identity":
        raise UserError(f"search: '{key}' changes nothing that is trained")


def _of_kind(key: str, span: Span, spec: Spec) -> Span:
    """Return a range with ends that are whole where the setting takes no fraction, else with fractions."""
    if isinstance(span, tuple):
        return span
    whole = all(isinstance(end, int) for end in span.ends) and not _takes(spec, key, span.low + 0.5)
    kind = int if whole else float
    return Range(low=kind(span.low), high=kind(span.high), log=span.log)


def _takes(spec: Spec, key: str, value: Any) -> bool:
    try:
        parse_spec(merged(spec.as_dict(), grid.nested(key, value)))
    except UserError:
        return False
    return True


def _require_values(arm: SearchedArm) -> None:
    """Raise UserError where an end or a choice is no value of its setting, or no trial can be so long."""
    for key, span in arm.ranges.items():
        for value in span if isinstance(span, tuple) else span.ends:
            try:
                arm.trial(0, arm.search.seeds[0], {key: value})
            except UserError as error:
                raise UserError(f"search of '{arm.name}', {key}={value!r}: {error}") from None


def _holds(span: Span, value: Any) -> bool:
    if isinstance(span, tuple):
        return value in span
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return number and span.low <= value <= span.high


def _plain(span: Span) -> Any:
    return list(span) if isinstance(span, tuple) else span.model_dump(mode="json")
