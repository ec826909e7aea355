"""Train several small runs in one process group, each asked something at a certain moment.

Called with a JSON file: a list of {"recipe", "config" (DeepSpeed JSON's path), "output", "steps", "asked"},
where "asked" is a list of {"what" (a signal's name, or a file of the run's folder), "rank", "when" (a method
of the trainer or of a callback), "step"}: the rank is asked as the method begins for this step. "fails_at" is
a step whose save fails. Rank 0 adds to every job how it "ended" on each rank, the steps that are "saved", the
"state" in status.json and the "files" that ask for something still, and writes the list back.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

from rankdrift import files
from rankdrift.cli.main import leave
from rankdrift.errors import Preempted, UserError
from rankdrift.layout import StudyLayout
from rankdrift.spec import load_recipe
from rankdrift.training import checkpointing, collectives
from rankdrift.training.callbacks.evaluation import Evaluation
from rankdrift.training.callbacks.saving import Saving
from rankdrift.training.run import train
from rankdrift.training.stop_requests import listening
from rankdrift.training.trainer import Trainer
from rankdrift.zero_checkpoint.manifest import complete_steps

MOMENTS = {"train_step": Trainer, "evaluate": Evaluation, "begin": Saving}
METHODS = {name: getattr(owner, name) for name, owner in MOMENTS.items()}
BEGIN = checkpointing.Save.begin


def ask(what: str, root: Path) -> None:
    if hasattr(signal, what):
        os.kill(os.getpid(), getattr(signal, what))
    else:
        (root / what).touch()


def prepare(job: dict[str, Any]) -> None:
    """Make the trainer ask for what a job says."""
    moments = {(a["when"], a["step"]): a["what"] for a in job["asked"] if a["rank"] == collectives.rank()}
    for name, method in METHODS.items():

        def asking(*given: Any, name: str = name, method: Any = method) -> Any:
            trainer, step = given[-2:]  # of a callback's method they come after itself
            if what := moments.pop((name, step), None):
                ask(what, trainer.run.root)
            return method(*given)

        setattr(MOMENTS[name], name, asking)

    def begin(self: checkpointing.Save, *arguments: Any) -> None:
        if self.manifest.step == job.get("fails_at"):
            raise UserError("no space")
        BEGIN(self, *arguments)

    checkpointing.Save.begin = begin  # type: ignore[method-assign]


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Train as far as the job lets it; return how that ended."""
    prepare(job)
    overrides = [f"output={job['output']}", f"training.steps={job['steps']}"]
    spec = load_recipe(Path(job["recipe"]), overrides).spec()
    layout = StudyLayout(spec.study_root).run(spec.run_name)
    end = "finished"
    with listening() as requests:
        try:
            train(spec, Path(job["config"]), requests)
        except (Preempted, UserError) as error:
            end = f"{type(error).__name__}: {error}".replace(str(layout.root), "RUN")
    return {
        "ended": collectives.gather(end),
        "saved": complete_steps(layout.checkpoints),
        "state": files.read_json(layout.status)["state"],
        "files": [path.name for path in (layout.save_request, layout.stop_request) if path.exists()],
    }


def main() -> None:
    path = Path(sys.argv[1])
    jobs = json.loads(path.read_text())
    with collectives.process_group():
        for job in jobs:
            job |= run(job)
        if collectives.rank() == 0:
            path.write_text(json.dumps(jobs))


if __name__ == "__main__":
    main()
    leave(0)
