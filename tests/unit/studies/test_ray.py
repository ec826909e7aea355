"""The executor on Ray: nodes with a folder each, on this machine; every task once, also where one is lost."""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import local_tasks
import pytest
from local_tasks import fail, wait_here

from rankdrift.errors import IntegrityError, RankError, UserError
from rankdrift.studies.executors import Outcome, Spread, Task
from rankdrift.studies.executors.processes import NODE
from rankdrift.studies.ray_cluster import FOLDER, connect, imported, require_answer

ray = pytest.importorskip("ray")
from rankdrift.studies.executors.ray import Ray, require_same  # noqa: E402
from rankdrift.studies.executors.ray_spread import shares  # noqa: E402

pytestmark = pytest.mark.distributed
PATHS = os.pathsep.join([str(Path(local_tasks.__file__).parent), os.environ.get("PYTHONPATH", "")])
MEMORY = 80 * 2**20


@dataclass(frozen=True)
class Nodes:
    """A cluster whose head does nothing itself."""

    cluster: Any
    folder: Path

    def add(self, name: str, slots: int = 1) -> Any:
        (self.folder / name).mkdir(exist_ok=True)
        told = {NODE: name, FOLDER: str(self.folder / name), "PYTHONPATH": PATHS}
        return self.cluster.add_node(num_cpus=slots, object_store_memory=MEMORY, env_vars=told)

    def written(self, name: str) -> dict[str, str]:
        """What tasks have written on a node: task -> word."""
        return {path.stem: path.read_text() for path in (self.folder / name).iterdir()}


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nodes]:
    from ray.cluster_utils import Cluster

    imported()
    before = os.getcwd()
    head = {"num_cpus": 0, "object_store_memory": MEMORY, "include_dashboard": False}
    made = Cluster(
        initialize_head=True, head_node_args={**head, "env_vars": {NODE: "head", "PYTHONPATH": PATHS}}
    )
    found = Nodes(made, tmp_path_factory.mktemp("nodes"))
    found.add("n1")
    found.add("n2", slots=2)
    yield found
    ray.shutdown()
    made.shutdown()
    os.chdir(before)


@pytest.fixture
def executor(nodes: Nodes) -> Ray:
    return Ray(nodes.cluster.address)


def outcomes(executor: Ray, *tasks: Task) -> dict[str, Outcome]:
    begun: list[str] = []
    ended = list(executor.carry_out(tasks, lambda task, node: begun.append(task.name)))
    assert sorted({*begun}) == sorted(each.task.name for each in ended) == sorted(task.name for task in tasks)
    return {each.task.name: each for each in ended}


def wait_until(condition: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it does not happen"
        time.sleep(0.05)


def test_every_task_is_done_once_in_the_folder_of_its_node(nodes: Nodes, executor: Ray) -> None:
    assert [(each.name, each.slots) for each in sorted(executor.nodes, key=lambda n: n.name)] == [
        *(("head", 0), ("n1", 1), ("n2", 2))
    ]
    assert not executor.is_here
    found = outcomes(executor, *(Task(f"a{number}", wait_here, (f"a{number}", 0.3)) for number in range(5)))
    for name, outcome in found.items():
        assert (outcome.error, outcome.value) == (None, str(nodes.folder / outcome.node))
        assert outcome.seconds >= 0.3
        assert nodes.written(outcome.node)[name] == "ended"
    assert len([name for node in ("n1", "n2") for name in nodes.written(node)]) == 5


def test_a_failure_is_told_and_stops_no_other(executor: Ray) -> None:
    kinds = ("user", "damaged", "killed", "other")
    found = outcomes(executor, *(Task(kind, fail, (kind,)) for kind in kinds), Task("b", wait_here, ("b", 0)))
    errors = [found[kind].error for kind in kinds]
    assert [type(error) for error in errors] == [UserError, IntegrityError, RankError, RankError]
    assert "SIGKILL" in str(errors[2])
    assert str(errors[3]) == "ZeroDivisionError: it is other"
    assert found["b"].error is None


def test_a_task_goes_to_the_node_that_has_a_part_of_it(executor: Ray) -> None:
    wanted = {"c0": "n1", "c1": "n1", "c2": "n2"}
    tasks = [Task(name, wait_here, (name, 0), node=node) for name, node in wanted.items()]
    assert {name: each.node for name, each in outcomes(executor, *tasks).items()} == wanted
    # one that has gone is no reason to wait
    assert outcomes(executor, Task("c3", wait_here, ("c3", 0), node="gone"))["c3"].error is None


def test_every_node_can_be_asked(nodes: Nodes, executor: Ray) -> None:
    answers = executor.ask(os.getcwd)
    assert {name: Path(folder) for name, folder in answers.items() if name != "head"} == {
        name: nodes.folder / name for name in ("n1", "n2")
    }
    assert executor.at("n2", os.path.basename, "a/b") == "b"
    with pytest.raises(RankError, match="node n9 has gone, and with it what it holds; join it again"):
        executor.at("n9", os.getcwd)


def test_more_than_the_largest_node_has_is_refused(executor: Ray) -> None:
    with pytest.raises(UserError, match="d: asks for 3 slots, the largest node of the cluster has 2"):
        executor.carry_out([Task("d", wait_here, ("d", 0), slots=3)], lambda task, node: None)


def test_what_is_not_waited_for_is_asked_to_stop(nodes: Nodes, executor: Ray) -> None:
    tasks = [Task("e0", wait_here, ("e0", 0.0)), Task("e1", wait_here, ("e1", 600.0))]
    under_way = executor.carry_out(tasks, lambda task, node: None)
    assert next(under_way).task.name == "e0"  # type: ignore[call-overload]
    wait_until(lambda: any("e1" in nodes.written(name) for name in ("n1", "n2")))
    under_way.close()  # type: ignore[attr-defined]
    (word,) = [nodes.written(name)["e1"] for name in ("n1", "n2") if "e1" in nodes.written(name)]
    assert word == "stopped"


def test_what_a_lost_node_had_is_done_elsewhere(nodes: Nodes) -> None:
    lost = nodes.add("n3")
    wait_until(lambda: sum(each["Alive"] for each in ray.nodes()) == 4)
    executor = Ray(nodes.cluster.address)
    begun: list[str] = []

    def begins(task: Task, node: str) -> None:
        begun.append(node)
        if node == "n3":
            wait_until(lambda: "f" in nodes.written("n3"))
            nodes.cluster.remove_node(lost, allow_graceful=False)

    (outcome,) = executor.carry_out([Task("f", wait_here, ("f", 3.0), node="n3")], begins)
    assert begun[0] == "n3" != begun[1] == outcome.node
    assert outcome.error is None
    assert nodes.written(outcome.node)["f"] == "ended"


def test_two_nodes_of_one_name_are_refused(nodes: Nodes) -> None:
    twin = nodes.add("n2")
    wait_until(lambda: sum(each["Alive"] for each in ray.nodes()) == 4)
    with pytest.raises(UserError, match="two nodes of the cluster are called 'n2'; 'rankdrift cluster join"):
        Ray(nodes.cluster.address)
    nodes.cluster.remove_node(twin)


def test_nodes_run_the_same_code_in_the_same_versions() -> None:
    mine = {"code": "a" * 32, "torch": "2.13", "python": "3.11"}
    require_same("n1", dict(mine), mine)
    with pytest.raises(UserError, match=r"node n1 has other code than this machine \(digest b{12}, not a"):
        require_same("n1", mine | {"code": "b" * 32}, mine)
    with pytest.raises(UserError, match=r"node n1 has torch 2.12, not 2.13; install the same versions"):
        require_same("n1", mine | {"torch": "2.12", "code": "b" * 32}, mine)


@pytest.mark.parametrize("address", ["nowhere", "host:", ":80x"])
def test_an_address_that_is_none(address: str) -> None:
    with pytest.raises(UserError, match=f"'{address}': not the address of a cluster; give HOST:PORT"):
        require_answer(address)


def test_an_address_that_does_not_answer() -> None:
    with socket.socket() as taken:  # bound, and nobody listens
        taken.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(UserError, match=f"{address}: no Ray cluster answers .*rankdrift cluster start"):
            connect(address)


def test_what_is_larger_than_a_node_is_done_by_several(nodes: Nodes, executor: Ray) -> None:
    """A part on each at a time, the first hears from the others, and does the rest."""
    spread = Spread(local_tasks.do_part, local_tasks.join_parts)
    begun: list[str] = []
    task = Task("g", wait_here, ("g", 0.0), slots=3, spread=spread)
    (outcome,) = executor.carry_out([task], lambda task, node: begun.append(node))
    assert outcome.error is None
    assert (begun, outcome.node) == (["n2+n1"], "n2")
    assert nodes.written("n2")["g"] == "ended"
    parts = [(nodes.folder / name / "g-part").read_text().split() for name in ("n2", "n1")]
    assert [part[:4] for part in parts] == [["0", "0", "2", "3"], ["1", "2", "1", "3"]]
    assert parts[0][4:] == parts[1][4:]  # where rank 0 is
    assert (nodes.folder / "n2" / "g-joined").read_text() == f"{nodes.folder / 'n1'}"


def test_a_part_that_fails_ends_the_others(nodes: Nodes, executor: Ray) -> None:
    spread = Spread(local_tasks.fail_second, local_tasks.join_parts)
    began = time.monotonic()
    (outcome,) = executor.carry_out(
        [Task("h", wait_here, ("h", 300.0), slots=3, spread=spread)], lambda task, node: None
    )
    assert (type(outcome.error), str(outcome.error), outcome.node) == (UserError, "no room", "n2+n1")
    assert time.monotonic() - began < 60
    assert nodes.written("n2")["h"] == "stopped"
    with pytest.raises(UserError, match="i: asks for 4 slots, the cluster has 3"):
        executor.carry_out([Task("i", wait_here, ("i", 0), slots=4, spread=spread)], lambda task, node: None)


def test_the_largest_nodes_are_taken_first() -> None:
    assert shares(16, [8, 0, 8, 4]) == [8, 8]
    assert shares(17, [8, 4, 8]) == [8, 8, 1]
