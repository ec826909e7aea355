"""The ``rankdrift`` command: finds the subcommand by file name and turns a user's error into one message.

Each module ``cli/<command>.py`` has a docstring (its help), ``add_arguments(parser)`` and
``run(arguments) -> int``. Exit codes: 0 done, 1 a failure, 2 input that cannot be used, 3 stored data that is
damaged, 4 a rank was lost, 75 stopped on request and resumable, 130 interrupted.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import logging
import os
import pkgutil
import sys
import time
import warnings
from collections.abc import Sequence
from types import ModuleType
from typing import NoReturn

from rankdrift import __version__, cli
from rankdrift.errors import INTERRUPTED, Preempted, RankError, UserError

GRACE = 5.0  # seconds
GPU_DEVICES = ("/dev/nvidiactl", "/dev/kfd")  # NVIDIA, AMD
REFUSALS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS})
"""What a machine refuses: a full disk, a permission. Any other OSError may be a mistake of ours and keeps
its traceback, as all of them do in a rank's log."""


def program(argv: Sequence[str] | None = None) -> NoReturn:
    """Run one command and end the process with its exit code."""
    status = main(argv)
    if "RANK" in os.environ:  # it was a rank of a process group
        leave(status)
    sys.exit(status)


def leave(status: int) -> NoReturn:
    """End the process without Python's finalisation, which now and then aborts a rank that is done.

    Threads of gloo outlive ``destroy_process_group``, since DeepSpeed keeps its groups, and may still let go
    of a collective's tensors; a thread that asks a finalised Python for its lock ends the process with
    SIGABRT (pytorch/pytorch#179291).
    """
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit code."""
    _quieten_libraries()
    arguments = _parse(argv)
    try:
        status: int = _command(arguments.command).run(arguments)
        return status
    except UserError as error:
        if _speaks_for_all():
            print(f"rankdrift {arguments.command}: error: {error}", file=sys.stderr)
        else:  # the launcher kills all ranks as soon as one has gone: let rank 0 speak first
            time.sleep(GRACE)
        return error.exit_code
    except RankError as error:  # of each rank another one, and rank 0 may be the one that is lost
        print(f"rankdrift {arguments.command}: failed: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:
        if error.errno not in REFUSALS or "RANK" in os.environ:
            raise
        where = f"{error.filename}: " if error.filename else ""
        print(f"rankdrift {arguments.command}: failed: {where}{error.strerror}", file=sys.stderr)
        return 1
    except Preempted as stop:
        if _speaks_for_all():
            print(f"rankdrift {arguments.command}: stopped: {stop}", file=sys.stderr)
        return stop.exit_code
    except KeyboardInterrupt:
        if arguments.command == "analyze" and _speaks_for_all():
            print("\nrankdrift analyze: interrupted; the same command goes on from there", file=sys.stderr)
        return INTERRUPTED


def _speaks_for_all() -> bool:
    """Whether this process says what every rank meets."""
    return os.environ.get("RANK", "0") == "0"


def _quieten_libraries() -> None:
    """Keep other packages' bars and notes to their own developers out of our output."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # ranks and workers are processes already
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    if not any(map(os.path.exists, GPU_DEVICES)):
        os.environ.setdefault("DS_ACCELERATOR", "cpu")  # else DeepSpeed warns in every process
    for library in ("transformers", "peft", "torch.distributed"):
        warnings.filterwarnings("ignore", category=FutureWarning, module=library)


def commands() -> list[str]:
    """Return the names of the commands."""
    return sorted(
        module.name
        for module in pkgutil.iter_modules(cli.__path__)
        if module.name[0] != "_" and module.name != "main"
    )


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Return the arguments; end the process with 2 where they cannot be understood.

    argparse takes positional arguments in one piece, and says of those behind it no more than that they are
    unrecognized.
    """
    parser = _parser()
    arguments, left = parser.parse_known_args(argv)
    if left:
        advice = "" if left[0].startswith("-") else " (names and folders go before the options)"
        parser.error(f"not understood: {' '.join(left)}{advice}")
    return arguments


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rankdrift", description="Full fine-tuning against LoRA, measured.")
    parser.add_argument("--version", action="version", version=__version__)
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in commands():
        module = _command(name)
        summary = (module.__doc__ or "").strip().splitlines()[0]
        added = subparsers.add_parser(
            name,
            help=summary,
            description=module.__doc__,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        module.add_arguments(added)
    return parser


def _command(name: str) -> ModuleType:
    return importlib.import_module(f"rankdrift.cli.{name}")
