"""How much does the way of timing change what an adapter beside the base model seems to cost?

    python benchmarks/serving_method.py --model smollm2-135m            on a GPU or a CPU
    python benchmarks/serving_method.py --model tiny --repeats 2        small: tries the script

The same two models, adapter merged and beside the base, are timed in two ways, in turn, several times:
``published`` is the way of a published study: one model after the other, no warm-up, a clock around the
forward pass that does not wait for the device, fifty passes, p99 of these; ``synchronised`` is the same, its
clock waits for the device. ``rounds`` is ours: warm-ups, the device waited for, models in drawn order in
every round. What is compared is the ratio of the two models and how far it scatters over the repeats.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import LoraConfig, get_peft_model

from rankdrift import files
from rankdrift.models.base import load_model, resolve
from rankdrift.serving.bank import Bank, Place, Served
from rankdrift.serving.checks import prompt_of
from rankdrift.serving.deployed import Deployed, Tuned
from rankdrift.serving.passes import Clock, clock_of
from rankdrift.spec import ModelSpec

HERE = Path(__file__).resolve().parent
PASSES, ROUNDS, WARM_UPS = 50, 50, 10
WAYS = ("merged", "unmerged")


def adapter_of(base: Path, spec: ModelSpec, rank: int, folder: Path) -> Tuned:
    """Write an adapter of all linear layers with drawn B."""
    torch.manual_seed(0)
    model = load_model(base, spec)
    adapted = get_peft_model(
        model, LoraConfig(r=rank, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    )
    adapted.save_pretrained(folder)
    return Tuned("lora", folder)


@torch.inference_mode()
def passed(served: Served, prompt: torch.Tensor, clock: Clock) -> float:
    """Return the seconds of one forward pass, as a clock has them."""
    began = clock()
    served(prompt, logits_to_keep=1)
    return clock() - began


def one_after_the_other(models: list[Served], prompt: torch.Tensor, clock: Clock) -> list[list[float]]:
    """Time fifty passes of each model, in one piece."""
    found = []
    for served in models:
        served.activate()
        found.append([passed(served, prompt, clock) for _ in range(PASSES)])
    return found


def in_rounds(
    models: list[Served], prompt: torch.Tensor, clock: Clock, order: random.Random
) -> list[list[float]]:
    """Time as many passes, after warm-ups, every model in every round."""
    for served in models:
        served.activate()
        for _ in range(WARM_UPS):
            passed(served, prompt, clock)
    found: list[list[float]] = [[] for _ in models]
    for _ in range(ROUNDS):
        for place in order.sample(range(len(models)), len(models)):
            models[place].activate()
            found[place].append(passed(models[place], prompt, clock))
    return found


def described(times: list[list[list[float]]], typical: Callable[[list[float]], float]) -> dict[str, Any]:
    """Return the ratio of the second model to the first, of every repeat, and how far it scatters."""
    ratios = [typical(second) / typical(first) for first, second in times]
    tails = [float(np.quantile(second, 0.99)) / statistics.median(second) for _, second in times]
    return {
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "scatter": max(ratios) / min(ratios),
        "seconds": [statistics.median(typical(side[place]) for side in times) for place in (0, 1)],
        "p99_over_median": tails,
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--prompt", type=int, default=32)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "serving_method.json")
    arguments = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    device, dtype = ("cuda", torch.bfloat16) if on_gpu else ("cpu", torch.float32)
    base, spec = resolve(arguments.model), ModelSpec(name=arguments.model)
    times: dict[str, list[list[list[float]]]] = {"published": [], "synchronised": [], "rounds": []}
    with tempfile.TemporaryDirectory() as scratch:
        tuned = adapter_of(base, spec, arguments.rank, Path(scratch) / "adapter")
        prompt = prompt_of([list(range(10, 200))], arguments.batch, arguments.prompt, device)
        waiting, order = clock_of(device), random.Random(0)
        for repeat in range(arguments.repeats):
            for way, measure in (
                ("published", lambda models: one_after_the_other(models, prompt, time.time)),
                ("synchronised", lambda models: one_after_the_other(models, prompt, waiting)),
                ("rounds", lambda models: in_rounds(models, prompt, waiting, order)),
            ):
                bank = Bank(Place(base, spec, 0, dtype, device), Path(scratch) / f"{repeat}-{way}", 2)
                models = [bank.served(Deployed(each, tuned)) for each in WAYS]  # type: ignore[arg-type]
                times[way].append(measure(models))
            print(f"{repeat + 1}/{arguments.repeats}", flush=True)
    found = {
        "published": described(times["published"], statistics.fmean),
        "synchronised": described(times["synchronised"], statistics.fmean),
        "rounds": described(times["rounds"], statistics.median),
    }
    files.write_json(
        arguments.output,
        {
            "claim": "the ratio of an adapter beside the base to the merged model, by three ways of timing",
            "settings": {key: str(value) for key, value in vars(arguments).items() if key != "output"},
            "device": torch.cuda.get_device_name() if on_gpu else "CPU",
            "found": found,
            "environment": files.environment(),
        },
    )
    for way, each in found.items():
        tail = max(each["p99_over_median"])
        print(f"{way}: {each['ratio']:.3f}, scatter {each['scatter']:.3f}, p99 over median {tail:.2f}")


if __name__ == "__main__":
    main()
