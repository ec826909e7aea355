"""Upload prepared data, an adapter, a model or a study's tables to the hub.

  FOLDER    an export, a merged or any other model, an adapter, a study (its tables), or a folder of tables
  data      the recipe's prepared rows, as Parquet (a folder of that name is ./data)
The repository is made if it is not there; what it holds already, unless that is the same, is replaced with
--force alone. Files are compared with their own checksums before, and with those that the hub states after it
(exit code 3 where they differ). HF_TOKEN says who uploads, HF_ENDPOINT where to; 'rankdrift fetch' brings it
back.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rankdrift.cli.data import add_splits, prepared
from rankdrift.errors import UserError
from rankdrift.spec import load_recipe

DATA = "data"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("what", metavar="FOLDER|data", help="what to upload")
    parser.add_argument("repository", metavar="OWNER/NAME", help="where to")
    parser.add_argument("--force", action="store_true", help="replace all that the repository holds")
    parser.add_argument("--private", action="store_true", help="make a repository that only its owner sees")
    parser.add_argument("--experiment", type=Path, help="recipe, as in launch/recipes/ (the demo's)")
    add_splits(parser)
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="change any setting")


def run(arguments: argparse.Namespace) -> int:
    """Upload it and say where it is; return 0. Raises UserError, IntegrityError."""
    from rankdrift.hub.connection import require_token

    require_token(arguments.repository)  # before rows are prepared
    print(_of_recipe(arguments) if arguments.what == DATA else _folder(arguments))
    return 0


def _of_recipe(arguments: argparse.Namespace) -> str:
    from rankdrift.data.summary import summarise
    from rankdrift.hub.upload import upload_data

    spec = load_recipe(arguments.experiment, arguments.overrides).spec()
    tables = prepared(spec, arguments.split)
    summaries = summarise(spec, tables)
    return upload_data(
        spec, tables, summaries, arguments.repository, arguments.force, arguments.private, _say
    )


def _folder(arguments: argparse.Namespace) -> str:
    from rankdrift.hub.upload import upload_folder

    if arguments.overrides or arguments.experiment or arguments.split:
        raise UserError(
            f"{arguments.what}: a folder has no settings and splits; leave them out, or upload 'data'"
        )
    return upload_folder(Path(arguments.what), arguments.repository, arguments.force, arguments.private, _say)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
