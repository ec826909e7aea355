"""What do all probes cost, taken every tenth step?

    python benchmarks/probe_time.py --data FOLDER

Steps with and without probes are made in turn, by the whole loop (without evaluation and saves) on one
engine, each pair on the same rows. A tenth of the difference over a step without is what probes
cost at ``training.probe_every=10``. With one task (the noise scale is measured), and with two whose gradients
are compared.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

from rank_processes import CPU, run_ranks

from rankdrift import files

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parent / "ds_configs" / "zero2.json"
EVERY, WARM_UP = 10, 4
TASKS = {"one task": "sst2", "two tasks": "sst2,mnli"}
METHODS = {"full": ("method.name=full",), "lora": ("method.name=lora", "method.rank=8")}


def loop_of(output: Path, arguments: argparse.Namespace) -> Any:
    """Return a trainer that has begun and probes every second step."""
    from rankdrift.layout import StudyLayout
    from rankdrift.spec import apply_overrides, parse_spec
    from rankdrift.training import collectives, engine, journal, run, setup, trainer
    from rankdrift.training.callbacks.probing import Probing
    from rankdrift.training.callbacks.recording import Recording

    given = [f"output={output}", f"model.name={arguments.model}", *METHODS[arguments.method]]
    given += [
        f"data.tasks=[{TASKS[arguments.tasks]}]",
        f"data.root={arguments.data}",
        "data.train_limit=2000",
    ]
    given += ["data.validation_limit=8", f"training.steps={arguments.steps}", "training.probe_every=2"]
    given += ["training.probe_conflict=true", "training.global_batch=16", "training.micro_batch=4"]
    spec = parse_spec(apply_overrides({}, given))
    plan = setup.set_up(spec, StudyLayout(spec.study_root).run(spec.run_name), CONFIG)
    under = engine.Engine(run.prepared_model(plan), spec.training, plan.config)
    plan.run.root.mkdir(parents=True, exist_ok=True)
    log = journal.Journal(plan.run, arguments.steps, 0) if collectives.rank() == 0 else None
    callbacks = (Probing(), Recording())
    loop = trainer.Trainer(plan, under, callbacks, 0, log)
    loop.data = dataclasses.replace(loop.data, order=Twice(loop.data.order))
    for callback in callbacks:
        callback.at_start(loop)
    return loop


class Twice:
    """An order of rows in which every step's come twice."""

    def __init__(self, order: Any) -> None:
        self.order = order

    def rows(self, step: int) -> Any:
        """Return the rows of a step, from 0."""
        return self.order.rows(step // 2)


def timed_step(loop: Any, step: int) -> float:
    """Train a step as the loop does; return its wall time, everything included."""
    from rankdrift.training import collectives

    collectives.barrier()
    began = time.perf_counter()
    done = loop.train_step(step)
    for callback in loop.callbacks:
        callback.after_step(loop, done)
    collectives.barrier()
    return time.perf_counter() - began


def rank_main(arguments: argparse.Namespace) -> None:
    """Measure one case on one rank of the group."""
    from rankdrift.training import collectives

    with collectives.process_group(), tempfile.TemporaryDirectory() as folder:
        shared = Path(collectives.gather(folder)[0])
        loop = loop_of(shared, arguments)
        times = [timed_step(loop, step) for step in range(1, arguments.steps + 1)][WARM_UP:]
        began = time.perf_counter()
        if loop.journal:
            loop.journal.flush()  # rows are made of what was measured
        written = (time.perf_counter() - began) / (arguments.steps // 2)
        if collectives.rank() == 0:
            pairs = list(zip(times[::2], times[1::2], strict=True))
            plain = statistics.median(without for without, _ in pairs)
            extra = statistics.median(measured - without for without, measured in pairs)
            found = {"step": plain, "probes": extra, "tables": written}
            found["share"] = (extra + written) / (EVERY * plain)
            arguments.out.write_text(json.dumps(found))
        collectives.barrier()


def main() -> None:
    """Measure all cases one after the other."""
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=form)
    parser.add_argument("--port", type=int, default=29745)
    parser.add_argument("--data", type=Path, required=True, help="folder with glue_sst2/ and glue_mnli/")
    parser.add_argument("--models", nargs="+", default=["tiny", "smollm2-135m"])
    parser.add_argument("--steps", type=int, default=44)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--result", type=Path, default=HERE / "results" / "probe_time.json")
    parser.add_argument("--model", help=argparse.SUPPRESS)
    parser.add_argument("--method", help=argparse.SUPPRESS)
    parser.add_argument("--tasks", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        rank_main(arguments)
        return
    results = []
    for model, method, tasks in itertools.product(arguments.models, METHODS, TASKS):
        repeats = [one_case(arguments, model, method, tasks) for _ in range(arguments.repeats)]
        medians = {key: statistics.median(found[key] for found in repeats) for key in repeats[0]}
        shares = [found["share"] for found in repeats]
        case = {"model": model, "method": method, "tasks": tasks, **medians, "shares": shares}
        print(json.dumps(case), flush=True)
        results.append(case)
    record = {"environment": files.environment(), "every": EVERY, "ranks": 2, "zero": 2, "cases": results}
    files.write_json(arguments.result, record)


def one_case(arguments: argparse.Namespace, model: str, method: str, tasks: str) -> dict[str, float]:
    """Run one case on two ranks; return what rank 0 measured."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        options = ["--data", str(arguments.data), "--model", model, "--method", method, "--tasks", tasks]
        options += ["--steps", str(arguments.steps), "--out", str(out)]
        run_ranks([__file__, *options], 2, arguments.port, {"OMP_NUM_THREADS": 1, **CPU})
        found: dict[str, float] = json.loads(out.read_text())
        return found


if __name__ == "__main__":
    main()
