"""Start a Python script as the ranks of a process group on this machine, without DeepSpeed's launcher."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path


def run_ranks(
    ranks: int, script: Path, *arguments: str, timeout: float = 280, accelerator: str = "cpu"
) -> None:
    """Run ``script`` once a rank; fail with the error stream of a rank that fails."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {"WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    # the launcher sets LOCAL_SIZE, and DeepSpeed opens shared memory only where it does
    shared |= {"LOCAL_SIZE": ranks, "OMP_NUM_THREADS": 1, "DS_ACCELERATOR": accelerator}
    processes = [
        subprocess.Popen(
            [sys.executable, str(script), *arguments],
            env={
                **os.environ,
                **{k: str(v) for k, v in shared.items()},
                "RANK": str(r),
                "LOCAL_RANK": str(r),
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for r in range(ranks)
    ]
    outputs = [process.communicate(timeout=timeout)[0] for process in processes]
    for number, process in enumerate(processes):
        assert process.returncode == 0, f"rank {number} of {script.name} failed:\n{outputs[number][-6000:]}"
