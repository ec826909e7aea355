"""Train one run on several machines: by DeepSpeed's launcher over ssh, without ssh, or under Slurm.

  rankdrift launch --hostfile hosts -- --config ds_configs/zero2.json --experiment recipe.yaml
  rankdrift launch --hostfile hosts --no-ssh --node-rank 1 --master-addr vm1 -- ...   (on each host)
  rankdrift launch --slurm --nodes 2 --ranks-per-node 8 --hours 12 -- ...             (writes the script)

What comes after -- is for rankdrift train. Hosts are checked before anything is started, and ranks are given
this shell's NCCL_*, GLOO_*, HF_*, RANKDRIFT_*, TORCH_*, PATH and others (--env adds one; no secret is).
Where a rank or a host is lost, all ranks end; --max-restarts N starts them again from the newest checkpoint,
with --elastic on the hosts that are left.
To stop a run that was started on other hosts, make the file STOP in its folder on the first of them.
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rankdrift import files
from rankdrift.cli._arguments import count
from rankdrift.cli.train import add_arguments as add_training
from rankdrift.errors import UserError
from rankdrift.hosts.deepspeed_launcher import Start, command
from rankdrift.hosts.forwarded import forwarded, write_forwarded
from rankdrift.hosts.hostfile import read_hostfile
from rankdrift.hosts.sbatch import Allocation, sbatch_script
from rankdrift.hosts.ssh import Ssh, require_reachable
from rankdrift.layout import RunLayout, StudyLayout
from rankdrift.spec import load_recipe


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments."""
    how = parser.add_mutually_exclusive_group(required=True)
    how.add_argument("--hostfile", type=Path, help="lines NAME slots=N; node 0 is the first")
    how.add_argument("--slurm", action="store_true", help="write a script for sbatch")
    parser.add_argument(
        "--env", action="append", default=[], metavar="NAME[=VALUE]", help="give ranks it too"
    )
    parser.add_argument(
        "--dry-run", action="store_true", help="check and write, say the command, start nothing"
    )
    parser.add_argument(
        "--max-restarts",
        type=count,
        default=0,
        metavar="N",
        help="start again up to N times where a rank or a host is lost",
    )
    by_hosts = parser.add_argument_group("by a hostfile")
    by_hosts.add_argument(
        "--env-file", type=Path, default=Path("launch.env"), help="what is written (launch.env)"
    )
    by_hosts.add_argument("--master-addr", help="rank 0's address (of the first host)")
    by_hosts.add_argument("--master-port", type=int, default=29500, help="rank 0's port (29500)")
    by_hosts.add_argument("--ssh-port", type=int, help="of the hosts' sshd")
    by_hosts.add_argument("--no-ssh", action="store_true", help="start this host's ranks alone")
    by_hosts.add_argument("--node-rank", type=int, help="which line this host is, from 0; with --no-ssh")
    by_hosts.add_argument(
        "--elastic", action="store_true", help="start again without the host, or the GPU, that was lost"
    )
    by_slurm = parser.add_argument_group("under Slurm")
    by_slurm.add_argument("--nodes", type=int, default=1)
    by_slurm.add_argument("--ranks-per-node", type=int, default=8)
    by_slurm.add_argument("--hours", type=float, default=24.0)
    by_slurm.add_argument("--cpu", action="store_true", help="ask for no GPUs")
    by_slurm.add_argument("--partition")
    by_slurm.add_argument(
        "--sbatch", action="append", default=[], metavar="OPTION", help="a further one of sbatch's"
    )
    by_slurm.add_argument(
        "--script", type=Path, default=Path("launch.sbatch"), help="what is written (launch.sbatch)"
    )
    by_slurm.add_argument("--submit", action="store_true", help="submit it")
    parser.add_argument(
        "train", nargs=argparse.REMAINDER, metavar="-- ...", help="arguments of rankdrift train"
    )


def run(arguments: argparse.Namespace) -> int:
    """Check, write, start; return the exit code of the training."""
    train = arguments.train[1:] if arguments.train[:1] == ["--"] else arguments.train
    if "--config" not in train:
        raise UserError(
            "what comes after -- is for rankdrift train, and needs --config ds_configs/zeroN.json"
        )
    variables = forwarded(os.environ, arguments.env)
    return (
        _by_slurm(arguments, train, variables) if arguments.slurm else _by_hosts(arguments, train, variables)
    )


def _by_hosts(arguments: argparse.Namespace, train: Sequence[str], variables: dict[str, str]) -> int:
    hosts = read_hostfile(arguments.hostfile)
    if arguments.no_ssh != (arguments.node_rank is not None):
        raise UserError("--no-ssh and --node-rank N go together: each host is told which line it is")
    if arguments.no_ssh and arguments.max_restarts:
        raise UserError(
            "--max-restarts needs ssh to the hosts; without it, whatever starts the command on each of them "
            "starts it again after exit code 4"
        )
    ssh = Ssh(arguments.ssh_port)
    if not arguments.no_ssh:
        require_reachable([host.name for host in hosts], ssh, sys.executable, Path.cwd())
        write_forwarded(arguments.env_file, variables)
    start = Start(arguments.hostfile, arguments.master_port, arguments.master_addr, arguments.node_rank, ssh)
    print(shlex.join(command(start, hosts, train)), flush=True)
    run = _run_of(train)  # a mistake in what is trained is told before anything starts
    if not arguments.dry_run:
        from rankdrift.studies.host_ranks import HostRanks
        from rankdrift.studies.restarts import Restarts, carry_to_the_end

        given = dict(text.split("=", 1) for text in arguments.env if "=" in text)
        environment = {**os.environ, **given, "DS_ENV_FILE": str(arguments.env_file.absolute())}
        ranks = HostRanks(start, hosts, train, run, variables, environment)
        restarts = Restarts(arguments.max_restarts, arguments.elastic)
        carry_to_the_end(ranks, restarts, lambda line: print(line, flush=True))
    return 0


def _run_of(train: Sequence[str]) -> RunLayout:
    """Return the folder of the run that a training's arguments mean."""
    parser = argparse.ArgumentParser("rankdrift train")
    add_training(parser)
    asked = parser.parse_args(train)
    spec = load_recipe(asked.experiment, asked.overrides).spec(asked.arm, asked.seed)
    return StudyLayout(spec.study_root).run(spec.run_name)


def _by_slurm(arguments: argparse.Namespace, train: Sequence[str], variables: dict[str, str]) -> int:
    asked = Allocation(
        arguments.nodes,
        arguments.ranks_per_node,
        arguments.hours,
        not arguments.cpu,
        arguments.partition,
        tuple(arguments.sbatch),
        arguments.max_restarts,
    )
    files.write_text(arguments.script, sbatch_script(asked, Path.cwd(), sys.executable, train, variables))
    submit = ["sbatch", str(arguments.script)]
    print(shlex.join(submit), flush=True)
    if arguments.dry_run or not arguments.submit:
        return 0
    try:
        return subprocess.run(submit).returncode
    except FileNotFoundError:
        raise UserError("sbatch: no such command; submit the script on a host of the cluster") from None
