"""Make machines one Ray cluster, which carries out studies: rankdrift study run --ray HOST:PORT.

  rankdrift cluster start [--name vm1]               on the first machine; prints what the others are to run
  rankdrift cluster join HOST:PORT [--name vm2]      on each other machine
  rankdrift cluster nodes HOST:PORT                  which nodes there are, and what they have
  rankdrift cluster stop                             on each machine

Thin over 'ray start' and 'ray stop': any Ray cluster whose nodes have this project will do, but nodes that
are started here give up a silent link in half a minute, know their name, and are told where studies are. The
machines share nothing but the code, at the same place; models and data are in reach of each.
"""

from __future__ import annotations

import argparse
import os
import socket
from pathlib import Path

from rankdrift.cli._arguments import add_action
from rankdrift.errors import UserError
from rankdrift.hosts.interface import OUTSIDE, own_address
from rankdrift.studies.ray_cluster import PORT

HEAD = ("--head", "--include-dashboard=false")
MEBIBYTE = 2**20


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    start = add_action(actions, "start", "start the first node")
    start.add_argument("--port", type=int, default=PORT, help=f"that the others join at ({PORT})")
    start.add_argument("--temporary", type=Path, metavar="DIR", help="for logs and sockets of all (/tmp/ray)")
    join = add_action(actions, "join", "start a node that joins")
    join.add_argument("address", metavar="HOST:PORT", help="as 'cluster start' has printed it")
    for parser in (start, join):
        _add_node(parser)
    nodes = add_action(actions, "nodes", "say which nodes there are")
    nodes.add_argument(
        "address", metavar="HOST:PORT", nargs="?", default="auto", help="default: this machine's"
    )
    add_action(actions, "stop", "stop this machine's node")


def run(arguments: argparse.Namespace) -> int:
    """Do what is asked."""
    from rankdrift.studies import ray_cluster

    if arguments.action == "stop":
        print(ray_cluster.stop().strip())
        return 0
    if arguments.action == "nodes":
        return _nodes(arguments.address)
    options = _options(arguments)
    if arguments.action == "start":
        ip = arguments.ip or own_address(OUTSIDE) or "127.0.0.1"
        address = f"{ip}:{arguments.port}"
        temporary = ["--temp-dir", os.path.abspath(arguments.temporary)] if arguments.temporary else []
        ray_cluster.start(
            arguments.name,
            arguments.folder,
            [*HEAD, "--port", str(arguments.port), "--node-ip-address", ip, *temporary, *options],
        )
        print(f"cluster at {address}; on each other machine: rankdrift cluster join {address}")
        return 0
    ray_cluster.require_answer(arguments.address)
    ip = ["--node-ip-address", arguments.ip] if arguments.ip else []
    ray_cluster.start(arguments.name, arguments.folder, ["--address", arguments.address, *ip, *options])
    print(f"{arguments.name} is part of the cluster at {arguments.address}")
    return 0


def _add_node(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--name", default=socket.gethostname(), help="what the node is called (host name)")
    parser.add_argument("--folder", type=Path, default=Path(), help="where studies are on it (this one)")
    parser.add_argument("--ip", metavar="IP", help="the address by which the others reach it")
    parser.add_argument(
        "--slots",
        type=int,
        metavar="N",
        help="ranks at a time on a machine without GPUs (default: two, or one)",
    )
    parser.add_argument(
        "--memory",
        type=int,
        default=512,
        metavar="MIB",
        help="for what tasks return, MiB of shared memory (512)",
    )


def _options(arguments: argparse.Namespace) -> list[str]:
    """Return the options of ``ray start`` for a node."""
    from rankdrift.studies.launcher import default_ranks

    if arguments.slots is not None and arguments.slots < 0:
        raise UserError(f"--slots {arguments.slots}: give 0 (a node that carries nothing out) or more")
    slots = default_ranks() if arguments.slots is None else arguments.slots
    return ["--num-cpus", str(slots), "--object-store-memory", str(arguments.memory * MEBIBYTE)]


def _nodes(address: str) -> int:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table

    from rankdrift.studies.executors.ray import Ray

    cluster = Ray(address)
    table = Table("node", "GPUs" if cluster.has_gpus else "slots", box=SIMPLE)
    for each in cluster.nodes:
        table.add_row(each.name, str(each.slots))
    Console().print(table)
    return 0
