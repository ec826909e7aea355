"""One trial, from its settings to its value: the task that an executor carries out, wherever that is.

Its runs are trained, and nothing of them scored or measured; what they logged stays, their checkpoints go.
What a run came to is kept in its folder: a trial that was killed goes on where it was, and is trained once.
"""

from __future__ import annotations

import contextlib
import math
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean, stdev
from typing import Any

from rankdrift import files
from rankdrift.errors import IntegrityError, Preempted, UserError
from rankdrift.layout import RunLayout
from rankdrift.studies.away import Order
from rankdrift.studies.cell_record import is_finished
from rankdrift.studies.cells import Cell
from rankdrift.studies.driver import MOMENT
from rankdrift.studies.launcher import launch
from rankdrift.studies.search.pruning import pruned_at
from rankdrift.training.selection import is_better_low, logged

PAUSE = 0.5
"""Seconds between two looks at what a run has logged."""


def carry_out_trial(cells: Sequence[Cell], value: str, bars: Mapping[int, float]) -> dict[str, Any]:
    """Train a trial's runs, one after the other; return what of a ``Trial`` that comes to.

    Parameters
    ----------
    cells
        Its runs, one a seed; where the first is pruned the others are not trained.
    value
        The logged value that decides.
    bars
        Step -> what the first has to have reached.

    Raises
    ------
    UserError, RankError, Preempted
        As training raises them; IntegrityError where a run's folder holds one of other settings.

    """
    results: list[dict[str, Any]] = []
    for cell in cells:
        results.append(_carried_out(cell, value, {} if results else bars))
        if results[-1]["pruned"]:
            break
    finals = {result["seed"]: result["values"][-1][1] for result in results}
    several = len(finals) > 1
    return {
        "state": "pruned" if results[-1]["pruned"] else "done",
        "value": fmean(finals.values()),
        "stderr": stdev(finals.values()) / math.sqrt(len(finals)) if several else None,
        "seeds": finals,
        "values": {step: number for step, number in results[0]["values"]},
        "steps": sum(result["steps"] for result in results),
        "seconds": round(sum(result["seconds"] for result in results), 1),
    }


def carry_out_trial_away(orders: Sequence[Order], value: str, bars: Mapping[int, float]) -> dict[str, Any]:
    """Carry out a trial on a machine that it was sent to; what it came to is all that has to come back."""
    return carry_out_trial([order.here() for order in orders], value, bars)


def _carried_out(cell: Cell, value: str, bars: Mapping[int, float]) -> dict[str, Any]:
    """Return what a run came to, as its folder says or is made to say."""
    run = cell.run
    with files.held(run.cell_lock, wait=MOMENT) as free:
        if not free:
            raise UserError(f"{run.root}: another process carries out this trial; wait for it or stop it")
        _refuse_another(cell)
        if not run.trial.exists():
            files.write_json(run.experiment, cell.spec.as_dict())  # JSON is YAML
            files.write_json(run.trial, _trained(cell, value, bars))
        kept = files.read_json(run.trial)
        for folder in (run.checkpoints, run.model):
            shutil.rmtree(folder, ignore_errors=True)
    return dict(kept)


def _refuse_another(cell: Cell) -> None:
    """Raise UserError where a folder holds a run of other settings: of a search whose book is gone."""
    run = cell.run
    if run.experiment.exists() and files.read_json(run.experiment) != cell.spec.as_dict():
        raise IntegrityError(f"{run.root}: holds a trial of another search; delete {run.root.parent.parent}")


def _trained(cell: Cell, value: str, bars: Mapping[int, float]) -> dict[str, Any]:
    """Train a run to its end, or to where it is pruned."""
    run, is_low = cell.run, is_better_low(value)
    end = _end(cell)

    def found() -> dict[int, float]:
        return logged(files.read_jsonl(run.metrics), value)

    def is_lost() -> bool:
        at = pruned_at(found(), bars, is_low)
        return at is not None and at != end

    began = time.monotonic()
    if not is_finished(run) and not is_lost():
        with _watched(run, is_lost) if bars else contextlib.nullcontext():
            try:
                launch(cell.ranks, ["--config", str(cell.config), "--experiment", str(run.experiment)])
            except Preempted:
                if not is_lost():
                    raise
    values = found()
    pruned = pruned_at(values, bars, is_low) if is_lost() else None
    kept = [[step, values[step]] for step in sorted(values) if pruned is None or step <= pruned]
    if not kept:
        raise UserError(f"{run.root}: '{value}' was never logged; there is nothing to select by")
    return {
        "seed": cell.spec.seed,
        "pruned": pruned is not None,
        "values": kept,
        "steps": files.read_json(run.status)["step"],
        "seconds": time.monotonic() - began,
    }


def _end(cell: Cell) -> int | None:
    """Return the last step, at which a run is not pruned any more; None where the data say it."""
    return None if cell.spec.training.is_open else cell.spec.training.steps


@contextlib.contextmanager
def _watched(run: RunLayout, is_lost: Callable[[], bool]) -> Iterator[None]:
    """Look now and then whether a run is lost while it trains, and ask it to stop then."""
    over = threading.Event()

    def watch() -> None:
        while not over.wait(PAUSE):
            if is_lost():
                run.stop_request.touch()
                return

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join()
        run.stop_request.unlink(missing_ok=True)
