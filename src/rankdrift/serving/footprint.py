"""What a model takes before it answers: seconds to load it from the disk, and memory with it at work.

Each time in a process of its own, so that nothing of another model counts. The kernel is told to forget
the files first: they come from the disk, not from its cache.
"""

from __future__ import annotations

import os
import resource
import warnings
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from rankdrift.serving.bank import Place, Served
from rankdrift.serving.deployed import Deployed
from rankdrift.serving.passes import classify, clock_of, generate

MODULE = "rankdrift.serving.footprint"


@dataclass(frozen=True)
class Footprint:
    """Of one model, once."""

    cold_load: float
    """Seconds from its files to a model that could answer."""
    loaded_memory: int
    """Bytes then, beyond those of the program."""
    peak_memory: int
    """The most bytes until it had answered the largest request."""


def footprint(place: Place, deployed: Deployed, prompt: Sequence[Sequence[int]], tokens: int) -> Footprint:
    """Load a model and answer one request in a fresh process; return what that took."""
    context = get_context("forkserver")
    context.set_forkserver_preload([MODULE])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        return pool.submit(_measure, place, deployed, prompt, tokens).result()


def _measure(place: Place, deployed: Deployed, prompt: Sequence[Sequence[int]], tokens: int) -> Footprint:
    warnings.filterwarnings(
        "ignore", category=FutureWarning, module="transformers"
    )  # as in the command itself
    on_gpu = place.device.startswith("cuda")
    clock = clock_of(place.device)
    if on_gpu:  # starting the device is the program's, too
        torch.zeros(1, device=place.device)
        torch.cuda.reset_peak_memory_stats(place.device)
    forget([place.base, *([deployed.tuned.export] if deployed.tuned else [])])
    before = 0 if on_gpu else _resident()
    began = clock()
    served = Served(deployed, place.load(deployed))
    seconds = clock() - began
    loaded = torch.cuda.memory_allocated(place.device) if on_gpu else _resident() - before
    answer = classify if place.labels else generate
    answer(served, torch.tensor(prompt, device=place.device), tokens, clock)
    peak = torch.cuda.max_memory_allocated(place.device) if on_gpu else _highest() - before
    return Footprint(seconds, loaded, peak)


def forget(folders: Sequence[Path]) -> None:
    """Ask the kernel to keep nothing of the weights' files in memory; what others have mapped stays."""
    for path in (path for folder in folders for path in folder.glob("*.safetensors")):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)


def _resident() -> int:
    fields = Path("/proc/self/statm").read_text().split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def _highest() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def adapter_seconds(
    model: Any, folders: Sequence[Path], names: Sequence[str], place: Place
) -> dict[str, float]:
    """Return the seconds to load one more adapter, to switch between two, and to put one in another's place.

    Parameters
    ----------
    model
        A model of PEFT's that has the adapters ``names``.
    folders
        Theirs; the last one's is loaded once more.
    names
        Of two at least.
    place
        Where it runs.

    """
    from peft.utils.hotswap import hotswap_adapter

    clock = clock_of(place.device)
    forget(folders[-1:])
    began = clock()
    model.load_adapter(str(folders[-1]), adapter_name="one-more")
    loaded = clock()
    model.set_adapter(names[1])
    switched = clock()
    hotswap_adapter(model, str(folders[0]), "one-more", torch_device=place.device)
    swapped = clock()
    model.delete_adapter("one-more")
    model.set_adapter(names[0])
    return {
        "adapter_load": loaded - began,
        "adapter_switch": switched - loaded,
        "adapter_swap": swapped - switched,
    }
