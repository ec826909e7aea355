"""Score checkpoints: task metrics, retention, and how far predictions moved from the base's.

RUN is a run's folder: its exports are scored as its recipe says, beside it. Any other folder is a model or an
adapter (of --model, or of the base it names itself), which is scored on --tasks, into --output. Several ranks
share the items of each task: deepspeed launch/score.py ...
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from rankdrift.errors import UserError
from rankdrift.layout import RunLayout
from rankdrift.spec import Spec, parse_spec, read_spec


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("folders", type=Path, nargs="+", metavar="RUN|FOLDER", help="what to score")
    parser.add_argument("--step", type=int, action="append", default=[], help="which step of a run (all)")
    parser.add_argument("--base", action="store_true", help="score the base model too")
    parser.add_argument("--tasks", nargs="+", help="tasks, groups of them, or YAML files of your own")
    parser.add_argument("--split", nargs="+", choices=("validation", "test"), help="which splits (test)")
    parser.add_argument("--limit", type=int, help="most items of each task and split")
    parser.add_argument("--model", help="base model of adapters (default: the one they name)")
    parser.add_argument("--data", help="folder of data sets (default: the hub, or the run's own)")
    parser.add_argument(
        "--output", type=Path, default=Path("outputs/scores"), help="where scores of folders go"
    )
    parser.add_argument("--local_rank", type=int, help="given by the DeepSpeed launcher")


def run(arguments: argparse.Namespace) -> int:
    """Score what has no scores yet."""
    runs = [folder for folder in arguments.folders if RunLayout(folder).spec.exists()]
    if runs and len(arguments.folders) > 1:
        raise UserError(f"{runs[0]}: is a run, which is scored by itself; name it alone")
    if not runs and not arguments.tasks:
        raise UserError(
            f"{arguments.folders[0]}: is no run, so it has no tasks of its own; name some with --tasks"
        )
    # torch takes seconds to import, which a command's help need not wait for
    from rankdrift.scoring.folders import score_folders
    from rankdrift.scoring.ranks import rank_group
    from rankdrift.scoring.run import score_run

    with rank_group() as shares:
        if runs:
            spec = _changed(read_spec(RunLayout(runs[0]).spec), arguments)
            score_run(RunLayout(runs[0]), arguments.step, arguments.base, _say(), shares, spec)
        else:
            spec = _changed(
                parse_spec({"data": {"tasks": []}, "scoring": {"tasks": arguments.tasks}}), arguments
            )
            score_folders(
                arguments.folders, spec, arguments.model, arguments.base, arguments.output, _say(), shares
            )
    return 0


def _say() -> Callable[[str], None]:
    """Return what tells of progress: rank 0 alone speaks."""
    return print if os.environ.get("RANK", "0") == "0" else lambda line: None


def _changed(spec: Spec, arguments: argparse.Namespace) -> Spec:
    """Return the settings with what the command line says."""
    tree = spec.as_dict()
    given = {"tasks": arguments.tasks, "splits": arguments.split, "limit": arguments.limit}
    tree["scoring"] |= {key: value for key, value in given.items() if value is not None}
    tree["data"] |= {"root": arguments.data} if arguments.data else {}
    return parse_spec(tree)
