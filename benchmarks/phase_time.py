"""How much shorter are forward and backward passes where nothing trains in the first layers?

    python benchmarks/phase_time.py --model smollm2-135m

In one run of LoRA and one of full fine-tuning the schedule takes turns: all projections train, those of the
second half of the blocks, of the first half. No gradient is computed below all that trains, so with the
second half alone the backward pass ends in the middle; with the first alone it goes through all, without
the gradients of the other weights. Medians of the steps of each kind; the first of each phase is left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from pathlib import Path

from rank_processes import CPU, run_ranks

from rankdrift import files

HERE = Path(__file__).resolve().parent
TRAIN = "import sys; from rankdrift.cli.main import main; sys.exit(main(['train', *sys.argv[1:]]))"
KINDS = {"all": {"train": "both"}, "late": {"train": "both", "layers": "late"}}
KINDS["early"] = {"train": "both", "layers": "early"}
PARTS = ("seconds", "seconds_forward", "seconds_backward", "seconds_update")


def measured(arguments: argparse.Namespace, method: str) -> dict[str, dict[str, float]]:
    """Train one run; return the medians of each kind of phase."""
    each, kinds = arguments.steps, list(KINDS) * arguments.turns
    schedule = [{**KINDS[kind], "until": each * (turn + 1)} for turn, kind in enumerate(kinds)]
    with tempfile.TemporaryDirectory() as output:
        settings = [f"output={output}", "study=s", "arm=a", f"model.name={arguments.model}"]
        settings += [f"method.name={method}", f"method.schedule={json.dumps(schedule)}"]
        settings += [f"training.steps={each * len(kinds)}", "training.warmup_steps=1", "training.eval_rows=2"]
        settings += ["training.save_every=null", "training.probe_every=0"]
        settings += [f"training.global_batch={8 * arguments.ranks}"]
        config = str(HERE.parent / "ds_configs" / "zero2.json")
        run_ranks(["-c", TRAIN, "--config", config, *settings], arguments.ranks, arguments.port, CPU)
        rows = files.read_jsonl(Path(output) / "s" / "runs" / "a-seed42" / "metrics.jsonl")
    steps = [row for row in rows if row["split"] == "train" and row["step"] % each != 1]
    found = {}
    for kind in KINDS:
        own = [row for row in steps if kinds[row["phase"]] == kind]
        found[kind] = {part: statistics.median(row[part] for row in own) for part in PARTS}
        found[kind]["steps"] = len(own)
    return found


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5, help="of a phase")
    parser.add_argument("--turns", type=int, default=3, help="phases of each kind")
    parser.add_argument("--port", type=int, default=29777)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "phase_time.json")
    arguments = parser.parse_args()
    medians = {method: measured(arguments, method) for method in ("lora", "full")}
    ratios = {
        method: {
            kind: own["seconds_backward"] / kinds["all"]["seconds_backward"] for kind, own in kinds.items()
        }
        for method, kinds in medians.items()
    }
    settings = {key: getattr(arguments, key) for key in ("model", "ranks", "steps", "turns")}
    found = {"settings": settings, "backward_over_that_of_all": ratios, "medians": medians}
    print(json.dumps(found, indent=2))
    files.write_json(arguments.output, found | {"environment": files.environment()})


if __name__ == "__main__":
    main()
