"""A few real steps of a run, in a folder that is removed: the seconds and the memory that they take."""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from rankdrift import files
from rankdrift.layout import StudyLayout
from rankdrift.planning.forecast import Trial
from rankdrift.spec import Spec, parse_spec
from rankdrift.spec.trials import ALONE
from rankdrift.studies.launcher import launch

STEPS = 6
SETTLED = 2
"""Steps that are not timed: optimizers, kernels and the heap are set up in them."""


def trial(spec: Spec, config: Path, ranks: int) -> Trial:
    """Train a few steps of a run and return what they took; UserError and RankError as training has them."""
    with tempfile.TemporaryDirectory(prefix="rankdrift-plan-") as folder:
        short = shortened(spec, Path(folder))
        recipe = Path(folder) / "experiment.yaml"
        recipe.write_text(json.dumps(short.as_dict()), encoding="utf-8")  # JSON is YAML
        with _output_on_error_stream():
            launch(ranks, ["--config", str(config), "--experiment", str(recipe)])
        run = StudyLayout(short.study_root).run(short.run_name)
        rows, measured = files.read_jsonl(run.metrics), files.read_json(run.forecast)["measured"]
    steps = [row for row in rows if row["split"] == "train"]
    seconds = statistics.median(row["seconds"] for row in steps[SETTLED:])
    in_use = measured.get("in_use_gib")
    return Trial(seconds, _bytes(measured["memory_gib"]), None if in_use is None else _bytes(in_use))


def _bytes(gibibytes: float) -> int:
    return round(gibibytes * 2**30)


def shortened(spec: Spec, folder: Path) -> Spec:
    """Return the run cut to a few steps, in a folder, with nothing beside them that can be left out.

    Of a schedule of phases nothing is left: all that it trains does, at every step, which takes the most.
    """
    tree = spec.as_dict()
    tree["output"] = str(folder)
    tree["training"] |= {
        **ALONE,
        **{"steps": STEPS, "schedule": "constant", "warmup_steps": 0, "warmup_ratio": None},
        **{"eval_rows": 1, "probe_every": 0},
    }
    tree["method"]["schedule"] = ()
    return parse_spec(tree)


@contextlib.contextmanager
def _output_on_error_stream() -> Iterator[None]:
    """Let what ranks print go to the error stream: the output is the plan's."""
    sys.stdout.flush()
    kept = os.dup(1)
    try:
        os.dup2(2, 1)
        yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)
