"""What a search found, as a small YAML that a study reads, on this machine or another."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from rankdrift import files
from rankdrift.errors import UserError
from rankdrift.settings import Section
from rankdrift.spec import Recipe
from rankdrift.spec.searched import SearchedArm, searched_arms
from rankdrift.studies.search.ledger import Ledger
from rankdrift.studies.search.records import best

HEAD = """\
# What 'rankdrift search' found for every arm: settings in the place of the recipe's own ('rankdrift study').
"""


class FoundArm(Section):
    """What was found for one arm."""

    settings: dict[str, Any]
    """Dotted key -> value."""
    value: float
    of: str
    trial: int
    trials: int
    seeds: tuple[int, ...]
    digest: str
    """Of the search: of what, in what, judged by what."""


class Found(Section):
    """What was found: group -> arm."""

    groups: dict[str, dict[str, FoundArm]]


def found_by(ledger: Ledger) -> Found:
    """Return the best trial of every arm; of an arm that has none, nothing."""
    groups: dict[str, dict[str, FoundArm]] = {}
    for arm in ledger.arms:
        record = ledger.of(arm)
        won = best(record.trials, ledger.groups[arm.group].is_better_low)
        if won is not None:
            groups.setdefault(arm.group, {})[arm.arm] = FoundArm(
                settings=won.settings,
                value=won.value or 0.0,
                of=arm.search.value,
                trial=won.number,
                trials=len(record.trials),
                seeds=arm.search.seeds,
                digest=arm.digest,
            )
    return Found(groups=groups)


def write_found(path: Path, found: Found) -> None:
    """Write what was found."""
    files.write_text(path, HEAD + yaml.safe_dump(found.model_dump(mode="json"), sort_keys=False))


def read_found(path: Path) -> Found:
    """Read what was found; raise UserError where the file is missing, or is something else."""
    try:
        return Found.model_validate(yaml.safe_load(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; 'rankdrift search' writes it") from None
    except (yaml.YAMLError, UnicodeDecodeError, IsADirectoryError) as error:
        raise UserError(f"{path}: not a valid YAML file ({error})") from None
    except ValidationError as error:
        raise UserError(f"{path}: not what a search found ({error.errors()[0]['msg']})") from None


def with_found(recipe: Recipe, path: Path) -> Recipe:
    """Return the recipe with what was found in the place of what it says; overrides still come last.

    Raises UserError where the file is of another search, or lacks an arm.
    """
    found = read_found(path).groups
    for arm in searched_arms(recipe):
        _require_of(arm, found, path)
    return recipe.model_copy(
        update={
            "found": {
                group: {arm: found[group][arm].settings for arm in recipe.arms} for group in recipe.groups
            }
        }
    )


def _require_of(arm: SearchedArm, found: Mapping[str, Mapping[str, FoundArm]], path: Path) -> None:
    mine = found.get(arm.group, {}).get(arm.arm)
    if mine is None:
        raise UserError(f"{path}: has nothing for '{arm.name}'; 'rankdrift search' goes on with what is left")
    if mine.digest != arm.digest:
        raise UserError(
            f"{path}: is of another search of '{arm.name}' (other ranges, settings or seeds than the "
            "recipe's); search again, or give the recipe that was searched"
        )
