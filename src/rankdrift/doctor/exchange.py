"""Two seconds of all-reduces between ranks, which are processes of their own, on one machine or several."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed

from rankdrift.errors import UserError
from rankdrift.hosts.interface import interface_towards

ELEMENTS = 4 * 2**20
"""Of the vector that is added up, fp32: 16 MiB."""
SECONDS = 2.0
TIMEOUT = 60.0  # seconds for a rank to begin and to end
RUN = "from rankdrift.doctor import exchange; exchange.be_a_rank()"


def all_reduce_speed(ranks: int) -> tuple[float, str]:
    """Return the bytes a second that each rank has added up with the others, and the backend.

    Raises UserError where a rank fails or does not answer in time.
    """
    return start_ranks(Ranks(0, ranks, ranks, "127.0.0.1", _free_port()))


@dataclass(frozen=True)
class Ranks:
    """A machine's share of a group."""

    first: int
    here: int
    """Ranks on this machine, from ``first`` on."""
    world: int
    address: str
    """Of rank 0."""
    port: int


def start_ranks(ranks: Ranks) -> tuple[float, str]:
    """Run this machine's ranks; return rank 0's speed, 0 where it is elsewhere, and the backend.

    Raises UserError where a rank fails or does not answer in time.
    """
    backend = "nccl" if torch.cuda.device_count() >= ranks.here else "gloo"
    shared = {"WORLD_SIZE": ranks.world, "MASTER_ADDR": ranks.address, "MASTER_PORT": ranks.port}
    shared |= {"RANKDRIFT_BACKEND": backend, "OMP_NUM_THREADS": 1}
    if ranks.world > ranks.here and (interface := interface_towards(ranks.address)):
        shared.setdefault("GLOO_SOCKET_IFNAME", os.environ.get("GLOO_SOCKET_IFNAME", interface))
    processes = []
    try:
        for local in range(ranks.here):
            own = shared | {"RANK": ranks.first + local, "LOCAL_RANK": local}
            processes.append(
                subprocess.Popen(
                    [sys.executable, "-c", RUN],
                    env={**os.environ, **{key: str(value) for key, value in own.items()}},
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                )
            )
        said = _wait(processes, ranks)
    finally:
        for process in processes:
            process.kill()
    return float(said[0] or 0), backend


def _wait(processes: list[subprocess.Popen[str]], ranks: Ranks) -> list[str]:
    """Return what the ranks have printed."""
    ends, printed = time.monotonic() + TIMEOUT, []
    for rank, process in enumerate(processes, start=ranks.first):
        try:
            output, said = process.communicate(timeout=max(0.1, ends - time.monotonic()))
        except subprocess.TimeoutExpired:
            raise UserError(f"rank {rank} of {ranks.world} has not ended within {TIMEOUT:.0f} s") from None
        if process.returncode:
            last = (said.strip().splitlines() or [f"exit code {process.returncode}"])[-1]
            raise UserError(f"rank {rank} of {ranks.world} failed: {last}")
        printed.append(output.strip())
    return printed


def be_a_rank() -> None:
    """Join the group that the environment describes and add up vectors; rank 0 prints the bytes a second."""
    rank, backend = int(os.environ["RANK"]), os.environ["RANKDRIFT_BACKEND"]
    if backend == "nccl":
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
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
        print(rate, flush=True)
    torch.distributed.destroy_process_group()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


if __name__ == "__main__":  # one machine's share, over ssh
    first, here, world, address, port = sys.argv[1:]
    try:
        print(start_ranks(Ranks(int(first), int(here), int(world), address, int(port)))[0])
    except UserError as error:
        sys.exit(str(error))
