"""Check this machine before hours are spent on it: packages, GPUs, memory, disk, network, an all-reduce.

With --hosts, check all machines of a hostfile, as ranks would run there: whether they can be reached, code,
versions, GPUs, interconnect, interface, free disk, clock, rank 0's port, an all-reduce over all of them.
Exit code: 0 fine, 1 something will make a training fail.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rankdrift.doctor.hosts import Asked, Examined

MARKS = {"fine": "[green]fine[/]", "note": "[yellow]note[/]", "bad": "[red]bad[/]"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--output", type=Path, default=Path("outputs"), help="folder that runs would write to"
    )
    parser.add_argument("--ranks", type=int, help="of the exchange; default: one a GPU, at least 2")
    parser.add_argument("--json", action="store_true", help="print a list instead of the table")
    several = parser.add_argument_group("several machines")
    several.add_argument("--hosts", type=Path, metavar="HOSTFILE", help="check all of them, over ssh")
    several.add_argument("--master-addr", help="rank 0's address (of the first host)")
    several.add_argument("--master-port", type=int, default=29500, help="rank 0's port (29500)")
    several.add_argument("--ssh-port", type=int, help="of the hosts' sshd")


def run(arguments: argparse.Namespace) -> int:
    """Check, print what is found as it is; return 1 where something is bad."""
    return _several(arguments) if arguments.hosts else _this_machine(arguments)


def _this_machine(arguments: argparse.Namespace) -> int:
    import dataclasses

    import torch  # takes seconds, which --help need not wait for
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from rankdrift.doctor.checks import all_checks

    console = Console()
    table = Table("check", "", "what was found", "what to do")
    found = []
    ranks = arguments.ranks or max(2, torch.cuda.device_count())
    with console.status("") as status:
        for name, check in all_checks(arguments.output, ranks):
            status.update(f"checking {name} ...")
            for finding in check():
                found.append(finding)
                table.add_row(name, MARKS[finding.state], escape(finding.what), escape(finding.remedy))
    if arguments.json:
        print(json.dumps([dataclasses.asdict(finding) for finding in found], indent=2))
    else:
        console.print(table)
    return int(any(finding.state == "bad" for finding in found))


def _several(arguments: argparse.Namespace) -> int:
    import dataclasses
    import os

    from rankdrift.doctor.hosts import Asked, all_reduce, examine
    from rankdrift.hosts.forwarded import forwarded
    from rankdrift.hosts.hostfile import read_hostfile
    from rankdrift.hosts.ssh import Ssh

    hosts, ssh = read_hostfile(arguments.hosts), Ssh(arguments.ssh_port)
    address = arguments.master_addr or ssh.address(hosts[0].name)
    variables = forwarded(os.environ)
    asked = Asked(hosts, ssh, Path.cwd(), arguments.output, address, arguments.master_port, variables)
    examined = examine(asked)
    problems = [problem for one in examined for problem in one.problems]
    unable = not all(one.facts for one in examined)
    speed, failure = (0.0, None) if unable else all_reduce(asked)
    if failure:
        problems.append(f"all-reduce over all hosts: {failure}")
    if arguments.json:
        told = [dataclasses.asdict(one) for one in examined]
        print(json.dumps({"hosts": told, "all_reduce": speed or None, "problems": problems}, indent=2))
        return int(bool(problems))
    _show(asked, examined)
    if speed:
        print(f"all-reduce over {sum(host.slots for host in hosts)} ranks: {speed / 1e9:.3f} GB/s added up")
    elif unable:
        print("all-reduce: not tried, a host is missing")
    for problem in problems:
        print(f"bad: {problem}")
    return int(bool(problems))


def _show(asked: Asked, examined: list[Examined]) -> None:
    """Print a row a host."""
    from rich.console import Console
    from rich.table import Table

    columns = (
        "host",
        "",
        "GPUs",
        "interconnect",
        "interface",
        "disk free",
        "clock",
        "code",
        "torch, DeepSpeed",
    )
    table = Table(*columns)
    for one in examined:
        mark, facts = MARKS["bad" if one.problems else "fine"], one.facts
        if facts is None:
            table.add_row(one.host.name, mark, *["-"] * 7)
            continue
        joined = [*facts.fabrics, *(["peer access"] if facts.peers and len(facts.gpus) > 1 else [])]
        speed = f", {facts.megabits / 1000:g} Gbit/s" if facts.megabits else ""
        clock = f"{one.clock.seconds:+.3f} ± {one.clock.within:.3f} s" if one.clock else "-"
        table.add_row(
            one.host.name,
            mark,
            f"{len(facts.gpus)} x {facts.gpus[0]}" if facts.gpus else f"none ({one.host.slots} CPU ranks)",
            ", ".join(joined) or "-",
            f"{facts.interface} {facts.address}{speed}",
            f"{facts.free / 2**30:.0f} GiB",
            clock,
            facts.code[:8],
            f"{facts.versions['torch']}, {facts.versions['deepspeed']}",
        )
    Console(width=None if Console().is_terminal else 180).print(table)
