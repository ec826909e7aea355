"""Train runs whose micro-batches are found by measuring, on a memory that stands for a GPU's.

Called on each rank with a JSON file: a list of jobs as ``train_worker.py`` has them, each with "limit"
(bytes) and "each" (bytes a token, by rank); with "stop_at" it stops after that step's save. Each rank leaves
what went through the model at once in each step, and the peaks, as ``seen-<rank>.json`` below the run.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rankdrift import files
from rankdrift.cli.main import leave
from rankdrift.layout import StudyLayout
from rankdrift.spec import load_recipe
from rankdrift.training import checkpointing, collectives, engine, run, setup
from rankdrift.training.memory import GpuMemory
from rankdrift.training.trainer import Trainer

AT_REST = 1000
SAVE, FORWARD, STEP = checkpointing.save, engine.Engine.forward, Trainer.train_step


class StoppedError(Exception):
    """Stands for a kill."""


class StandIn(GpuMemory):
    """A memory in which each token that goes through the model takes so many bytes, by what really does."""

    def __init__(self, limit: int, each: int) -> None:
        self.most, self.bytes, self.each = 0, limit, each
        self.steps: list[int] = []
        self.peaks: list[int] = []

    def limit(self) -> int:
        return self.bytes

    def begin(self) -> int:
        return AT_REST

    def peak(self) -> int:
        self.peaks.append(AT_REST + self.each * self.most)
        return self.peaks[-1]


def train(job: dict[str, Any]) -> None:
    spec = load_recipe(Path(job["recipe"]), job["overrides"]).spec()
    layout = StudyLayout(spec.study_root).run(spec.run_name)
    memory = StandIn(job["limit"], job["each"][collectives.rank()])

    def forward(self: engine.Engine, batch: dict[str, Any], **options: Any) -> Any:
        memory.most = max(memory.most, batch["input_ids"].numel())
        return FORWARD(self, batch, **options)

    def train_step(self: Trainer, step: int) -> Any:
        memory.most = 0
        done = STEP(self, step)
        memory.steps.append(memory.most)
        return done

    def save(under: engine.Engine, to: Any, record: Any, *rest: Any) -> Any:
        under_way = SAVE(under, to, record, *rest)
        if record.step == job.get("stop_at"):
            under_way.finish()
            raise StoppedError
        return under_way

    engine.Engine.forward, Trainer.train_step = forward, train_step  # type: ignore[method-assign]
    checkpointing.save = save
    run.memory_of_device = setup.memory_of_device = lambda: memory
    try:
        run.train(spec, Path(job["config"]))
    except StoppedError:
        return
    finally:
        path = layout.root / f"seen-{collectives.rank()}.json"
        seen = {"at_once": memory.steps, "peaks": memory.peaks}
        files.write_json(path, [*(files.read_json(path) if path.exists() else []), seen])


def main() -> None:
    with collectives.process_group():
        for job in json.loads(Path(sys.argv[1]).read_text()):
            train(job)
    leave(0)


if __name__ == "__main__":
    main()
