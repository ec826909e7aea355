"""Train one run under the DeepSpeed launcher (one process a rank).

A run that was interrupted goes on from its newest checkpoint when the same command is run again.
While it runs:
  SIGUSR1, or a file SAVE in its folder             save at the end of the step, go on
  SIGTERM, Ctrl-C, or a file STOP in its folder     save at the end of the step, stop
  Ctrl-C again                                      stop at once
Exit codes: 0 finished, 1 a rank failed by an error of its own, 2 input that cannot be used, 3 stored data
that is damaged, 4 a rank or its machine was lost (it died, hung or fell silent), 75 stopped on request and
resumable, 130 interrupted at once. A rank that is stopped or silent is lost after RANKDRIFT_SILENCE seconds
(default 20), one that hangs within a step after RANKDRIFT_HANG (default: nine tenths of DEEPSPEED_TIMEOUT,
minutes, default 10, that ranks wait for each other).
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from rankdrift import signals
from rankdrift.cli.main import program
from rankdrift.heartbeat.rank import beating
from rankdrift.hosts import slurm
from rankdrift.spec import analysis_settings, load_recipe
from rankdrift.training.stop_requests import listening


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--config", type=Path, required=True, help="DeepSpeed JSON, as in ds_configs/")
    parser.add_argument("--experiment", type=Path, help="recipe, as in launch/recipes/ (default: the demo's)")
    parser.add_argument("--arm", help="which of the recipe's arms to train (default: the first)")
    parser.add_argument("--seed", type=int, help="which seed (default: the recipe's first)")
    parser.add_argument(
        "--dry-run", action="store_true", help="say what the run would take (rankdrift plan), train nothing"
    )
    parser.add_argument("--local_rank", type=int, help="given by the DeepSpeed launcher")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="change any setting")


def run(arguments: argparse.Namespace) -> int:
    """Train."""
    slurm.describe_rank()
    if arguments.dry_run:
        return _plan(arguments)
    with listening() as requests, beating() as pulse:
        if "RANK" in os.environ:  # a launcher that is killed cannot stop its ranks
            signals.end_with_parent(signals.launcher_pid())
        spec = load_recipe(arguments.experiment, arguments.overrides).spec(arguments.arm, arguments.seed)
        from rankdrift.models.base import resolve  # torch and deepspeed take seconds to import: check first
        from rankdrift.training.collectives import process_group
        from rankdrift.training.run import train

        analysis_settings(spec.analysis)  # a mistake is to be told of before days of training
        resolve(spec.model.name, spec.model.revision)  # what has to be made is made before ranks form a group
        with process_group():
            train(spec, arguments.config, requests, pulse=pulse)
    return 0


def _plan(arguments: argparse.Namespace) -> int:
    """Say, once for all ranks that were started, what the run would take on so many."""
    if os.environ.get("RANK", "0") != "0":
        return 0
    spec = load_recipe(arguments.experiment, arguments.overrides).spec(arguments.arm, arguments.seed)
    from rankdrift.cli.plan import show
    from rankdrift.training.forecast import foresee

    analysis_settings(spec.analysis)
    show([foresee(spec, arguments.config, int(os.environ.get("WORLD_SIZE", "1")))], {})
    return 0


if __name__ == "__main__":  # deepspeed --module rankdrift.cli.train
    program(["train", *sys.argv[1:]])
