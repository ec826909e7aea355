"""Train several small runs one after the other in one process group; one process a rank.

Starting DeepSpeed takes ten seconds, a run of the tiny model one: so all runs of a test share a start.
Called with a JSON file: a list of {"recipe", "config" (DeepSpeed JSON's path), "overrides"}. A run may stop
early, as if killed: at the save of the step "stop_at", after it or ("saved" is false) before it.
"""

from __future__ import annotations

import contextlib
import json
import sys
from pathlib import Path

from rankdrift.spec import load_recipe
from rankdrift.training import checkpointing, engine, trainer


class StoppedError(Exception):
    """Stands for a kill."""


def stop_at_save(step: int | None, saved: bool) -> None:
    """Make the save of a step the last thing a run does, once it is done or just before."""
    save = checkpointing.save

    def save_or_stop(*arguments: object) -> None:
        stops = arguments[2].step == step  # type: ignore[attr-defined]
        if not stops or saved:
            save(*arguments)  # type: ignore[arg-type]
        if stops:
            raise StoppedError

    trainer.checkpointing.save = save_or_stop  # type: ignore[assignment]


def main() -> None:
    jobs = json.loads(Path(sys.argv[1]).read_text())
    original = checkpointing.save
    with engine.process_group():
        for job in jobs:
            spec = load_recipe(Path(job["recipe"]), job["overrides"]).spec()
            checkpointing.save = original
            stop_at_save(job.get("stop_at"), saved=job.get("saved", True))
            with contextlib.suppress(StoppedError):
                trainer.train(spec, Path(job["config"]))


if __name__ == "__main__":
    main()
