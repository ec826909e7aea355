"""Tasks that a process of the local executor finds by name."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rankdrift.errors import IntegrityError, UserError
from rankdrift.studies.launcher import Among
from rankdrift.studies.ray_cluster import go_to_folder


def note(folder: Path, name: str, seconds: float = 0.0) -> str:
    """Write when it began and ended, by which process, on which cores and GPUs."""
    began = time.monotonic()
    time.sleep(seconds)
    seen = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    line = f"{began} {time.monotonic()} {os.getpid()} {cores} {seen}\n"
    with open(folder / name, "a", encoding="utf-8") as file:
        file.write(line)
    print("noted", name)
    return name


def wait_here(name: str, seconds: float) -> str:
    """Write in the folder this runs in that it begins, that it was asked to stop, or that it has ended."""
    path = Path(f"{name}.{os.getpid()}")
    path.write_text("begun")
    try:
        time.sleep(seconds)
    except BaseException:
        path.write_text("stopped")
        raise
    path.write_text("ended")
    return str(Path.cwd())


def fail(kind: str) -> None:
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise {"user": UserError, "damaged": IntegrityError, "other": ZeroDivisionError}[kind](f"it is {kind}")


def do_part(name: str, seconds: float, among: Among) -> None:
    """Write which part of a task this is."""
    told = (among.node, among.first, among.ranks, among.world, among.address, among.port)
    Path(f"{name}-part").write_text(" ".join(map(str, told)))


def join_parts(name: str, seconds: float, nodes: int, ask: Callable[..., Any]) -> None:
    """Write where the others are."""
    folders = [ask(number, where) for number in range(1, nodes)]
    Path(f"{name}-joined").write_text(" ".join(folders))


def where() -> str:
    """Return the folder that this runs in."""
    go_to_folder()
    return str(Path.cwd())


def fail_second(name: str, seconds: float, among: Among) -> None:
    if among.node:
        time.sleep(3.0)
        raise UserError("no room")
    wait_here(name, seconds)
