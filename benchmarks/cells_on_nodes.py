"""A thousand cells on 32 nodes, of which one in twenty fails: what the executor on Ray costs a cell.

The executor is the real one, nodes are processes of this machine, and a cell sleeps: so it is told how long
it takes from a free slot to the next cell, and how much longer all take than the slots alone would.

  python benchmarks/cells_on_nodes.py --result benchmarks/results/cells_on_nodes.json
  python benchmarks/cells_on_nodes.py --cells 40 --nodes 4 --seconds 1
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from pathlib import Path

import psutil
from sleeping_cells import cell

from rankdrift import files
from rankdrift.errors import RankError
from rankdrift.progress import duration
from rankdrift.studies.executors import Outcome, Task
from rankdrift.studies.executors.processes import NODE
from rankdrift.studies.ray_cluster import imported

MEMORY = 80 * 2**20
"""Of a node's object store, bytes: the least that Ray takes."""


def main() -> None:
    """Measure, and write what was found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cells", type=int, default=1000)
    parser.add_argument("--nodes", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=20.0, help="that a cell sleeps")
    parser.add_argument("--failing", type=int, default=20, metavar="N", help="every N-th cell fails")
    parser.add_argument("--result", type=Path)
    given = parser.parse_args()
    ray, cluster, up = _cluster(given.nodes)
    try:
        found = {"seconds_until_nodes_are_up": up, **_measured(cluster.address, given)}
    finally:
        ray.shutdown()
        cluster.shutdown()
    for name, value in found.items():
        print(f"{name}: {value}")
    if given.result:
        sizes = {"cells": given.cells, "nodes": given.nodes, "seconds_of_a_cell": given.seconds}
        tree = {**sizes, "every_nth_fails": given.failing, **found, "environment": files.environment()}
        files.write_json(given.result, tree)


def _cluster(nodes: int):
    """Start a head without slots, and nodes with one each."""
    ray = imported()
    from ray.cluster_utils import Cluster

    began = time.monotonic()
    paths = os.pathsep.join([str(Path(__file__).resolve().parent), os.environ.get("PYTHONPATH", "")])
    head = {"num_cpus": 0, "object_store_memory": 2 * MEMORY, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args={**head, "env_vars": {NODE: "head"}})
    for number in range(nodes):
        told = {NODE: f"node{number:02d}", "PYTHONPATH": paths}
        cluster.add_node(num_cpus=1, object_store_memory=MEMORY, env_vars=told, wait=False)
    cluster.wait_for_nodes(timeout=600)
    return ray, cluster, round(time.monotonic() - began, 1)


def _measured(address: str, given: argparse.Namespace) -> dict[str, object]:
    """Carry the cells out; return what that took."""
    from rankdrift.studies.executors.ray import Ray

    began = time.monotonic()
    executor = Ray(address)
    connected = time.monotonic() - began
    fails = [number % given.failing == given.failing - 1 for number in range(given.cells)]
    tasks = [Task(f"cell{n:04d}", cell, (given.seconds, fail)) for n, fail in enumerate(fails)]
    first = last = time.monotonic()
    outcomes: list[Outcome] = []
    driver, used = psutil.Process(), psutil.Process().cpu_times()
    for outcome in executor.carry_out(tasks, lambda task, node: None):
        outcomes.append(outcome)
        last = time.monotonic()
        if len(outcomes) % 50 == 0:
            print(f"{len(outcomes)} of {given.cells} after {duration(last - first)}", flush=True)
    spent = driver.cpu_times()
    names = [outcome.task.name for outcome in outcomes]
    assert sorted(names) == [task.name for task in tasks], "a cell is missing, or was done twice"
    failed = sum(isinstance(outcome.error, RankError) for outcome in outcomes)
    bound = -(-given.cells // given.nodes) * given.seconds
    inside = statistics.median(outcome.seconds for outcome in outcomes) - given.seconds
    return {
        "seconds_until_connected": round(connected, 1),
        "makespan_seconds": round(last - first, 1),
        "bound_seconds": bound,
        "makespan_over_bound": round((last - first) / bound, 3),
        "overhead_seconds_of_a_cell": round((last - first - bound) / (given.cells / given.nodes), 3),
        "of_it_starting_its_process_median_seconds": round(inside, 3),
        "failed_and_told": failed,
        "nodes_used": len({outcome.node for outcome in outcomes}),
        "driver_processor_seconds": round(spent.user + spent.system - used.user - used.system, 1),
        "driver_peak_mib": round(driver.memory_info().rss / 2**20),
    }


if __name__ == "__main__":
    main()
