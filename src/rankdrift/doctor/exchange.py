"""Two seconds of all-reduces between ranks of this machine, which are processes of their own."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed

from rankdrift import files
from rankdrift.errors import UserError

ELEMENTS = 4 * 2**20
"""Of the vector that is added up, fp32: 16 MiB."""
SECONDS = 2.0
TIMEOUT = 60.0  # seconds for a rank to begin and to end
RUN = "import sys; from rankdrift.doctor import exchange; exchange.be_a_rank(sys.argv[1])"


def all_reduce_speed(ranks: int) -> tuple[float, str]:
    """Return the bytes a second that each rank has added up with the others, and the backend.

    Raises UserError where a rank fails or does not answer in time.
    """
    backend = "nccl" if torch.cuda.device_count() >= ranks else "gloo"
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder) / "speed.json"
        shared = {"WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
        shared |= {"RANKDRIFT_BACKEND": backend, "OMP_NUM_THREADS": 1}
        processes = []
        for rank in range(ranks):
            own = {key: str(value) for key, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()}
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", RUN, str(told)],
                    env={**os.environ, **own},
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        try:
            _wait(processes)
        finally:
            for process in processes:
                process.kill()
        speed: float = files.read_json(told)["bytes_per_second"]
    return speed, backend


def _wait(processes: list[subprocess.Popen[str]]) -> None:
    ends = time.monotonic() + TIMEOUT
    for rank, process in enumerate(processes):
        try:
            _, said = process.communicate(timeout=max(0.1, ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise UserError(f"rank {rank} of {len(processes)} has not ended within {TIMEOUT:.0f} s") from None
        if process.returncode:
            last = (said.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
            raise UserError(f"rank {rank} of {len(processes)} failed: {last}")


def be_a_rank(told: str) -> None:
    """Join the group that the environment describes and add up vectors; rank 0 writes how fast."""
    rank, backend = int(os.environ["RANK"]), os.environ["RANKDRIFT_BACKEND"]
    if backend == "nccl":
        torch.cuda.set_device(rank)
    torch.distributed.init_process_group(backend, timeout=timedelta(seconds=TIMEOUT / 2))
    vector = torch.zeros(ELEMENTS, device="cuda" if backend == "nccl" else "cpu")
    torch.distributed.all_reduce(vector)
    began, done, go_on = time.perf_counter(), 0, torch.ones(1, device=vector.device)
    while go_on.item():
        torch.distributed.all_reduce(vector)
        done += 1
        # all ranks must end with the same exchange
        go_on.fill_(float(rank == 0 and time.perf_counter() - began < SECONDS))
        torch.distributed.all_reduce(go_on)
    rate = done * vector.numel() * vector.element_size() / (time.perf_counter() - began)
    if rank == 0:
        files.write_json(Path(told), {"bytes_per_second": rate})
    torch.distributed.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
