"""Prepare, describe or check the data of a recipe.

  prepare    tokenise what is not prepared yet; a run does it by itself where it has to
  summary    rows, lengths, cuts and labels of each task and split
  check      rows that cannot be used, duplicates, overlap; exit code 1 if there are findings
Prepared rows lie below RANKDRIFT_CACHE (default ~/.cache/rankdrift) and need no network; 'rankdrift upload
data' takes them to the hub.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rankdrift.spec import Spec, load_recipe

if TYPE_CHECKING:
    from rankdrift.data.token_table import TaskTables
    from rankdrift.tasks import Split

WIDTH = 160
"""Columns of a table that goes into a file or a pipe."""
TRAINED: tuple[Split, ...] = ("train", "validation")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    for name, action in ACTIONS.items():
        added = actions.add_parser(name, help=action.__doc__, description=action.__doc__)
        added.add_argument(
            "--experiment", type=Path, help="recipe, as in launch/recipes/ (default: the demo's)"
        )
        added.add_argument("overrides", nargs="*", metavar="key.path=value", help="change any setting")
        if name != "check":
            add_splits(added)
        if name == "prepare":
            added.add_argument("--again", action="store_true", help="also what is there: read the hub anew")
        if name in ("summary", "check"):
            added.add_argument("--json", action="store_true", help="as JSON")
        if name == "summary":
            added.add_argument("--picture", type=Path, metavar="FILE", help="draw lengths and labels (.png)")


def add_splits(parser: argparse.ArgumentParser) -> None:
    """Declare which splits are meant."""
    parser.add_argument(
        "--split",
        action="append",
        choices=("train", "validation", "test"),
        help="which split (default: train and validation); may be given several times",
    )


def run(arguments: argparse.Namespace) -> int:
    """Do it."""
    spec = load_recipe(arguments.experiment, arguments.overrides).spec()
    return ACTIONS[arguments.action](arguments, spec)


def prepare(arguments: argparse.Namespace, spec: Spec) -> int:
    """Tokenise what is not prepared yet."""
    from rankdrift.data.prepare import prepared_folder

    for split, tables in prepared(spec, arguments.split, arguments.again).items():
        for table in tables.tables:
            print(f"{table.task}, {split}: {len(table):,} rows, {len(table.input_ids):,} tokens")
    print(f"prepared in {prepared_folder()}")
    return 0


def summary(arguments: argparse.Namespace, spec: Spec) -> int:
    """Say what the rows of each task and split are like."""
    from dataclasses import asdict

    from rich.console import Console

    from rankdrift import files
    from rankdrift.data.summary import as_table, draw, summarise

    tables = prepared(spec, arguments.split)
    found = summarise(spec, tables)
    if arguments.json:
        print(files.canonical_json([asdict(of) for of in found]))
    else:
        console = Console()
        console.width = console.width if console.is_terminal else WIDTH
        console.print(as_table(found))
    if arguments.picture:
        draw(arguments.picture, found, tables)
    return 0


def check(arguments: argparse.Namespace, spec: Spec) -> int:
    """Say what is wrong with the rows; exit code 1 if there is anything."""
    from dataclasses import asdict

    from rankdrift import files
    from rankdrift.data.check import check as find
    from rankdrift.scoring.scored import scored_tasks

    found = find(spec, scored_tasks(spec, "test").tasks)
    if arguments.json:
        print(files.canonical_json([asdict(finding) for finding in found]))
    else:
        print("\n".join(finding.line() for finding in found) or "nothing is wrong")
    return 1 if found else 0


ACTIONS: dict[str, Callable[[argparse.Namespace, Spec], int]] = {
    "prepare": prepare,
    "summary": summary,
    "check": check,
}


def prepared(spec: Spec, splits: Sequence[Split] | None, again: bool = False) -> dict[Split, TaskTables]:
    """Return the prepared rows of some splits, of what is trained and selected by unless they are named."""
    from rankdrift.data.dataset import load_rows  # torch and transformers take seconds to import
    from rankdrift.models.base import load_tokenizer, resolve
    from rankdrift.progress import progress_lines

    tokenizer = load_tokenizer(resolve(spec.model.name, spec.model.revision))
    progress = progress_lines(lambda line: print(line, file=sys.stderr, flush=True))
    return {split: load_rows(spec, split, tokenizer, progress, again) for split in splits or TRAINED}
