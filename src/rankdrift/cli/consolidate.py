"""Turn a run's sharded checkpoints into model or adapter folders.

Without --step or --watch, every complete checkpoint is exported; exports that are up to date are kept.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from rankdrift import files
from rankdrift.errors import UserError
from rankdrift.layout import RunLayout
from rankdrift.progress import say

_UNITS = {"": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}


def size(text: str) -> int:
    """Return the bytes a text such as "5GB" or "500MB" states.

    >>> size("5GB"), size("1.5 MiB")
    (5000000000, 1572864)
    """
    match = re.fullmatch(r"([0-9.]+)\s*([A-Z]*)", text.strip().upper())
    if not match or match[2] not in _UNITS or match[1].count(".") > 1 or match[1] == ".":
        raise argparse.ArgumentTypeError(f"{text!r} is not a size such as 5GB, 500MB or 2GiB")
    return int(float(match[1]) * _UNITS[match[2]])


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "run",
        type=Path,
        metavar="RUN",
        help="the run's folder (.../runs/<arm>-seed<seed>), or a checkpoint of the Hugging Face Trainer or "
        "of accelerate (checkpoint-N)",
    )
    of_others = parser.add_argument_group("checkpoints of the Trainer or of accelerate")
    of_others.add_argument("--output", type=Path, help="folder of the export (CHECKPOINT/consolidated)")
    of_others.add_argument("--model", type=Path, help="its settings (beside the shards)")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, action="append", metavar="N", help="a step to export (repeatable)")
    which.add_argument("--best", action="store_true", help="the best checkpoint, by the run's training.best")
    which.add_argument("--all", action="store_true", help="every complete checkpoint (the default)")
    which.add_argument(
        "--watch", action="store_true", help="export checkpoints as they come, until the run ends"
    )
    parser.add_argument("--jobs", type=int, default=1, metavar="K", help="processes that share the steps")
    parser.add_argument(
        "--dtype", choices=("fp32", "bf16", "fp16"), default="fp32", help="dtype of the exports"
    )
    parser.add_argument(
        "--shard-size", type=size, default="5GB", metavar="SIZE", help="of a model's weights files (5GB)"
    )
    parser.add_argument(
        "--merge", action="store_true", help="LoRA: the base with the adapter in it, into RUN/merged"
    )


def run(arguments: argparse.Namespace) -> int:
    """Export the checkpoints, a line a tenth of the way; return 0. Raises UserError."""
    from rankdrift.export.consolidate import consolidate_run  # torch loads here, not for --help
    from rankdrift.export.consolidate_folder import consolidate_folder
    from rankdrift.export.contents import Options
    from rankdrift.export.watch import watch
    from rankdrift.zero_checkpoint.trainer_folder import trainer_folder

    layout = RunLayout(arguments.run)
    options = Options(arguments.dtype, arguments.shard_size, arguments.merge)
    if source := trainer_folder(arguments.run):
        consolidate_folder(source, arguments.output, arguments.model, options, say)
        return 0
    if arguments.output or arguments.model:
        raise UserError(
            f"{arguments.run}: --output and --model are for checkpoints of the Trainer or of accelerate, and "
            "this is none (no file 'latest' that names a folder of shards in it)"
        )
    if arguments.watch:
        watch(layout, options, say)
    elif arguments.best:
        consolidate_run(layout, [best_step(layout)], options, arguments.jobs, say)
    else:
        consolidate_run(layout, arguments.step, options, arguments.jobs, say)
    return 0


def best_step(run: RunLayout) -> int:
    """Return the step that a run calls its best; raise UserError if it has not said."""
    if not run.best.is_file():
        raise UserError(
            f"{run.best}: missing; a run writes it where it saves a step that is evaluated "
            "(training.eval_every); name a step with --step N"
        )
    return int(files.read_json(run.best)["step"])
