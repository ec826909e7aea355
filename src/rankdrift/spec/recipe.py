"""Recipes: settings read from YAML, with arms and seeds, changed by dotted overrides.

A recipe (``launch/recipes/*.yaml``) holds the settings of :mod:`rankdrift.spec.sections`, and may hold
``arms`` (named sets of overrides: the methods that are compared) and ``seeds``. One run is one arm at one
seed. What DeepSpeed does with memory and communication is not here but in ``ds_configs/`` (see
``training/ds_config.py``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import ValidationError

from rankdrift import files, registry
from rankdrift.errors import UserError, did_you_mean
from rankdrift.settings import Section, problems
from rankdrift.spec.sections import AnalysisSpec, Spec, method_name, method_section

LENGTHS = ("steps", "epochs", "tokens")
"""Settings of which a later one takes the place of an earlier one, whatever its name."""
RECIPES = Path(__file__).resolve().parents[1] / "recipes"
DEFAULT_RECIPE = RECIPES / "demo.yaml"


class Recipe(Section):
    """A recipe as it was read: shared settings, arms and seeds."""

    shared: dict[str, Any]
    arms: dict[str, dict[str, Any]]
    seeds: tuple[int, ...]
    overrides: tuple[str, ...] = ()

    def spec(self, arm: str | None = None, seed: int | None = None) -> Spec:
        """Return one run's settings; the first arm and seed unless named. Overrides come last."""
        arm = arm if arm is not None else next(iter(self.arms))
        if arm not in self.arms:
            raise UserError(f"unknown arm '{arm}': {did_you_mean(arm, self.arms)}")
        tree = _merged(self.shared, self.arms[arm])
        tree = _merged(tree, {"arm": arm, "seed": seed if seed is not None else self.seeds[0]})
        return parse_spec(apply_overrides(tree, self.overrides))

    def runs(self) -> list[Spec]:
        """Return every arm at every seed; they must share the base model and the data to be compared."""
        runs = [self.spec(arm, seed) for seed in self.seeds for arm in self.arms]
        for other in runs[1:]:
            for section in ("model", "data"):
                if getattr(other, section) != getattr(runs[0], section):
                    raise UserError(
                        f"arms '{runs[0].arm}' and '{other.arm}' differ in '{section}': a study compares "
                        "methods on one base model and the same data; make two studies"
                    )
        return runs


def load_recipe(path: Path | None = None, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe (the demo's by default); raise UserError naming the path and key that is wrong."""
    path = path or DEFAULT_RECIPE
    tree = _read_yaml(path)
    arms = tree.pop("arms", None) or {tree.get("arm", Spec.model_fields["arm"].default): {}}
    seeds = tree.pop("seeds", None) or [tree.get("seed", Spec.model_fields["seed"].default)]
    if not isinstance(arms, dict) or not all(isinstance(arm, dict) for arm in arms.values()):
        raise UserError(f"{path}: 'arms' must map each arm's name to its settings, got {arms!r}")
    if not isinstance(seeds, list) or not all(type(seed) is int for seed in seeds):
        raise UserError(f"{path}: 'seeds' must be a list of whole numbers, got {seeds!r}")
    if any(override.startswith("seed=") for override in overrides):
        seeds = seeds[:1]
    recipe = Recipe(shared=tree, arms=arms, seeds=tuple(seeds), overrides=tuple(overrides))
    try:
        recipe.runs()
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return recipe


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
    result = _merged(tree, {})
    for override in overrides:
        key, separator, value = override.partition("=")
        if not separator or not key:
            raise UserError(f"override '{override}' is not of the form key.path=value")
        nested: Any = _parse_value(override, value)
        for part in reversed(key.split(".")):
            nested = {part: nested}
        result = _merged(result, nested)
    return result


def _parse_value(override: str, value: str) -> Any:
    try:
        return yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise UserError(f"override '{override}': the value is not valid YAML ({error})") from None


def _read_yaml(path: Path) -> dict[str, Any]:
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


def _merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    lengths = [key for key in LENGTHS if changes.get(key) is not None]  # another way to say how long a run is
    result = {key: value for key, value in base.items() if not lengths or key not in LENGTHS}
    for key, value in changes.items():
        below = result.get(key)
        result[key] = _merged(below, value) if isinstance(below, dict) and isinstance(value, dict) else value
    return result


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
