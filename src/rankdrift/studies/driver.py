"""The process that carries out a study: one at a time, and known, so that it can be asked to stop."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator

from rankdrift import files
from rankdrift.errors import UserError
from rankdrift.layout import StudyLayout
from rankdrift.studies.executors.processes import node

MOMENT = 2.0
"""Seconds for which a look whether a lock is held may hold it."""


@contextlib.contextmanager
def alone(root: StudyLayout) -> Iterator[None]:
    """Keep a study to this process; raise UserError where another one carries it out."""
    with files.held(root.driver_lock, wait=MOMENT) as free:
        if not free:
            raise UserError(f"{root.root}: is being carried out {_by(root)}; wait for it, or stop it first")
        files.write_json(root.driver, {"node": node(), "pid": os.getpid(), "began": files.timestamp()})
        try:
            yield
        finally:
            root.driver.unlink(missing_ok=True)


def is_at_work(root: StudyLayout) -> bool:
    """Return whether a process of this machine carries out the study."""
    return files.is_held(root.driver_lock)


def stop(root: StudyLayout) -> str:
    """Ask the process that carries out a study to save and stop; return where it is.

    Raises UserError where there is none, or it is on another machine.
    """
    if not root.driver.exists():
        raise UserError(f"{root.root}: nobody carries it out; there is nothing to stop")
    told = files.read_json(root.driver)
    if told["node"] != node():
        raise UserError(f"{root.root}: is carried out {_by(root)}: run this command there")
    if not is_at_work(root):
        raise UserError(f"{root.root}: nobody carries it out any more; there is nothing to stop")
    os.kill(told["pid"], signal.SIGTERM)
    return _by(root)


def _by(root: StudyLayout) -> str:
    told = files.read_json(root.driver) if root.driver.exists() else {}
    return f"by process {told.get('pid', 'of unknown number')} on {told.get('node', 'an unknown machine')}"
