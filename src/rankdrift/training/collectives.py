"""The ranks of a run: their process group, their devices, and what they tell each other.

Like the engine, it may import deepspeed, which starts the group; no other module does.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import deepspeed
import deepspeed.ops
import deepspeed.utils.nvtx
import torch
import torch.distributed
from deepspeed.constants import default_pg_timeout
from deepspeed.utils import logger as deepspeed_logger
from torch import Tensor

from rankdrift import files
from rankdrift.errors import RankError, UserError
from rankdrift.hosts.interface import interface_towards
from rankdrift.layout import RunLayout
from rankdrift.training import heap

logger = logging.getLogger(__name__)

TIMEOUT = default_pg_timeout
"""How long a rank waits for another one: $DEEPSPEED_TIMEOUT minutes, or DeepSpeed's default of 10."""


@contextlib.contextmanager
def process_group() -> Iterator[None]:
    """Join the process group that the launcher describes; without a launcher, be a group of one.

    On a CPU, DeepSpeed would compile an operator (a minute, and 138 MB of /dev/shm that nobody removes)
    which only tensor-parallel inference calls: it is switched off.

    Raises
    ------
    RankError
        If another rank is lost, or keeps this one waiting for longer than ``TIMEOUT``.

    """
    deepspeed_logger.setLevel(logging.WARNING)
    # torch's notes to DeepSpeed's authors, twice a step
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
    if "RANK" not in os.environ:
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1"}
        os.environ.update(alone, MASTER_PORT="0")  # any free port: nobody else has to know it
    _choose_interface()
    if not torch.cuda.is_available():
        heap.keep_freed_memory()
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.utils.nvtx.enable_nvtx = False  # ranges for a GPU's profiler, thousands a step at stage 3
        _share_cores()
    _take_device()
    try:
        with standard_output_muted():
            deepspeed.init_distributed(verbose=False, timeout=TIMEOUT)
        # ZeRO works in groups of its own, which DeepSpeed gives torch's time-out of half an hour
        deepspeed.comm.comm.cdb.new_group = functools.partial(torch.distributed.new_group, timeout=TIMEOUT)
        yield
    except RuntimeError as error:
        if not _is_of_lost_rank(error):
            raise
        logger.info("another rank is lost", exc_info=True)
        raise RankError(f"rank {os.environ['RANK']} has lost another rank: {_first_line(error)}") from error
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


@contextlib.contextmanager
def alone_in(folder: Path, leads: bool) -> Iterator[None]:
    """Hold a folder for this run; raise UserError on every rank if another run holds it.

    One rank of each machine's folder ``leads``. The lock dies with its process, so a killed run never blocks
    its successor.
    """
    with contextlib.ExitStack() as stack:
        free = True
        if leads:
            free = stack.enter_context(files.held(RunLayout(folder).lock, wait=False))
        if max_over_ranks(0.0 if free else 1.0):
            raise UserError(f"{folder}: another process is training in it; wait for it or stop it")
        yield


def rank() -> int:
    """Return this process's rank."""
    return torch.distributed.get_rank()


def world_size() -> int:
    """Return the number of ranks."""
    return torch.distributed.get_world_size()


def device() -> torch.device:
    """Return this rank's device."""
    return torch.device(deepspeed.get_accelerator().current_device_name())


def to_device(values: Tensor) -> Tensor:
    """Return a tensor of the CPU on this rank's device; nobody waits until it is there."""
    if device().type == "cpu":
        return values
    return values.pin_memory().to(device(), non_blocking=True)


def scalar(value: float) -> Tensor:
    """Return a number as a vector of one element, fp64, on this rank's device."""
    return to_device(torch.tensor([value], dtype=torch.float64))


def wait_for_device() -> None:
    """Wait until the device has done all it was given."""
    deepspeed.get_accelerator().synchronize()


def barrier() -> None:
    """Wait until every rank is here."""
    torch.distributed.barrier()


def sum_over_ranks(values: Tensor) -> Tensor:
    """Return the element-wise sum over ranks; every rank must call it with the same shape."""
    total = values.to(device())
    torch.distributed.all_reduce(total)
    return total


def shares_of_ranks(values: Tensor) -> Tensor:
    """Return what all ranks have of this rank's share of a matrix' columns, shape (ranks, rows, share).

    Every rank must call it with the same shape, and as many columns as ranks can share evenly.
    """
    given = values.unflatten(1, (world_size(), -1)).transpose(0, 1).contiguous()
    taken = torch.empty_like(given)
    torch.distributed.all_to_all_single(taken, given)
    return taken


def whole_over_ranks(
    numels: Mapping[str, int], parts: Iterable[tuple[str, int, Tensor]]
) -> dict[str, Tensor]:
    """Return tensors whole on every rank, flat, fp32, from all ranks' parts, by one exchange.

    Every rank must call it, with the same names and elements, and parts of its own: name, first element and
    values. Each element is in one rank's.
    """
    begins = dict(zip(numels, itertools.accumulate(numels.values(), initial=0), strict=False))
    flat = torch.zeros(sum(numels.values()), device=device())
    for name, start, values in parts:
        first = begins[name] + start
        flat[first : first + len(values)] = values
    whole = sum_over_ranks(flat).split(list(numels.values()))
    return dict(zip(numels, whole, strict=True))


def gather_vectors(values: Tensor) -> Tensor:
    """Return every rank's vector, shape (ranks, n), on the CPU: this waits for the device.

    Every rank must give the same length, on its device.
    """
    every = [torch.empty_like(values) for _ in range(world_size())]
    torch.distributed.all_gather(every, values)
    return torch.stack(every).cpu()


def gather(value: Any) -> list[Any]:
    """Return every rank's value, in the order of the ranks, on every rank; for small things."""
    values: list[Any] = [None] * world_size()
    torch.distributed.all_gather_object(values, value)
    return values


def from_rank(source: int, values: Tensor) -> Tensor:
    """Return a rank's vector on every rank, on the CPU; every rank must give one of the same length."""
    moved = values.to(device())
    torch.distributed.broadcast(moved, src=source)
    return moved.cpu()


def require_none(failure: str | None) -> None:
    """Raise OSError on every rank if any rank reports a failure; every rank must call it."""
    if failures := [found for found in gather(failure) if found]:
        raise OSError(failures[0])


def on_rank_0(action: Callable[[], None]) -> None:
    """Do something on rank 0 while the others wait; raise OSError on every rank where it fails."""
    failure = None
    if rank() == 0:
        try:
            action()
        except (OSError, UserError) as error:
            failure = str(error)
    require_none(failure)


def max_over_ranks(value: float) -> float:
    """Return the largest value of any rank."""
    largest = scalar(value)
    torch.distributed.all_reduce(largest, op=torch.distributed.ReduceOp.MAX)
    return float(largest)


def _choose_interface() -> None:
    """Let gloo listen where rank 0 can be reached, unless the user has said where, or one machine has all."""
    address = os.environ["MASTER_ADDR"]
    if (
        _local_ranks() < int(os.environ["WORLD_SIZE"])
        and address not in ("127.0.0.1", "localhost")
        and (found := interface_towards(address))
    ):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", found)


def _take_device() -> None:
    """Make this rank's GPU the current one, before any exchange: else a machine's ranks all use its first.

    Raises UserError where the launcher started more ranks here than there are GPUs.
    """
    accelerator, local = deepspeed.get_accelerator(), int(os.environ.get("LOCAL_RANK", "0"))
    if accelerator.device_name() == "cpu":
        return
    if local >= accelerator.device_count():
        raise UserError(
            f"rank {os.environ['RANK']} is number {local} of this machine's ranks, which has "
            f"{accelerator.device_count()} GPUs; start at most one rank a GPU (--num_gpus, hostfile slots)"
        )
    accelerator.set_device(local)


def _is_of_lost_rank(error: RuntimeError) -> bool:
    """Whether an error says that an exchange failed: gloo's errors are of no class of their own."""
    return isinstance(error, torch.distributed.DistError) or "/gloo/" in str(error)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0]


def _share_cores() -> None:
    """Give each rank of this machine its share of the cores, unless the user has said otherwise."""
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // _local_ranks()))


def _local_ranks() -> int:
    """Return how many ranks this machine has, as torchrun or DeepSpeed's launcher says; else all."""
    said = (os.environ.get(name) for name in ("LOCAL_WORLD_SIZE", "LOCAL_SIZE", "WORLD_SIZE"))
    return int(next(filter(None, said)))


@contextlib.contextmanager
def standard_output_muted() -> Iterator[None]:
    """Keep DeepSpeed's bare prints out of the progress display; its logger still warns."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield
