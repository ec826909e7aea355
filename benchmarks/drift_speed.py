"""What does measuring drift cost beside the two forward passes it needs?

    python benchmarks/drift_speed.py --folder FOLDER             SmolLM2-135M's shape, 1,000 inputs
    python benchmarks/drift_speed.py --folder FOLDER --quick     checks the script itself

A base model of random weights and the same with noise added are given the same inputs of random tokens, in
the same batches. Processor time of one thread (each worker of an analysis has one), in one process, in an
order that turns round with every repeat: the two forward passes alone; the analysis of a first checkpoint
(both passes, everything in ``drift_metrics`` and ``layer_similarity``, and what is kept of the base); the
analysis of a next checkpoint (one pass). Loading the models is on no side. Memory is the highest resident
set, file pages included: after the first passes alone, and in the end.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from gpu_training import tiny_config
from transformers import LlamaConfig, LlamaModel, PreTrainedModel

from rankdrift import files
from rankdrift.analysis.mathematics.representation import moments
from rankdrift.analysis.measures import drift
from rankdrift.analysis.sources import activations
from rankdrift.analysis.sources.activations import States, TokenRows

HERE = Path(__file__).resolve().parent
TARGET = 1.15
PASSES, FIRST, NEXT = "two passes alone", "first checkpoint", "next checkpoint"
PEAK = "peak_rss_mb after the passes"
SHORTEST = 16


def shape(quick: bool) -> LlamaConfig:
    """Return SmolLM2-135M's configuration, or a tiny one."""
    if quick:
        return tiny_config()
    return LlamaConfig(
        vocab_size=49152,
        hidden_size=576,
        intermediate_size=1536,
        num_hidden_layers=30,
        num_attention_heads=9,
        num_key_value_heads=3,
        tie_word_embeddings=True,
    )


def make_models(config: LlamaConfig) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Return a base of random weights and a copy with noise of a tenth of their size."""
    torch.manual_seed(0)
    base, tuned = LlamaModel(config).eval(), LlamaModel(config).eval()
    with torch.no_grad():
        for before, after in zip(base.parameters(), tuned.parameters(), strict=True):
            after.copy_(before + 0.1 * before.std(correction=0) * torch.randn_like(before))
    return base, tuned


def make_inputs(count: int, longest: int, vocabulary: int) -> TokenRows:
    """Return inputs of random tokens whose lengths are even between the shortest and the longest."""
    draw = random.Random(0)
    lengths = [draw.randint(SHORTEST, longest) for _ in range(count)]
    rows = tuple(tuple(draw.randrange(vocabulary) for _ in range(length)) for length in lengths)
    return TokenRows(Path("random tokens"), rows)


def pass_alone(model: PreTrainedModel, inputs: TokenRows) -> None:
    """Put the inputs through the model in the batches of the analysis; keep nothing."""
    with torch.inference_mode():
        for batch in activations.length_batches([len(row) for row in inputs.rows]):
            model(**activations.padded([inputs.rows[index] for index in batch]), use_cache=False)


def analyse(model: PreTrainedModel, base: States, folder: Path) -> int:
    """Record the tuned model's states and compute both tables; return their rows."""
    tuned = States(folder / "tuned.npy", base.inputs)
    activations.record_states(model, tuned.inputs, tuned.path)
    rows = sum(1 for _ in drift.drift_rows(base, tuned)) + sum(1 for _ in drift.grid_rows(base, tuned))
    tuned.path.unlink()
    return rows


def seconds(work: Callable[[], object]) -> float:
    """Return the processor time of some work."""
    began = time.process_time()
    work()
    return time.process_time() - began


def measure(
    base: PreTrainedModel, tuned: PreTrainedModel, inputs: TokenRows, folder: Path, turned: bool
) -> dict[str, float]:
    """Time the passes alone and the analysis of two checkpoints, these first where ``turned``."""
    times: dict[str, float] = {}

    def alone() -> None:
        times[PASSES] = seconds(lambda: [pass_alone(model, inputs) for model in (base, tuned)])
        times[PEAK] = peak_mb()

    def analysed() -> None:
        with tempfile.TemporaryDirectory(dir=folder) as temporary:
            states = States(Path(temporary) / "states.npy", inputs)
            recording = seconds(lambda: activations.record_states(base, inputs, states.path))
            times[FIRST] = recording + seconds(lambda: analyse(tuned, states, Path(temporary)))
            times[NEXT] = seconds(lambda: analyse(tuned, states, Path(temporary)))

    for side in (analysed, alone) if turned else (alone, analysed):
        side()
    return times


def peak_mb() -> float:
    """Return the highest resident set of this process so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory_of(inputs: TokenRows, layers: int, width: int) -> dict[str, Any]:
    """Return what memory and files should take by the formula, in MB."""
    count, tokens = len(inputs.rows), sum(map(len, inputs.kept_tokens(width)))
    rows, matrices = max(count, tokens), moments.SHARDS + 4
    return {
        "formula": f"4 n d + {matrices} d² fp64, n rows of one layer; a file of (2 inputs + tokens) d layers "
        "fp32 for the base and, meanwhile, the tuned model",
        "one_layer_mb": (4 * rows * width + matrices * width**2) * 8 / 1e6,
        "one_file_mb": (2 * count + tokens) * width * layers * 4 / 1e6,
        "token_rows": tokens,
    }


def main(arguments: argparse.Namespace, folder: Path) -> None:
    """Make models and inputs, measure, write the result after every repeat."""
    torch.set_num_threads(1)
    config = shape(arguments.quick)
    inputs = make_inputs(40 if arguments.quick else arguments.inputs, arguments.longest, config.vocab_size)
    base, tuned = make_models(config)
    pass_alone(base, TokenRows(inputs.path, inputs.rows[:8]))  # libraries set themselves up at first use
    runs: list[dict[str, float]] = []
    for repeat in range(arguments.repeats):
        runs.append(measure(base, tuned, inputs, folder, turned=repeat % 2 == 1))
        print(f"{repeat + 1}/{arguments.repeats} {runs[-1]}", flush=True)
        files.write_json(arguments.output, result_of(runs, inputs, config, arguments.quick))


def result_of(
    runs: list[dict[str, float]], inputs: TokenRows, config: LlamaConfig, quick: bool
) -> dict[str, Any]:
    """Return what is written: medians, ratios and memory of the repeats so far."""
    ratios = {side: statistics.median(run[side] / run[PASSES] for run in runs) for side in (FIRST, NEXT)}
    return {
        "claim": f"drift over 1,000 inputs and all layers takes at most {TARGET} times the two passes alone",
        "settings": {
            "quick": quick,
            "repeats": len(runs),
            "inputs": len(inputs.rows),
            "tokens": sum(map(len, inputs.rows)),
            "layers": config.num_hidden_layers + 1,
            "width": config.hidden_size,
            "threads": torch.get_num_threads(),
        },
        "median_seconds": {
            side: statistics.median(run[side] for run in runs) for side in (PASSES, FIRST, NEXT)
        },
        "median_of_ratios_to_the_passes": ratios,
        "below_target": ratios[FIRST] <= TARGET,
        "memory": memory_of(inputs, config.num_hidden_layers + 1, config.hidden_size)
        | {PEAK: runs[0][PEAK], "peak_rss_mb": peak_mb()},
        "runs": runs,
        "environment": files.environment(),
    }


def arguments_of() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, required=True, help="where states are kept, and deleted")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--longest", type=int, default=128, help=f"tokens; the shortest has {SHORTEST}")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "drift_speed.json")
    return parser.parse_args()


if __name__ == "__main__":
    parsed = arguments_of()
    with tempfile.TemporaryDirectory(dir=parsed.folder) as temporary:
        main(parsed, Path(temporary))
