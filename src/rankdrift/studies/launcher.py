"""Start the ranks of one training run under the DeepSpeed launcher, and end them with this process."""

from __future__ import annotations

import base64
import ctypes
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence

import torch

from rankdrift.errors import UserError

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def default_ranks() -> int:
    """Return the number of GPUs of this machine; without one, two ranks, or one on a single core."""
    if torch.cuda.is_available():
        return torch.cuda.device_count()
    return min(2, len(os.sched_getaffinity(0)))


def launch(ranks: int, arguments: Sequence[str]) -> None:
    """Run ``rankdrift train`` with so many ranks on this machine and wait for them.

    This is DeepSpeed's launcher of one node, which ``deepspeed --num_gpus N`` would start in turn: called
    directly, a signal to it reaches the ranks.

    Raises
    ------
    UserError
        If training refused its input (it has said why on the error stream).
    RuntimeError
        If a rank failed.

    """
    command = [
        *(sys.executable, "-u", "-m", "deepspeed.launcher.launch", "--log_level=error"),
        f"--world_info={_world_info(ranks)}",
        *("--master_addr=127.0.0.1", f"--master_port={_free_port()}", "--node_rank=0", "--no_local_rank"),
        *("--module", "rankdrift.cli.train", *arguments),
    ]
    process = subprocess.Popen(command, preexec_fn=_end_with_parent)
    try:
        status = process.wait()
    except BaseException:
        process.send_signal(signal.SIGTERM)
        process.wait()
        raise
    if status == 2:
        raise UserError("training did not start; its message is above")
    if status:
        raise RuntimeError(f"training ended with exit code {status}; see train.log in the run's folder")


def _world_info(ranks: int) -> str:
    """Return DeepSpeed's description of the hosts and their slots: base64 of JSON."""
    return base64.urlsafe_b64encode(json.dumps({"localhost": list(range(ranks))}).encode()).decode()


def _end_with_parent() -> None:
    """In the child: be sent SIGTERM when the parent dies, so that a killed study leaves no ranks behind."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
