"""A task that is larger than a node of a Ray cluster: a part on each of several nodes, then the rest on one.

The parts have a placement group, so that they begin together or not at all. They are coordinated by a task of
no slots beside the driver; what fails in one ends the others, and the task.
"""

from __future__ import annotations

import dataclasses
import signal
import time
from collections.abc import Sequence
from typing import Any

from rankdrift.errors import RankError
from rankdrift.studies.executors import Outcome, Task
from rankdrift.studies.executors.processes import Running, attempt, node
from rankdrift.studies.launcher import Among, free_port
from rankdrift.studies.ray_cluster import go_to_folder

LOOK = 0.5
"""Seconds until a part that is cancelled notices."""
LEAVES = 60.0
"""Seconds that parts have to end once one has failed."""


def shares(slots: int, sizes: Sequence[int]) -> list[int]:
    """Return how many slots of each of the largest nodes a task takes.

    >>> shares(10, [4, 8, 4])
    [8, 2]
    """
    taken = []
    for size in sorted(sizes, reverse=True):
        if slots > 0 and size > 0:
            taken.append(min(size, slots))
            slots -= taken[-1]
    return taken


def carry_out_spread(task: Task, told: Any, sizes: Sequence[int], has_gpus: bool) -> Outcome:
    """Carry out a task on as many nodes as there are sizes; return what became of it."""
    import ray
    from ray.util.placement_group import placement_group, remove_placement_group

    began = time.monotonic()
    slot = "GPU" if has_gpus else "CPU"
    group = placement_group([{slot: size} for size in sizes], strategy="STRICT_SPREAD")
    try:
        ray.get(group.ready())
        return dataclasses.replace(
            _on_group(task, told, sizes, group, slot), seconds=time.monotonic() - began
        )
    finally:
        remove_placement_group(group)


def _on_group(task: Task, told: Any, sizes: Sequence[int], group: Any, slot: str) -> Outcome:
    import ray

    assert task.spread is not None
    names = [ray.get(_on(group, number, {}).remote(node)) for number in range(len(sizes))]
    ray.get(told.begins.remote(task.name, "+".join(names)))
    address, port = ray.get(_on(group, 0, {}).remote(_meeting_point))
    parts = []
    for number, size in enumerate(sizes):
        among = Among(number, sum(sizes[:number]), size, sum(sizes), address, port)
        log = task.log.with_suffix(f".{number}.log") if task.log and number else task.log
        part = Task(task.name, task.spread.part, (*task.arguments, among), size, log=log)
        parts.append(_on(group, number, {slot: size}).remote(in_process, part))
    if failed := _first_failure(parts):
        return dataclasses.replace(failed, task=task, node="+".join(names))
    joined = Task(task.name, task.spread.join, (*task.arguments, len(sizes)), log=task.log)
    error = ray.get(_on(group, 0, {}).remote(_join, joined, group))
    if error is not None:
        return Outcome(task, names[0], error=error)
    rest = dataclasses.replace(task, spread=None, slots=sizes[0])
    outcome: Outcome = ray.get(_on(group, 0, {slot: sizes[0]}).remote(in_process, rest))
    return outcome


def in_process(task: Task) -> Outcome:
    """Carry out a task in a process of its own, in this node's folder; cancelled, it is asked to stop."""
    go_to_folder()
    # Ray cancels by Python's own SIGINT, of which a node that was started behind a shell knows nothing
    signal.signal(signal.SIGINT, signal.default_int_handler)
    running = Running.start(task)
    try:
        while not running.has_ended(LOOK):  # Ray interrupts between two looks, not a wait without end
            pass
        return running.outcome()
    finally:
        running.stop()
        running.process.join()


def _first_failure(parts: Sequence[Any]) -> Outcome | None:
    """Wait for all parts; where one fails, stop the others, and return it."""
    import ray

    left = list(parts)
    while left:
        (ready,), left = ray.wait(left, num_returns=1)
        try:
            outcome: Outcome = ray.get(ready)
        except ray.exceptions.RayError as lost:
            reason = str(lost).strip().splitlines()[0]
            outcome = Outcome(Task("", print), "", error=RankError(f"a node was lost: {reason}"))
        if outcome.error is not None:
            for part in left:
                ray.cancel(part)
            ray.wait(left, num_returns=len(left), timeout=LEAVES) if left else None
            return outcome
    return None


def _join(task: Task, group: Any) -> BaseException | None:
    """Do what follows the parts on the first node; what it asks the others goes from node to node."""
    import ray

    def ask(number: int, function: Any, *arguments: Any) -> Any:
        return ray.get(_on(group, number, {}).remote(function, *arguments))

    go_to_folder()
    return attempt(dataclasses.replace(task, arguments=(*task.arguments, ask)))[1]


def _on(group: Any, number: int, resources: dict[str, int]) -> Any:
    """Return what calls a function on one of the group's nodes."""
    import ray
    from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

    strategy = PlacementGroupSchedulingStrategy(group, placement_group_bundle_index=number)
    options: dict[str, Any] = {"max_retries": 0, "scheduling_strategy": strategy}
    options |= {"num_cpus": resources.get("CPU", 0), "num_gpus": resources.get("GPU", 0)}
    return ray.remote(**options)(_call)


def _call(function: Any, *arguments: Any) -> Any:
    return function(*arguments)


def _meeting_point() -> tuple[str, int]:
    """Return this node's address, and a port at which nobody listens."""
    import ray

    return ray.util.get_node_ip_address(), free_port()
