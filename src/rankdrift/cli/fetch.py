"""Fetch base models and data into the cache, or an artifact of the hub into a folder.

  MODEL                     a base model, as training has it: tiny, smollm2-135m, OWNER/NAME, a .gguf file
  TASK                      its data, all splits: sst2, a group as glue, a YAML file of your own
  OWNER/NAME --to FOLDER    an artifact: prepared data, an adapter, a model or tables that were uploaded
Without a name: the base models and the data of all tasks of the recipe. What comes from the hub (HF_ENDPOINT;
HF_TOKEN for what is private) is compared with the checksums that it states; exit code 3 where it differs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rankdrift import registry
from rankdrift.errors import UserError, did_you_mean
from rankdrift.spec import DataSpec, load_recipe

MADE = ("tiny", "smollm2-135m")
"""Base models by a name of our own."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="what to fetch; settings of the recipe as key.path=value"
    )
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="where an artifact goes")
    parser.add_argument("--revision", help="branch, tag or commit of a model or artifact (the newest)")
    parser.add_argument("--force", action="store_true", help="replace what the folder holds")
    parser.add_argument("--experiment", type=Path, help="recipe, as in launch/recipes/ (default: the demo's)")


def run(arguments: argparse.Namespace) -> int:
    """Fetch all that is named, or the recipe's; return 0. Raises UserError, IntegrityError."""
    names = [word for word in arguments.names if "=" not in word]
    overrides = [word for word in arguments.names if "=" in word]
    if arguments.force and not arguments.to:
        raise UserError("--force replaces what a folder holds; name it with --to")
    if arguments.to:
        _artifact(names, arguments)
    elif names:
        data = load_recipe(arguments.experiment, overrides).spec().data
        for name in _expanded(names):
            _one(name, arguments.revision, data)
    else:
        _of_recipe(arguments.experiment, overrides)
    return 0


def _artifact(names: Sequence[str], arguments: argparse.Namespace) -> None:
    from rankdrift.hub.download import download

    if len(names) != 1:
        raise UserError(
            f"--to {arguments.to}: takes one artifact, got {', '.join(names) or 'none'}; give OWNER/NAME"
        )
    download(names[0], arguments.to, arguments.revision, arguments.force, _say)


def _expanded(names: Sequence[str]) -> tuple[str, ...]:
    """Return names, with tasks for a group of them; raise UserError for one that nothing can have."""
    from rankdrift.tasks import GROUPS

    for name in names:
        known = [*registry.names("task"), *GROUPS, *MADE]
        if name not in known and not _is_file(name) and "/" not in name:
            raise UserError(
                f"unknown name '{name}': {did_you_mean(name, known)} A model may also be a folder, a .gguf "
                "file or OWNER/NAME, a task a .yaml file"
            )
    return registry.tasks_of(names)


def _is_file(name: str) -> bool:
    return name.endswith((*registry.TASK_FILES, ".gguf")) or Path(name).is_dir()


def _one(name: str, revision: str | None, data: DataSpec) -> None:
    if name in registry.names("task") or name.endswith(registry.TASK_FILES):
        _task(name, data)
    else:
        _base(name, revision)


def _of_recipe(experiment: Path | None, overrides: Sequence[str]) -> None:
    """Fetch what the runs of a recipe take, and its scores."""
    from rankdrift.scoring.scored import scored_tasks

    specs = load_recipe(experiment, overrides).runs()
    for name, revision in dict.fromkeys((spec.model.name, spec.model.revision) for spec in specs):
        _base(name, revision)
    done: set[str] = set()
    for spec in specs:
        scored = spec.scoring.tasks or [task.name for task in scored_tasks(spec, "test").tasks]
        for name in (*spec.data.tasks, *scored):
            if name not in done:
                _task(name, spec.data)
            done.add(name)


def _base(name: str, revision: str | None) -> None:
    from rankdrift.hub.base_models import fetch_base  # torch loads here, not for --help

    print(f"base model {name}: {fetch_base(name, revision, _say)}")


def _task(name: str, data: DataSpec) -> None:
    from rankdrift.hub.task_data import fetch_task

    rows = fetch_task(registry.load("task", name), data, _say)
    print(f"task {name}: {', '.join(f'{split} {count:,} rows' for split, count in rows.items())}")


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
