"""The script by which Slurm starts a training: one task a rank."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from rankdrift.errors import UserError

RESTART = """\
lost=rankdrift-$SLURM_JOB_ID.lost  # a line for each time a rank was lost (4), or killed (137)
if [ $status -eq 4 ] || [ $status -eq 137 ]; then
  echo $status >> $lost
  if [ $(wc -l < $lost) -le {most} ]; then scontrol requeue $SLURM_JOB_ID; fi
fi
"""


@dataclass(frozen=True)
class Allocation:
    """What is asked of Slurm."""

    nodes: int
    ranks_per_node: int
    hours: float
    gpus: bool = True
    """Whether each rank asks for a GPU."""
    partition: str | None = None
    further: tuple[str, ...] = ()
    """More options, as ``sbatch`` takes them: ``--account=physics``."""
    restarts: int = 0
    """How often it is submitted again where a rank or a node is lost."""


def sbatch_script(
    asked: Allocation, folder: Path, python: str, arguments: Sequence[str], variables: Mapping[str, str]
) -> str:
    """Return the script; it is submitted again by the job itself where it was stopped and has saved.

    Slurm sends SIGTERM to every rank a minute and a half before the time is up, which they take as a request
    to save and stop (exit code 75). Jobs that are submitted again keep their number; a file counts how often
    that was for a lost rank.
    """
    if asked.nodes < 1 or asked.ranks_per_node < 1:
        raise UserError(
            f"--nodes {asked.nodes} --ranks-per-node {asked.ranks_per_node}: both must be at least 1"
        )
    minutes = max(1, round(asked.hours * 60))
    options = [
        "--job-name=rankdrift",
        f"--nodes={asked.nodes}",
        f"--ntasks-per-node={asked.ranks_per_node}",
        f"--time={minutes // 60}:{minutes % 60:02d}:00",
        "--signal=TERM@90",
        "--open-mode=append",
        "--output=rankdrift-%j.log",
        *(["--gpus-per-task=1", "--gpu-bind=none"] if asked.gpus else []),
        *([f"--partition={asked.partition}"] if asked.partition else []),
        *asked.further,
    ]
    exports = [f"export {name}={shlex.quote(value)}" for name, value in variables.items()]
    command = shlex.join([python, "-u", "-m", "rankdrift.cli.train", *arguments])
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH {option}" for option in options),
        "# each task is a rank: rankdrift reads SLURM_PROCID, SLURM_LOCALID and the list of nodes",
        *exports,
        f"cd {shlex.quote(str(folder))} || exit 1",
        f"srun --kill-on-bad-exit=1 {command}",
        "status=$?",
        "if [ $status -eq 75 ]; then scontrol requeue $SLURM_JOB_ID; fi  # it has saved: go on from there",
        *(RESTART.format(most=asked.restarts).splitlines() if asked.restarts else []),
        "exit $status",
    ]
    return "\n".join(lines) + "\n"
