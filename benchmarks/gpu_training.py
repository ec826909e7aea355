"""How many tokens a second, and how many TFLOP/s, do full fine-tuning and LoRA reach on one GPU?

    python benchmarks/gpu_training.py                            on a GPU: Llama shapes of 1.1 B parameters
    python benchmarks/gpu_training.py --shape tiny --repeats 2   anywhere: checks the script itself

Weights are random (speed does not depend on them); rows are those of the built-in task ``describe``. Runs
of both methods are made in turn. FLOPs a token are 6 N for full fine-tuning and 4 N + 6 N_LoRA for LoRA, N
the parameters in matrix products (frozen weights need no gradient); attention's own are left out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from rankdrift import files
from rankdrift.models.tiny import tiny_config, tiny_tokenizer

HERE = Path(__file__).resolve().parent
CONFIG = HERE.parent / "ds_configs" / "zero1.json"
WARM_UP = 3
METHODS = ("full", "lora")


def shape(name: str) -> LlamaConfig:
    """Return the model's configuration; 1.1b is that of TinyLlama-1.1B."""
    if name == "tiny":
        return tiny_config()
    return LlamaConfig(
        vocab_size=32000,
        hidden_size=2048,
        intermediate_size=5632,
        num_hidden_layers=22,
        num_attention_heads=32,
        num_key_value_heads=4,
        tie_word_embeddings=False,
        pad_token_id=1,
        eos_token_id=0,
        bos_token_id=None,
    )


def save_model(config: LlamaConfig, folder: Path) -> int:
    """Save random weights and the byte tokenizer; return the parameters in matrix products."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    embedding = model.get_input_embeddings().weight.numel()
    # tied embeddings are one matrix that is multiplied; untied ones add one that is only looked up
    return sum(p.numel() for p in model.parameters()) - (0 if config.tie_word_embeddings else embedding)


def run_once(method: str, folder: Path, arguments: argparse.Namespace) -> dict[str, float]:
    """Train a few steps on one rank; return the medians of the last ones."""
    with tempfile.TemporaryDirectory() as output:
        overrides = [
            *(f"output={output}", "study=s", "arm=a", f"model.name={folder}", "data.tasks=[describe]"),
            *(f"method.name={method}", "method.rank=16", f"training.steps={arguments.steps}"),
            *(f"training.global_batch={arguments.rows}", f"training.micro_batch={arguments.rows}"),
            *(
                "training.warmup_steps=1",
                "training.probe_every=0",
                "training.eval_rows=2",
                "data.max_length=256",
            ),
        ]
        command = [sys.executable, "-m", "rankdrift", "train", "--config", str(CONFIG), *overrides]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        run = Path(output) / "s" / "runs" / "a-seed42"
        rows = [row for row in files.read_jsonl(run / "metrics.jsonl") if row["split"] == "train"][WARM_UP:]
        trained = files.read_json(run / "status.json")["trainable_parameters"]
    medians = {key: statistics.median(row[key] for row in rows) for key in ("seconds", "tokens_per_second")}
    return {**medians, "memory_gib": max(row["memory_gib"] for row in rows), "trained": trained}


def flops_per_token(method: str, multiplied: int, trained: int) -> float:
    """Return the floating-point operations of forward and backward a token, without attention's own."""
    return 6.0 * multiplied if method == "full" else 4.0 * multiplied + 6.0 * trained


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", choices=("1.1b", "tiny"), default="1.1b")
    parser.add_argument("--rows", type=int, default=64, help="rows a step, in one pass")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "gpu_training.json")
    arguments = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {method: [] for method in METHODS}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        multiplied = save_model(shape(arguments.shape), folder)
        for repeat in range(arguments.repeats):
            for method in METHODS:
                runs[method].append(run_once(method, folder, arguments))
                print(
                    f"{repeat + 1}/{arguments.repeats} {method}: {json.dumps(runs[method][-1])}", flush=True
                )
    summary = {}
    for method, found in runs.items():
        speed = statistics.median(run["tokens_per_second"] for run in found)
        flops = flops_per_token(method, multiplied, int(found[0]["trained"]))
        summary[method] = {"tokens_per_second": speed, "teraflops": speed * flops / 1e12}
    ratio = summary["lora"]["tokens_per_second"] / summary["full"]["tokens_per_second"]
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    settings = {key: str(value) for key, value in vars(arguments).items() if key != "output"}
    result = {"settings": settings, "gpu": gpu, "summary": summary, "ratio_lora_to_full": ratio, "runs": runs}
    files.write_json(arguments.output, {**result, "environment": files.environment()})
    print(json.dumps({"summary": summary, "ratio_lora_to_full": ratio}, indent=2))


if __name__ == "__main__":
    main()
