"""Train several small runs one after the other in one process group; one process a rank.

Starting DeepSpeed takes ten seconds, a run of the tiny model one: so all runs of a test share a start.
Called with a JSON file: a list of {"name", "config" (DeepSpeed JSON's path), "overrides"}. A run may stop
early ("stop_after"), as if killed once that step's checkpoint was saved.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

from rankdrift.spec import load_recipe
from rankdrift.training import checkpointing, engine, trainer


class StoppedError(Exception):
    """Stands for a kill right after a save."""


def stop_after(step: int | None) -> None:
    save = checkpointing.save

    def save_then_stop(*arguments: object) -> None:
        save(*arguments)  # type: ignore[arg-type]
        if arguments[2].step == step:  # type: ignore[attr-defined]
            raise StoppedError

    trainer.checkpointing.save = save_then_stop if step else save  # type: ignore[assignment]


def main() -> None:
    jobs = json.loads(Path(sys.argv[1]).read_text())
    original = checkpointing.save
    with engine.process_group():
        for job in jobs:
            spec = load_recipe(Path(job["recipe"]), job["overrides"]).spec()
            checkpointing.save = original
            stop_after(job.get("stop_after"))
            with contextlib.suppress(StoppedError):
                trainer.train(spec, Path(job["config"]))


if __name__ == "__main__":
    main()
