"""Train several small runs one after the other in one process group; one process a rank.

Called with a JSON file: a list of {"recipe", "config" (DeepSpeed JSON's path), "overrides"}. A run may stop
early, as if killed: at the save of the step "stop_at", after it or ("saved" is false) before it. It may
begin as a copy of another run up to the save of a step: "copy_of" (its folder), "copy_step". With "states" it
writes what DeepSpeed gathers from the engine below its folder: ``saved-N.pt`` at each save, ``restored-N.pt``
after a resume. "forged" (a step) doubles a loss in the log first; "forget" removes what is kept for replay;
with "refused" (a file's name below its folder) it may end with an IntegrityError, whose text goes there. Its
probe takes "slow_probe" seconds longer.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import deepspeed
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

from rankdrift import files
from rankdrift.cli.main import leave
from rankdrift.errors import IntegrityError
from rankdrift.layout import RunLayout, StudyLayout, steps_in
from rankdrift.spec import load_recipe
from rankdrift.training import checkpointing, collectives, engine
from rankdrift.training.probes import Sums, gradients
from rankdrift.training.run import train as train_run

PROBE, DIVIDE = gradients.PROBE, engine.divide
SAVE, RESUME = checkpointing.save, checkpointing.resume
MOMENTS = ("exp_avg", "exp_avg_sq")


class StoppedError(Exception):
    """Stands for a kill."""


def watch(job: dict[str, Any]) -> None:
    """Make saves and the resume of the next run do what its job asks for."""
    stop_at, saved, states = job.get("stop_at"), job.get("saved", True), job.get("states", False)

    def save(under: engine.Engine, run: RunLayout, record: Any, *rest: Any) -> checkpointing.Save:
        if states:
            write_state(under, run.root / f"saved-{record.step}.pt")
        if record.step == stop_at and not saved:
            raise StoppedError
        under_way = SAVE(under, run, record, *rest)
        if record.step == stop_at:
            under_way.finish()
            raise StoppedError
        return under_way

    def resume(under: engine.Engine, run: RunLayout, *rest: Any) -> int:
        step = RESUME(under, run, *rest)
        if states and step:
            write_state(under, run.root / f"restored-{step}.pt")
        return step

    class Slow(PROBE):
        def before_update(self) -> Sums:
            time.sleep(job.get("slow_probe", 0))
            return super().before_update()

    def divide(model: torch.nn.Module, init: Any, device: torch.device) -> None:
        DIVIDE(model, init, device)
        model.to = lambda *arguments: sys.exit("DeepSpeed moves the whole model")  # type: ignore[assignment]

    checkpointing.save, checkpointing.resume = save, resume
    engine.divide = divide
    gradients.PROBE = Slow  # type: ignore[misc]


def write_state(under: engine.Engine, path: Path) -> None:
    """Write weights, masters, moments and counters, gathered by DeepSpeed's own functions."""
    optimizer = under.optimizer
    if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
        # DeepSpeed does it once, when only the first group has moments
        optimizer._hp_optimizer_states_linked = False
        optimizer._lazy_init_hp_params_optimizer_state()
    state = {name: gathered(under, param) for name, param in under.parameters}
    counts = {float(entry["step"]) for entry in optimizer.state.values()}
    counters = ("global_steps", "global_samples", "skipped_steps", "micro_steps")
    facts = {"adam_steps": counts, **{key: getattr(under.deepspeed, key) for key in counters}}
    if collectives.rank() == 0:
        torch.save({"state": state, "facts": facts}, path)


def gathered(under: engine.Engine, param: Any) -> dict[str, torch.Tensor]:
    """Return one parameter's weight as the model has it, its master and its moments, each whole."""
    if under.stage == 0:
        moments = under.optimizer.state[param]
        whole = {"weight": param, "master": param, **{key: moments[key] for key in MOMENTS}}
        return {key: value.detach().clone() for key, value in whole.items()}
    with deepspeed.zero.GatheredParameters(param, enabled=under.stage == 3):
        weight = param.detach().clone()
    moments = {key: safe_get_full_optimizer_state(param, key) for key in MOMENTS}
    return {"weight": weight, "master": safe_get_full_fp32_param(param), **moments}


def copy_run(job: dict[str, Any], run: RunLayout) -> None:
    """Begin a run as another one stood just after the save of a step."""
    if collectives.rank() == 0:
        shutil.copytree(job["copy_of"], run.root)
        for step in steps_in(run.checkpoints):
            if step > job["copy_step"]:
                shutil.rmtree(run.checkpoint(step))
        logged = [row for row in files.read_jsonl(run.metrics) if row["step"] <= job["copy_step"]]
        files.write_text(run.metrics, "".join(map(files.json_line, logged)))
    collectives.barrier()


def prepare(job: dict[str, Any], run: RunLayout) -> None:
    """Tamper with what a run has logged, as its job asks."""
    if collectives.rank() == 0 and "forged" in job:
        rows = files.read_jsonl(run.metrics)
        changed = [row | {"loss": 2 * row["loss"]} if row["step"] == job["forged"] else row for row in rows]
        files.write_text(run.metrics, "".join(map(files.json_line, changed)))
    if collectives.rank() == 0 and job.get("forget"):
        run.replay.unlink()
    collectives.barrier()


def train(jobs: list[dict[str, Any]]) -> None:
    """Train every job's run; one rank of the group that the environment describes."""
    with collectives.process_group():
        for job in jobs:
            spec = load_recipe(Path(job["recipe"]), job["overrides"]).spec()
            if "copy_of" in job:
                copy_run(job, StudyLayout(spec.study_root).run(spec.run_name))
            prepare(job, StudyLayout(spec.study_root).run(spec.run_name))
            watch(job)
            try:
                train_run(spec, Path(job["config"]))
            except StoppedError:
                continue
            except IntegrityError as error:
                if not job.get("refused"):
                    raise
                messages = collectives.gather(str(error))
                if collectives.rank() == 0:
                    run = StudyLayout(spec.study_root).run(spec.run_name)
                    (run.root / job["refused"]).write_text("\n".join(messages))


if __name__ == "__main__":
    train(json.loads(Path(sys.argv[1]).read_text()))
    leave(0)
