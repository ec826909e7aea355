"""Recipes: settings read from YAML, with arms and seeds, changed by dotted overrides.

A recipe (``launch/recipes/*.yaml``) holds the settings of :mod:`rankdrift.spec.sections`, and may hold
``arms`` (named sets of overrides: the methods that are compared), ``seeds``, and a ``grid`` of settings that
take several values (:mod:`rankdrift.spec.grid`), its own or an arm's. Settings may be searched before
(``search``, :mod:`rankdrift.spec.search`). One run is one arm at one seed. Runs on
one base model and the same data are a group, and compared with each other. What DeepSpeed does with memory
and communication is not here but in ``ds_configs/`` (see ``training/ds_config.py``); an arm may name its own
(``config``), and how many ranks it takes (``ranks``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import Field, ValidationError

from rankdrift import files, registry
from rankdrift.errors import UserError, require_known
from rankdrift.settings import PositiveInt, Section, problems
from rankdrift.spec import grid
from rankdrift.spec.grid import merged
from rankdrift.spec.search import RATE, SearchSpec, Span, take_own, take_search
from rankdrift.spec.sections import AnalysisSpec, Spec, method_name, method_section

RECIPES = Path(__file__).resolve().parents[1] / "recipes"
DEFAULT_RECIPE = RECIPES / "demo.yaml"


class Systems(Section):
    """What an arm says of the machines it trains on, which is no part of the experiment."""

    config: str | None = None
    """DeepSpeed JSON: a path, from the recipe's folder, or the name of one that comes with rankdrift."""
    ranks: PositiveInt | None = None
    """Ranks it trains on."""


class Recipe(Section):
    """A recipe as it was read: shared settings, arms, groups and seeds; every grid is expanded."""

    shared: dict[str, Any]
    arms: dict[str, dict[str, Any]]
    seeds: tuple[int, ...]
    groups: dict[str, dict[str, Any]] = Field(default_factory=lambda: dict[str, dict[str, Any]]({"": {}}))
    """Name -> base model and data; of a study that is one group, without a name."""
    systems: dict[str, Systems] = Field(default_factory=dict)
    """Arm -> what it says of the machines, where it says anything."""
    overrides: tuple[str, ...] = ()
    search: SearchSpec | None = None
    ranges: dict[str, dict[str, Span]] = Field(default_factory=dict)
    """Arm -> the ranges that are given for it, where settings are searched and any are."""
    found: dict[str, dict[str, dict[str, Any]]] = Field(default_factory=dict)
    """Group -> arm -> dotted keys with what a search has found: in the place of what the recipe says."""

    def spec(self, arm: str | None = None, seed: int | None = None, group: str | None = None) -> Spec:
        """Return one run's settings; the first arm, seed and group unless named.

        The recipe's come first, then what a search has found, then overrides.
        """
        arm = arm if arm is not None else next(iter(self.arms))
        require_known("arm", arm, self.arms)
        group = group if group is not None else next(iter(self.groups))
        require_known("group", group, self.groups)
        tree = merged(merged(self.shared, self.groups[group]), self.arms[arm])
        for key, value in self.found.get(group, {}).get(arm, {}).items():
            tree = merged(tree, grid.nested(key, value))
        tree = merged(tree, {"arm": arm, "seed": seed if seed is not None else self.seeds[0]})
        tree = apply_overrides(tree, self.overrides)
        if group:
            tree["study"] = f"{tree.get('study', Spec.model_fields['study'].default)}/{group}"
        return parse_spec(tree)

    def runs(self, group: str | None = None) -> list[Spec]:
        """Return every arm at every seed, of all groups or one; those of a group are comparable."""
        groups = self.groups if group is None else [group]
        return [spec for name in groups for spec in self._of_group(name)]

    def _of_group(self, group: str) -> list[Spec]:
        runs = [self.spec(arm, seed, group) for seed in self.seeds for arm in self.arms]
        for other in runs[1:]:
            for section in grid.COMPARED:
                if getattr(other, section) != getattr(runs[0], section):
                    raise UserError(
                        f"arms '{runs[0].arm}' and '{other.arm}' differ in '{section}': methods are compared "
                        f"on one base model and the same data; make it an axis of the grid, not of an arm"
                    )
        return runs


def load_recipe(path: Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe (the demo's by default); raise UserError naming the path and key that is wrong."""
    path = path or DEFAULT_RECIPE
    try:
        return recipe_of(read_tree(path), path.parent, overrides)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def recipe_of(tree: Mapping[str, Any], folder: Path, overrides: Sequence[str] = ()) -> Recipe:
    """Return the recipe of a tree as a file has it, in a folder; raise UserError for what is wrong in it."""
    recipe = _expanded(dict(tree), folder, tuple(overrides))
    recipe.runs()
    return recipe


def read_recipe(path: Path) -> Recipe:
    """Read a recipe that was written expanded, as a study's folder has it."""
    try:
        return Recipe.model_validate(files.read_json(path))
    except ValidationError as error:
        raise UserError(f"{path}: not a recipe of this version ({error.errors()[0]['msg']})") from None


def _expanded(tree: dict[str, Any], folder: Path, overrides: tuple[str, ...]) -> Recipe:
    """Return the recipe of a tree, which it takes apart, with every grid expanded."""
    given = tree.pop("arms", None) or {tree.get("arm", Spec.model_fields["arm"].default): {}}
    seeds = tree.pop("seeds", None) or [tree.get("seed", Spec.model_fields["seed"].default)]
    axes, search = _grid(tree), take_search(tree)
    if not isinstance(given, dict) or not all(isinstance(arm, dict) for arm in given.values()):
        raise UserError(f"'arms' must map each arm's name to its settings, got {given!r}")
    if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds):
        raise UserError(f"'seeds' must be a list of whole numbers, got {seeds!r}")
    if len(set(seeds)) < len(seeds):
        raise UserError(f"'seeds' has one twice: {seeds!r}; give each once")
    if any(override.startswith("seed=") for override in overrides):
        seeds = seeds[:1]
    if search:
        search.require_apart(seeds)
    compared = {key: values for key, values in axes.items() if grid.is_of_group(key)}
    others = {key: values for key, values in axes.items() if key not in compared}
    shared = _systems(tree, folder)
    arms, systems, ranges = _arms(given, others, folder, search)
    return Recipe(
        shared=tree,
        arms=arms,
        seeds=tuple(seeds),
        groups=dict(grid.points(compared)),
        systems={arm: _first_of(systems[arm], shared) for arm in arms},
        overrides=overrides,
        search=search,
        ranges=ranges,
    )


def _arms(
    given: Mapping[str, dict[str, Any]], axes: Mapping[str, Any], folder: Path, search: SearchSpec | None
) -> tuple[dict[str, dict[str, Any]], dict[str, Systems], dict[str, dict[str, Span]]]:
    """Return every arm, and every point of its grid and of the study's, by name; systems and ranges too."""
    arms: dict[str, dict[str, Any]] = {}
    systems: dict[str, Systems] = {}
    ranges: dict[str, dict[str, Span]] = {}
    for arm, written in given.items():
        settings = dict(written)
        of_arm, own = _systems(settings, folder), _grid(settings)
        searched = _searched(settings, str(arm), {**own, **axes}, search)
        for key in own:
            if grid.is_of_group(key):
                raise UserError(
                    f"arms.{arm}.grid: '{key}' is of what all arms have in common; put it in the study's grid"
                )
        for point, changes in grid.points({**own, **axes}):
            name = grid.require_name(grid.joined([str(arm), point]), "arm")
            if name in arms:
                raise UserError(f"two arms have the name '{name}'; give one another")
            arms[name], systems[name] = merged(settings, changes), of_arm
            if searched:
                ranges[name] = searched
    return arms, systems, ranges


def _searched(
    settings: dict[str, Any], arm: str, axes: Mapping[str, Any], search: SearchSpec | None
) -> dict[str, Span]:
    """Take an arm's own ranges out of its settings; return all that it has, of the search too."""
    if search is None:
        if "search" in settings:
            raise UserError(f"arms.{arm}.search: the recipe has no search; give it one, 'search: {{}}'")
        return {}
    ranges = {**search.ranges, **take_own(settings, arm)}
    for key in ranges or (RATE,):
        if key in axes:
            raise UserError(f"'{key}' is an axis of the grid of '{arm}', and searched: do one of these")
    return ranges


def _grid(tree: dict[str, Any]) -> dict[str, Any]:
    """Take the axes out of a tree."""
    axes = tree.pop("grid", None) or {}
    if not isinstance(axes, dict):
        raise UserError(f"'grid' must map dotted keys to their values, got {axes!r}")
    return {str(key): values for key, values in axes.items()}


def _systems(tree: dict[str, Any], folder: Path) -> Systems:
    """Take what is said of the machines out of a tree."""
    given = {key: tree.pop(key) for key in Systems.model_fields if key in tree}
    try:
        found = Systems.model_validate(given)
    except ValidationError as error:
        raise _invalid(problems(error, lambda _: list(Systems.model_fields))) from None
    if found.config is None:
        return found
    beside = folder / found.config
    return Systems(config=str(beside if beside.exists() else found.config), ranks=found.ranks)


def _first_of(own: Systems, shared: Systems) -> Systems:
    """Return what an arm says, and where it says nothing, what the recipe says."""
    return Systems(config=own.config or shared.config, ranks=own.ranks or shared.ranks)


def read_spec(path: Path) -> Spec:
    """Read the ``spec.json`` of a run."""
    try:
        return parse_spec(files.read_json(path))
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def parse_spec(tree: Mapping[str, Any]) -> Spec:
    """Check a tree of plain values; raise UserError that names the key, the value and the near miss."""
    try:
        return Spec.model_validate(tree)
    except ValidationError as error:
        raise _invalid(problems(error, lambda path: _known_keys(tree, path))) from None


def analysis_settings(analysis: AnalysisSpec) -> tuple[Section, ...]:
    """Return the settings that are given of any analysis, checked; raise UserError as ``parse_spec`` does.

    It imports these analyses, and with them torch: commands check all else before.
    """
    found, wrong = [], []
    for name, given in analysis.given.items():
        section: type[Section] | None = registry.load("analysis", name).settings
        if section is None:
            raise UserError(f"analysis.{name}: that analysis has no settings; leave it out")
        keys = list(section.model_fields)
        try:
            found.append(section.model_validate(given))
        except ValidationError as error:
            wrong += problems(error, lambda _, keys=keys: keys, ("analysis", name))  # type: ignore[misc]
    if wrong:
        raise _invalid(wrong)
    return tuple(found)


def _invalid(lines: Sequence[str]) -> UserError:
    return UserError("\n  ".join(["the experiment is not valid:", *lines]))


def apply_overrides(tree: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """Return the tree with ``key.path=value`` overrides applied; values are read as YAML."""
    result = merged(tree, {})
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key:
            raise UserError(f"override '{override}' is not of the form key.path=value")
        result = merged(result, grid.nested(key, _parse_value(override, value)))
    return result


def _parse_value(override: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"override '{override}': the value is not valid YAML ({error})") from None


def read_tree(path: Path) -> dict[str, Any]:
    """Return what a recipe's file says; raise UserError where there is none, or it is no mapping."""
    try:
        tree = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        names = ", ".join(sorted(str(recipe) for recipe in RECIPES.glob("*.yaml")))
        raise UserError(f"{path}: no such recipe; recipes that come with rankdrift: {names}") from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(f"{path}: not a valid YAML recipe ({error})") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: a recipe is a mapping of settings, got {type(tree).__name__}")
    return tree


def _known_keys(tree: Mapping[str, Any], path: Sequence[Any]) -> list[str]:
    """Return the keys of the section at a path of keys, in the tree that was given."""
    section: Any = Spec
    for part in path:
        if isinstance(part, int):  # one of several in a list
            section = get_args(section)[0]
        elif section is Spec and part == "method":
            section = method_section(method_name(tree["method"]))
        else:
            section = section.model_fields[part].annotation
    return list(section.model_fields)
