"""Count what makes the host wait for the device in a step; one process a rank.

Called with a JSON file like that of ``train_worker.py`` and the file for the counts: of every job's run what
its third step waits for, by who asks. On a GPU torch itself tells of each wait; on a CPU, where nobody waits,
numbers that are read out of tensors stand for them, and copies to the CPU.
"""

from __future__ import annotations

import collections
import json
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from rankdrift import files
from rankdrift.spec import load_recipe
from rankdrift.training import collectives
from rankdrift.training.run import train
from rankdrift.training.trainer import Trainer

STEP = 3  # the first ones set things up
COUNTED = ("rankdrift", "transformers", "deepspeed")


class Waits(TorchDispatchMode):
    """Counts the waits of what runs within."""

    def __init__(self) -> None:
        super().__init__()
        self.by: collections.Counter[str] = collections.Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.count()
        return func(*args, **(kwargs or {}))

    def count(self) -> None:
        """Count one to the innermost caller of ours or of DeepSpeed."""
        for frame in reversed(traceback.extract_stack()):
            for name in COUNTED:
                if f"/{name}/" in frame.filename:
                    self.by[name] += 1
                    return
        self.by["others"] += 1


def on_cpu(step: Any) -> dict[str, int]:
    waits, to_cpu = Waits(), torch.Tensor.cpu

    def counted(tensor: torch.Tensor, *arguments: Any) -> torch.Tensor:
        waits.count()
        return to_cpu(tensor, *arguments)

    torch.Tensor.cpu = counted  # type: ignore[method-assign, assignment]
    with waits:
        step()
    torch.Tensor.cpu = to_cpu  # type: ignore[method-assign]
    return dict(waits.by)


def on_gpu(step: Any) -> dict[str, int]:
    """torch warns of each wait, at the line of Python that asked for it."""
    torch.cuda.set_sync_debug_mode("warn")
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        step()
    torch.cuda.set_sync_debug_mode("default")
    of_waits = [one.filename for one in told if "synchronizing" in str(one.message)]
    named = [next((name for name in COUNTED if f"/{name}/" in file), "others") for file in of_waits]
    return dict(collections.Counter(named))


def main(jobs: list[dict[str, Any]], out: Path) -> None:
    found: dict[str, dict[str, int]] = {}
    train_step = Trainer.train_step

    def watched(trainer: Trainer, step: int) -> Any:
        if step != STEP:
            return train_step(trainer, step)
        done: list[Any] = []
        count = on_gpu if torch.cuda.is_available() else on_cpu
        found[trainer.run.root.name] = count(lambda: done.append(train_step(trainer, step)))
        return done[0]

    Trainer.train_step = watched  # type: ignore[method-assign]
    with collectives.process_group():
        for job in jobs:
            train(load_recipe(Path(job["recipe"]), job["overrides"]).spec(), Path(job["config"]))
        if collectives.rank() == 0:
            files.write_json(out, found)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()), Path(sys.argv[2]))
