"""Bring what other machines hold of a run or a study into one folder, where its checkpoints become whole.

  rankdrift gather outputs/study/runs/full-seed42 --from vm2: --from vm3:/data/runs/full-seed42
  rankdrift gather outputs/study --hostfile hosts

Files come by rsync over ssh; what is here already is not copied again, and a gathering that was killed goes
on. Every file of a checkpoint is compared with its checksum.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from rankdrift.errors import UserError
from rankdrift.hosts.gather import Source, gather, sources_of
from rankdrift.hosts.hostfile import read_hostfile
from rankdrift.hosts.ssh import Ssh


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    parser.add_argument("folder", type=Path, metavar="RUN|STUDY", help="the run's or study's folder here")
    parser.add_argument(
        "--from",
        dest="sources",
        action="append",
        default=[],
        metavar="HOST:FOLDER",
        help="where the rest is; HOST: for the same folder there, or a folder of this machine (repeatable)",
    )
    parser.add_argument("--hostfile", type=Path, help="the same folder on each of these hosts")
    parser.add_argument("--ssh-port", type=int, help="of the hosts' sshd")


def run(arguments: argparse.Namespace) -> int:
    """Gather; say of each checkpoint what was done."""
    sources = [Source.parse(text, arguments.folder) for text in arguments.sources]
    if arguments.hostfile:
        hosts = [host.name for host in read_hostfile(arguments.hostfile)]
        sources += sources_of(hosts, arguments.folder)
    if not sources:
        raise UserError("gather from where? name other hosts: --from HOST:FOLDER, or --hostfile FILE")
    gather(arguments.folder, sources, Ssh(arguments.ssh_port), lambda line: print(line, flush=True))
    return 0
