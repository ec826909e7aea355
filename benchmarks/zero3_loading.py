"""What does it cost in time and memory to load a model under ZeRO-3?

    python benchmarks/zero3_loading.py --parameters 336e6 --repeats 3

Two CPU ranks load the same Llama model from a folder of safetensors, in turn and each time in fresh
processes, and make a DeepSpeed engine of it, in these ways:

- ``plain``: ``from_pretrained``, then ``deepspeed.initialize``, which takes the whole model and cuts it up;
- ``HfDeepSpeedConfig``: the same with transformers told of ZeRO-3, so that it loads through ``zero.Init``;
- ``rankdrift``: as a training run does.

A rank's memory is its anonymous memory (RssAnon: what is neither a mapped file nor shared), sampled every few
milliseconds, in GiB above what the process had once everything was imported and the ranks had met. Beside it
stands what a rank must hold: DeepSpeed makes gradients and moments, too, before the first step. The ways must
agree on the loss of one batch.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import deepspeed
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations import HfDeepSpeedConfig

from rankdrift import files
from rankdrift.cli.main import leave
from rankdrift.models.base import load_model
from rankdrift.spec import ModelSpec, TrainingSpec
from rankdrift.training import collectives, engine

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parent / "ds_configs" / "zero3.json"
WAYS = ("plain", "HfDeepSpeedConfig", "rankdrift")
CASES = ("fp32", "bf16")  # of the training; the file is in fp32
SAMPLE_SECONDS = 0.005
WIDTH, VOCABULARY = 1536, 32000


def anonymous_gib() -> float:
    """Return this process's anonymous memory."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("RssAnon:")[1].split()[0]) / 2**20


class Sampler(threading.Thread):
    """Keeps the largest anonymous memory seen."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.peak = 0.0
        self.start()

    def run(self) -> None:
        """Sample until the process ends."""
        while True:
            self.peak = max(self.peak, anonymous_gib())
            time.sleep(SAMPLE_SECONDS)


def save_model(folder: Path, parameters: float) -> int:
    """Save a model of about so many random parameters; return their number."""
    layer = 4 * WIDTH**2 + 3 * WIDTH * 4096
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=4096,
        num_hidden_layers=max(1, math.ceil((parameters - 2 * VOCABULARY * WIDTH) / layer)),
        num_attention_heads=WIDTH // 64,
        tie_word_embeddings=False,
    )
    model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    return model.num_parameters()


def made(way: str, folder: Path, config: dict[str, Any]) -> tuple[Any, float, float]:
    """Load and make an engine in one way; return it, and the time and the memory after loading."""
    keep = HfDeepSpeedConfig(config) if way == "HfDeepSpeedConfig" else None
    model = load_model(folder, ModelSpec())
    loaded = time.perf_counter(), anonymous_gib()
    if way == "rankdrift":
        return engine.Engine(model, TrainingSpec(), config).deepspeed, *loaded
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    under = deepspeed.initialize(model=model, optimizer=optimizer, config=config)[0]
    del keep
    return under, *loaded


def measure(arguments: argparse.Namespace) -> None:
    """Run as one rank: load in one way; write what it took, and the loss of one batch."""
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "zero_optimization": files.read_json(CONFIG)["zero_optimization"],
        "bf16": {"enabled": arguments.case == "bf16"},
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    with collectives.process_group():
        collectives.barrier()
        before, sampler, began = anonymous_gib(), Sampler(), time.perf_counter()
        under, loaded, loaded_gib = made(arguments.way, arguments.folder, config)
        collectives.barrier()
        found = {
            "loading_seconds": loaded - began,
            "seconds": time.perf_counter() - began,
            "loaded_gib": loaded_gib - before,
            "standing_gib": anonymous_gib() - before,
            "peak_gib": sampler.peak - before,
        }
        tokens = torch.arange(32)[None] * 7
        with torch.no_grad():
            found["loss"] = float(under(input_ids=tokens, labels=tokens, use_cache=False).loss)
        every = collectives.gather({**found, "imports_gib": before})
        if collectives.rank() == 0:
            files.write_json(arguments.folder / "found.json", every)


def start_ranks(arguments: argparse.Namespace, folder: Path, way: str, case: str) -> list[dict[str, float]]:
    """Start the ranks for one way and return what each measured."""
    shared: dict[str, Any] = {"WORLD_SIZE": arguments.ranks, "LOCAL_WORLD_SIZE": arguments.ranks}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": arguments.port, "OMP_NUM_THREADS": 1}
    ranks = []
    for rank in range(arguments.ranks):
        own = {**shared, "RANK": rank, "LOCAL_RANK": rank}
        environment = {**os.environ, **{key: str(value) for key, value in own.items()}}
        command = [sys.executable, __file__, *sys.argv[1:], "--folder", str(folder)]
        ranks.append(subprocess.Popen([*command, "--way", way, "--case", case], env=environment))
    if any([rank.wait() for rank in ranks]):
        raise RuntimeError("a rank failed")
    found: list[dict[str, float]] = files.read_json(folder / "found.json")
    return found


def measured_case(arguments: argparse.Namespace, case: str) -> dict[str, Any]:
    """Load one model in every way, in turn; return medians over repetitions of the worst rank."""
    runs: dict[str, list[list[dict[str, float]]]] = {way: [] for way in WAYS}
    with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
        parameters = save_model(Path(folder), arguments.parameters)
        for repeat in range(arguments.repeats):
            for way in WAYS[repeat % 3 :] + WAYS[: repeat % 3]:
                runs[way].append(start_ranks(arguments, Path(folder), way, case))
                print(f"{repeat + 1} {case} {way} {runs[way][-1]}", flush=True)
    medians = {
        way: {
            key: statistics.median(max(rank[key] for rank in ranks) for ranks in runs[way])
            for key in runs[way][0][0]
        }
        for way in WAYS
    }
    losses = [rank["loss"] for way in WAYS for ranks in runs[way] for rank in ranks]
    if max(losses) - min(losses) > 1e-6 * abs(losses[0]):
        raise RuntimeError(f"the ways do not agree on the loss: {sorted(set(losses))}")
    partition = partition_of(parameters / arguments.ranks, 2 if case == "bf16" else 4)
    for way in WAYS:
        for moment in ("standing", "peak"):
            medians[way][f"{moment}_beyond_partition_gib"] = medians[way][f"{moment}_gib"] - sum(
                partition.values()
            )
    return {"parameters": parameters, "partition": partition, "medians": medians, "runs": runs}


def partition_of(elements: float, weight_bytes: int) -> dict[str, float]:
    """Return what a rank must hold once the engine stands, in GiB; the bucket is as configured."""
    bucket = files.read_json(CONFIG)["zero_optimization"]["reduce_bucket_size"]
    sizes = {
        "weights_gib": elements * weight_bytes,
        "masters_gib": elements * 4,
        "gradients_gib": elements * weight_bytes,
        "moments_gib": elements * 8,
        "bucket_gib": bucket * weight_bytes,
    }
    return {name: size / 2**30 for name, size in sizes.items()}


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--parameters", type=float, default=336e6)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--port", type=int, default=29716)
    parser.add_argument(
        "--folder", type=Path, help="where the models are saved (default: a temporary folder)"
    )
    parser.add_argument("--note", default="", help="about the machine, for the result")
    parser.add_argument("--way", choices=WAYS, help="given to the ranks")
    parser.add_argument("--case", choices=CASES, help="given to the ranks")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "zero3_loading.json")
    arguments = parser.parse_args()
    if "RANK" in os.environ:
        measure(arguments)
        leave(0)
    cases = {case: measured_case(arguments, case) for case in CASES}
    settings = {key: vars(arguments)[key] for key in ("parameters", "ranks", "repeats", "note")}
    files.write_json(
        arguments.output,
        {
            "claim": "under ZeRO-3 a rank never holds more than its partition (weights, masters, gradients, "
            "moments, DeepSpeed's bucket) and 0.3 GiB",
            "settings": settings,
            "cases": cases,
            "environment": files.environment(),
        },
    )
    print(json.dumps({case: found["medians"] for case, found in cases.items()}, indent=2))


if __name__ == "__main__":
    main()
