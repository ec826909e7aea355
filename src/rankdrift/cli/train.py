"""Train one run under the DeepSpeed launcher (one process a rank)."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rankdrift.cli.main import main
from rankdrift.spec import load_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("--config", type=Path, required=True, help="DeepSpeed JSON, as in ds_configs/")
    parser.add_argument("--experiment", type=Path, help="recipe, as in launch/recipes/ (default: the demo's)")
    parser.add_argument("--arm", help="which of the recipe's arms to train (default: the first)")
    parser.add_argument("--seed", type=int, help="which seed (default: the recipe's first)")
    parser.add_argument("--local_rank", type=int, help="given by the DeepSpeed launcher")
    parser.add_argument("overrides", nargs="*", metavar="key.path=value", help="change any setting")


def run(arguments: argparse.Namespace) -> int:
    """Train."""
    spec = load_recipe(arguments.experiment, arguments.overrides).spec(arguments.arm, arguments.seed)
    from rankdrift.training.engine import process_group  # deepspeed takes seconds to import: check first
    from rankdrift.training.trainer import train

    with process_group():
        train(spec, arguments.config)
    return 0


if __name__ == "__main__":  # deepspeed --module rankdrift.cli.train
    sys.exit(main(["train", *sys.argv[1:]]))
