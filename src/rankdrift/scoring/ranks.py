"""The process group of ranks that score together, as a launcher started them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch
import torch.distributed as dist

from rankdrift.scoring.shares import Shares


@contextlib.contextmanager
def rank_group() -> Iterator[Shares | None]:
    """Join the ranks of a launcher for as long as the block lasts; None where this is no rank of several."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield None
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("gloo")  # answers are exchanged, no tensors of a GPU
    try:
        yield Shares.of_group()
    finally:
        dist.destroy_process_group()
