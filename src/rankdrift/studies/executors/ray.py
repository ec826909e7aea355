"""The executor on a Ray cluster: tasks go to nodes that have slots for them; what is lost is done elsewhere.

Ray decides where a task goes, notices nodes that are lost, and starts their tasks again on others. A task has
a process of its own there, in the folder that the node was told, with the GPUs that Ray gives it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from rankdrift.errors import Preempted, RankError, UserError
from rankdrift.hosts.code import code_digest, versions
from rankdrift.studies.executors import Begun, Outcome, Task
from rankdrift.studies.executors.processes import node
from rankdrift.studies.executors.ray_spread import carry_out_spread, in_process, shares
from rankdrift.studies.ray_cluster import connect, go_to_folder

RETRIES = 3
"""Nodes that a task may lose."""
STOPS = 120.0
"""Seconds that tasks that were asked to stop have for it."""
REPLIES = 30.0
"""Seconds that a node has for a short answer."""


@dataclass(frozen=True)
class Node:
    """A node of the cluster."""

    name: str
    identifier: str
    """Ray's."""
    slots: int
    """Its GPUs; in a cluster without, the CPUs it was started with."""


class Ray:
    """Tasks on the nodes of a cluster.

    Parameters
    ----------
    address
        Of the cluster: ``HOST:PORT``, or ``auto`` for the one that this machine is part of.

    Raises
    ------
    UserError
        Where it cannot be reached, or nodes have one name, or other code or versions than this machine.

    """

    is_here = False

    def __init__(self, address: str) -> None:
        self._ray = connect(address)
        self.has_gpus = self._ray.cluster_resources().get("GPU", 0) > 0
        self.nodes = self._find_nodes()

    def ask(self, function: Callable[..., Any], *arguments: Any) -> dict[str, Any]:
        """Return what a short function gives on every node that answers, by the node's name."""
        return {name: value for name, (_, value) in self._asked(function, *arguments).items()}

    def at(self, node: str, function: Callable[..., Any], *arguments: Any) -> Any:
        """Return what a short function gives on one node; raise RankError where that has gone."""
        try:
            identifier = next(each.identifier for each in self.nodes if each.name == node)
            return self._ray.get(self._asking(identifier).remote(function, arguments))[1]
        except self._ray.exceptions.RayTaskError:  # the function's own
            raise
        except (StopIteration, self._ray.exceptions.RayError):
            raise RankError(
                f"node {node} has gone, and with it what it holds; join it again, or carry its cells out "
                "again: 'rankdrift study retry STUDY CELL'"
            ) from None

    def _asking(self, identifier: str) -> Any:
        """Return what asks a node a short question."""
        return self._ray.remote(
            num_cpus=0, max_retries=0, scheduling_strategy=self._at(identifier, soft=False)
        )(_answer)

    def carry_out(self, tasks: Sequence[Task], begun: Begun) -> Iterator[Outcome]:
        """Yield the outcome of every task as it ends, as ``Executor`` says."""
        for task in tasks:
            self._require_room(task)
        return self._carried_out({task.name: task for task in tasks}, begun)

    def _carried_out(self, tasks: dict[str, Task], begun: Begun) -> Iterator[Outcome]:
        ray = self._ray
        here = self._at(ray.get_runtime_context().get_node_id(), soft=False)
        told = ray.remote(num_cpus=0, scheduling_strategy=here)(_Told).remote()
        left = {self._submit(task, told): task for task in tasks.values()}
        word, said = told.next.remote(), set[str]()

        def hear() -> None:
            nonlocal word
            name, where = ray.get(word)
            word = told.next.remote()
            said.add(name)
            begun(tasks[name], where)

        try:
            while left:
                (ref,), _ = ray.wait([word, *left], num_returns=1)
                if ref == word:
                    hear()
                    continue
                outcome = self._outcome(left.pop(ref), ref)
                while outcome.node and outcome.task.name not in said:  # it has told, unless it was lost
                    hear()
                yield outcome
        finally:
            for ref in left:
                ray.cancel(ref)
            if left:
                ray.wait(list(left), num_returns=len(left), timeout=STOPS)
            ray.kill(told)

    def _require_room(self, task: Task) -> None:
        """Raise UserError where a node, or of what can be spread all nodes, have too few slots."""
        sizes = [each.slots for each in self.nodes]
        most = sum(sizes) if task.spread else max(sizes, default=0)
        if task.slots > most:
            where = "the cluster" if task.spread else "the largest node of the cluster"
            raise UserError(
                f"{task.name}: asks for {task.slots} slots, {where} has {most}; lower its ranks, or join more"
            )

    def _submit(self, task: Task, told: Any) -> Any:
        """Start a task as soon as a node has slots for it; rather on the node that has a part of it."""
        if task.slots > max(each.slots for each in self.nodes):
            sizes = shares(task.slots, [each.slots for each in self.nodes])
            here = self._at(self._ray.get_runtime_context().get_node_id(), soft=False)
            spread = self._ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=here)(carry_out_spread)
            return spread.remote(task, told, sizes, self.has_gpus)
        options: dict[str, Any] = {"max_retries": RETRIES, "name": task.name}
        options |= resources(task.slots, self.has_gpus)
        identifiers = {each.name: each.identifier for each in self.nodes}
        if task.node in identifiers:
            options["scheduling_strategy"] = self._at(identifiers[task.node], soft=True)
        return self._ray.remote(**options)(carried_out_here).remote(task, told)

    def _outcome(self, task: Task, ref: Any) -> Outcome:
        """Return what became of a task that has ended, or was lost too often."""
        try:
            return dataclasses.replace(self._ray.get(ref), task=task)
        except self._ray.exceptions.TaskCancelledError:
            return Outcome(task, "", error=Preempted("run the same command again to go on"))
        except self._ray.exceptions.RayTaskError as error:  # of ours, beside the task
            return Outcome(task, "", error=RankError(str(error).strip().splitlines()[-1]))
        except self._ray.exceptions.RayError as error:
            reason = str(error).strip().splitlines()[0]
            return Outcome(task, "", error=RankError(f"lost with its node, {RETRIES} times again: {reason}"))

    def _find_nodes(self) -> list[Node]:
        """Return the nodes; all must have names of their own, and run this code in these versions."""
        resource = "GPU" if self.has_gpus else "CPU"
        slots = {each["NodeID"]: int(each["Resources"].get(resource, 0)) for each in self._living()}
        found = self._asked(_facts)
        expected = _facts()
        for name, (_, facts) in found.items():
            require_same(name, facts, expected)
        return [Node(name, identifier, slots[identifier]) for name, (identifier, _) in found.items()]

    def _living(self) -> list[dict[str, Any]]:
        return [each for each in self._ray.nodes() if each["Alive"]]

    def _asked(self, function: Callable[..., Any], *arguments: Any) -> dict[str, tuple[str, Any]]:
        """Return, by name, the identifier and the answer of every node that answers in time."""
        identifiers = [each["NodeID"] for each in self._living()]
        refs = {self._asking(each).remote(function, arguments): each for each in identifiers}
        answered, _ = self._ray.wait(list(refs), num_returns=len(refs), timeout=REPLIES)
        found: dict[str, tuple[str, Any]] = {}
        for ref in answered:
            try:
                name, value = self._ray.get(ref)
            except self._ray.exceptions.RayError:
                continue  # it has just gone
            if name in found:
                raise UserError(
                    f"two nodes of the cluster are called '{name}'; 'rankdrift cluster join --name' tells "
                    "them apart"
                )
            found[name] = refs[ref], value
        return found

    def _at(self, identifier: str, soft: bool) -> Any:
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        return NodeAffinitySchedulingStrategy(identifier, soft=soft)


def require_same(name: str, found: dict[str, str], expected: dict[str, str]) -> None:
    """Raise UserError where a node has other code or other versions than this machine."""
    differing = [key for key in expected if found.get(key) != expected[key]]
    if differing == ["code"]:
        raise UserError(
            f"node {name} has other code than this machine (digest {found['code'][:12]}, not "
            f"{expected['code'][:12]}); bring the same checkout to it, and join again"
        )
    if differing:
        what = ", ".join(f"{key} {found.get(key)}, not {expected[key]}" for key in differing if key != "code")
        raise UserError(f"node {name} has {what}; install the same versions on all nodes")


def resources(slots: int, has_gpus: bool) -> dict[str, int]:
    """Return what a task asks Ray for."""
    return {"num_gpus": slots, "num_cpus": 0} if has_gpus else {"num_cpus": slots}


class _Told:
    """What tasks tell when they begin: an actor that has no more to say than was told."""

    def __init__(self) -> None:
        import asyncio

        self._words: asyncio.Queue[tuple[str, str]] = asyncio.Queue()

    async def begins(self, name: str, where: str) -> None:
        """Take the name of a task, and of the node where it begins."""
        await self._words.put((name, where))

    async def next(self) -> tuple[str, str]:
        """Wait for the next one."""
        return await self._words.get()


def _facts() -> dict[str, str]:
    return {"code": code_digest(), **versions()}


def _answer(function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[str, Any]:
    """Return this node's name and what a function gives here."""
    go_to_folder()
    return node(), function(*arguments)


def carried_out_here(task: Task, told: Any) -> Outcome:
    """Carry out a task on this node; cancelled, it is asked to stop, and waited for."""
    import ray

    ray.get(told.begins.remote(task.name, node()))
    return in_process(task)
