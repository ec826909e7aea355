"""One rank of the processes that try an experiment; ``sanity.trying`` starts it with a JSON file.

What it and its libraries print goes to a file: the user reads the table. An error that one rank alone may
have ends it, as it would end a training, and is kept beside for whoever started it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any, TextIO

from rankdrift import files
from rankdrift.errors import UserError
from rankdrift.sanity.results import Record
from rankdrift.spec import Spec, parse_spec

RESULTS = "results.jsonl"


def be_a_rank(job: Path) -> int:
    """Try what a file says as the rank that the environment describes; return the exit code."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # there is nothing to save
    folder, rank = job.parent, int(os.environ.get("RANK", "0"))
    with _printing_to(folder / f"rank-{rank}.log") as terminal:
        try:
            _examine(files.read_json(job), folder, Record(folder / RESULTS if rank == 0 else None, terminal))
        except BaseException as error:
            traceback.print_exc()
            told = "".join(traceback.format_exception_only(error)).strip()
            files.write_json(folder / f"rank-{rank}.error.json", {"kind": type(error).__name__, "told": told})
            return 1
    return 0


def _examine(job: dict[str, Any], folder: Path, record: Record) -> None:
    from rankdrift.models.base import resolve  # torch and deepspeed take seconds to import
    from rankdrift.sanity.examination import Examination, Trial
    from rankdrift.training import collectives

    specs: list[Spec] = [parse_spec(tree) for tree in job["specs"]]
    with contextlib.suppress(UserError):  # which the check of the model meets again
        resolve(specs[0].model.name, specs[0].model.revision)  # what has to be made is made outside a group
    with collectives.process_group():
        examination = Examination(Trial(folder, Path(job["config"]), job["steps"], job["rate"]), record)
        if not job["experiment"] or examination.of_experiment(specs[0]):
            for spec in specs:
                examination.of_arm(spec)


@contextlib.contextmanager
def _printing_to(path: Path) -> Any:
    """Send both streams to a file until the end of the block; yield what the error stream was."""
    sys.stdout.flush()
    sys.stderr.flush()
    before = {number: os.dup(number) for number in (1, 2)}
    with path.open("ab") as log:
        for number in before:
            os.dup2(log.fileno(), number)
    terminal: TextIO = os.fdopen(os.dup(before[2]), "w")
    try:
        yield terminal
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for number, old in before.items():
            os.dup2(old, number)
            os.close(old)
        terminal.close()
