"""Ranks on this machine without a launcher, for benchmarks that compare how they train."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence

PLAIN_HEAP = """
import os, sys, types
heap = types.ModuleType("rankdrift.training.heap")
heap.share_one_heap = heap.use_huge_pages = heap.keep_freed_memory = lambda: None
sys.modules["rankdrift.training.heap"] = heap
os.environ["THP_MEM_ALLOC_ENABLE"] = "0"
"""
"""What a process runs first that is to have the heap of glibc and torch, not that of ``training/heap.py``."""
CPU = {"DS_ACCELERATOR": "cpu"}


def run_ranks(
    command: Sequence[str], count: int, port: int, environment: Mapping[str, object] | None = None
) -> None:
    """Run ``python COMMAND`` as every rank of a group, not printing; raise RuntimeError if one fails."""
    shared: dict[str, object] = {"WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, **(environment or {})}
    ranks = []
    for rank in range(count):
        own = {key: str(value) for key, value in (shared | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        ranks.append(
            subprocess.Popen([sys.executable, *command], env={**os.environ, **own}, stdout=subprocess.DEVNULL)
        )
    if any([rank.wait() for rank in ranks]):
        raise RuntimeError(f"a rank of {' '.join(command)} failed")


def medians(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Return the median of each figure over runs."""
    return {key: statistics.median(run[key] for run in runs) for key in runs[0]}


def median_ratio(
    over: Sequence[Mapping[str, float]], under: Sequence[Mapping[str, float]], figure: str
) -> float:
    """Return the median of a figure's ratio between the runs of one side and those beside them of another."""
    return statistics.median(one[figure] / other[figure] for one, other in zip(over, under, strict=True))
