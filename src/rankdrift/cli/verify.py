"""Check checkpoints and exports: manifests, checksums, names and shapes, NaN and infinity, logits."""

from __future__ import annotations

import argparse
from pathlib import Path

from rankdrift.errors import IntegrityError, UserError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "paths",
        type=Path,
        nargs="+",
        metavar="PATH",
        help="a checkpoint (RUN/checkpoints/step-N, a Trainer's checkpoint-N), an export, a run's folder",
    )
    parser.add_argument("--fast", action="store_true", help="leave out the checks that read all bytes")
    parser.add_argument(
        "--reload", action="store_true", help="load exports, compare their logits with the checkpoint's"
    )


def run(arguments: argparse.Namespace) -> int:
    """Check everything; return 0 if all is well, 3 if something is damaged, 2 if something cannot be read."""
    from rankdrift.verify.verify import Verdict, find, verify  # torch loads here, not for --help

    subjects = [subject for path in arguments.paths for subject in find(path, print)]
    verdict = verify(subjects, print, fast=arguments.fast, reload=arguments.reload)
    return {
        Verdict.WELL: 0,
        Verdict.UNREADABLE: UserError.exit_code,
        Verdict.DAMAGED: IntegrityError.exit_code,
    }[verdict]
