"""A search from recipe to result, by whatever carries out its trials. What is done is not done again."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from rankdrift import registry
from rankdrift.errors import IntegrityError, Preempted, RankError, UserError
from rankdrift.layout import StudyLayout
from rankdrift.models.base import resolve
from rankdrift.progress import Say
from rankdrift.spec.searched import SearchedArm
from rankdrift.studies import driver
from rankdrift.studies.away import Order
from rankdrift.studies.cells import Cell
from rankdrift.studies.executors import Executor, Outcome, Task
from rankdrift.studies.search.found import Found, found_by, write_found
from rankdrift.studies.search.ledger import Ledger
from rankdrift.studies.search.records import Trial, short
from rankdrift.studies.search.trial_runs import carry_out_trial, carry_out_trial_away
from rankdrift.training.selection import require_logged

Asked = tuple[SearchedArm, Trial]


def run_search(
    root: StudyLayout,
    arms: Sequence[SearchedArm],
    cells: Sequence[Cell],
    executor: Executor,
    say: Say = print,
) -> Found:
    """Carry out all trials of all arms, and write what was found; return it.

    Parameters
    ----------
    root
        The study's folder.
    arms, cells
        What is searched, and the study's cells, which say what an arm is started with.
    executor
        Who carries out the trials; those of all arms that are asked for at one time are given to it together.
    say
        Takes a line for each thing done.

    Raises
    ------
    UserError
        Before anything trains, where the value is never logged, or the folder holds another search. Later
        where none of an arm's trials could be trained.
    RankError, Preempted
        Where trials failed by no fault of their settings; the same command takes them up.

    """
    for arm in arms:
        _require_logged(arm)
    with driver.alone(root):
        ledger = Ledger(arms)
        for name, revision in dict.fromkeys((arm.spec.model.name, arm.spec.model.revision) for arm in arms):
            say(f"base model {name}: {resolve(name, revision)}")
        while asked := [(arm, trial) for arm in arms for trial in ledger.asked(arm)]:
            _raise(_round(ledger, asked, cells, executor, say))
        found = found_by(ledger)
        write_found(root.searched, found)
    say(f"found: {root.searched}")
    return found


def _require_logged(arm: SearchedArm) -> None:
    """Raise UserError where the value that decides is never logged."""
    training = arm.trial(0, arm.search.seeds[0], {}).training
    tasks = [registry.load("task", name) for name in arm.spec.data.tasks]
    if problem := require_logged(training, {task.name: task.metrics for task in tasks}):
        raise UserError(problem.replace("training.best", "search.value"))


def _round(
    ledger: Ledger, asked: Sequence[Asked], cells: Sequence[Cell], executor: Executor, say: Say
) -> list[Outcome]:
    """Carry out the trials that are asked for; return what became of those that are to be taken up again.

    A trial whose settings cannot be trained with is one that failed, once another one of its arm could be.
    """
    tasks = {task.name: (task, pair) for pair in asked for task in [_task(*pair, cells, executor.is_here)]}
    refused: list[Outcome] = []
    left: list[Outcome] = []
    outcomes = executor.carry_out([task for task, _ in tasks.values()], lambda task, node: None)
    for outcome in outcomes:
        arm, trial = tasks[outcome.task.name][1]
        name = f"[{trial.number + 1}/{arm.search.trials}] {outcome.task.name}"
        if outcome.error is None:
            came = outcome.value
            ledger.tell(arm, trial, **came, node=outcome.node)
            say(f"{name}: {came['state']}, {arm.search.value} {came['value']:.4g} {_told(trial)}")
            continue
        say(f"{name}: {outcome.error} {_told(trial)}")
        by_settings = isinstance(outcome.error, UserError) and not isinstance(outcome.error, IntegrityError)
        (refused if by_settings else left).append(outcome)
    for outcome in refused:
        arm, trial = tasks[outcome.task.name][1]
        if any(each.state in ("done", "pruned") for each in ledger.of(arm).trials):
            told = {"error": str(outcome.error), "seconds": round(outcome.seconds, 1), "node": outcome.node}
            ledger.tell(arm, trial, state="failed", **told)
        else:
            left.append(outcome)
    return left


def _task(arm: SearchedArm, trial: Trial, cells: Sequence[Cell], is_here: bool) -> Task:
    """Return a trial as a task: the runs of all its seeds, each started as the arm's are."""
    own = next(cell for cell in cells if (cell.group, cell.spec.arm) == (arm.group, arm.arm))
    runs = [
        dataclasses.replace(own, spec=arm.trial(trial.number, seed, trial.settings))
        for seed in arm.search.seeds
    ]
    name = f"{arm.name}-trial{trial.number:03d}"
    judged = (arm.search.value, trial.bars)
    task = Task(name, carry_out_trial, (runs, *judged), own.ranks, log=runs[0].run.cell_log)
    if is_here:
        return task
    orders = [Order.of(cell) for cell in runs]
    return dataclasses.replace(task, function=carry_out_trial_away, arguments=(orders, *judged))


def _told(trial: Trial) -> str:
    shown = (f"{key}={short(value)}" for key, value in trial.settings.items())
    return f"({', '.join(shown)})"


def _raise(left: Sequence[Outcome]) -> None:
    """Raise what kept trials from being carried out: of one kind as that, else as a failure."""
    errors = [outcome.error for outcome in left if outcome.error is not None]
    for error in errors:
        if isinstance(error, Preempted) or len({str(each) for each in errors}) == 1:
            raise error
    if errors:
        names = "; ".join(f"{outcome.task.name}: {outcome.error}" for outcome in left)
        kinds = {type(error) for error in errors}
        by_user = len(kinds) == 1 and issubclass(type(errors[0]), UserError)
        kind = type(errors[0]) if by_user else RankError
        raise kind(f"trials could not be carried out ({names}); the same command takes them up again")
