"""Start ranks that try an experiment, start others where one of them dies, and gather what was found."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rankdrift import files
from rankdrift.errors import Preempted
from rankdrift.sanity.rank import RESULTS
from rankdrift.sanity.results import EVERY_ARM, OF_ARM, OF_EXPERIMENT, Result, read
from rankdrift.spec import Spec
from rankdrift.studies.launcher import run_ranks

RUN = (
    "import sys; from pathlib import Path; from rankdrift.cli.main import leave; "
    "from rankdrift.sanity.rank import be_a_rank; leave(be_a_rank(Path(sys.argv[1])))"
)
INTERRUPTIONS = (-signal.SIGINT, -signal.SIGTERM, Preempted.exit_code)
OF_THE_OTHERS = "RankError"
"""What ranks meet that have lost another one."""


@dataclass(frozen=True)
class Manner:
    """How an experiment is tried."""

    config: Path
    """DeepSpeed JSON."""
    ranks: int
    steps: int
    """Within which rows are to be learnt by heart."""
    rate: float | None
    """Learning rate for that; None is one by the method and the model's width."""


def try_experiment(specs: Sequence[Spec], manner: Manner, folder: Path) -> list[Result]:
    """Return the results of every check of every arm, in their order.

    Parameters
    ----------
    specs
        A run of each arm.
    manner
        How.
    folder
        An empty one, which the ranks fill; the caller removes it.

    """
    found: list[Result] = []
    left = list(specs)
    while left:
        started = folder / f"start-{len(specs) - len(left)}"  # of arms that were tried before it
        found += _tried(left, manner, started, experiment=not found)
        tried = {result.arm for result in found}
        if wrong := [
            result.check for result in found if result.arm == EVERY_ARM and result.state == "failed"
        ]:
            why = f"the {wrong[0]} failed"
            return found + [Result(check, spec.arm, "not run", why) for spec in left for check in OF_ARM]
        left = [spec for spec in left if spec.arm not in tried]
    return found


def _tried(specs: Sequence[Spec], manner: Manner, folder: Path, experiment: bool) -> list[Result]:
    """Start the ranks once; return what they found, and of the arm in which one of them died the rest."""
    folder.mkdir()
    job = {"config": str(manner.config), "steps": manner.steps, "rate": manner.rate}
    job |= {"experiment": experiment, "specs": [spec.as_dict() for spec in specs]}
    files.write_json(folder / "job.json", job)
    status = run_ranks(manner.ranks, [sys.executable, "-P", "-c", RUN, str(folder / "job.json")])
    if status in INTERRUPTIONS:
        raise KeyboardInterrupt
    found, under_way = read(folder / RESULTS)
    if not status:
        return found
    planned = [(check, EVERY_ARM) for check in OF_EXPERIMENT if experiment]
    planned += [(check, spec.arm) for spec in specs for check in OF_ARM]
    done = {(result.check, result.arm) for result in found}
    undone = sorted((each for each in planned if each not in done), key=lambda each: each != under_way)
    if not undone:  # a rank that died behind the last check
        return found
    failed, *rest = undone
    found.append(Result(*failed, "failed", _last_words(folder, status)))
    why = f"a rank ended in '{failed[0]}'"
    return found + [Result(check, arm, "not run", why) for check, arm in rest if arm == failed[1]]


def _last_words(folder: Path, status: int) -> str:
    """Return why ranks ended: the error of one that did not only lose another."""
    told = [files.read_json(path) for path in sorted(folder.glob("rank-*.error.json"))]
    own = [error["told"] for error in told if error["kind"] != OF_THE_OTHERS]
    if own:
        return " ".join(own[0].split())
    return f"a rank was killed by {signal.Signals(-status).name}" if status < 0 else f"exit code {status}"
