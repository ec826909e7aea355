"""How long do the spectra of a checkpoint of 1.1 billion parameters take on one GPU?

    python benchmarks/gpu_spectra.py --folder FOLDER     on a GPU; 15 GB below FOLDER, deleted in the end
    python benchmarks/gpu_spectra.py --quick             anywhere: the same on a tiny model, nothing written

A base of TinyLlama-1.1B's shape with random weights of heavy-tailed spectra, and the same with a dense update
that plants intruders, are saved as safetensors folders.

    checkpoint      ``rankdrift analyze spectra --base BASE --tuned TUNED``, each time a process of its own
                    that writes all tables: the first run, which decomposes the base as well, then runs that
                    find its decompositions; for each number of workers given (0: the product's own choice)
    matrices        one matrix of each shape, from the machine's memory and back: values of dW, values and
                    leading vectors of W, and how W acts along W0's vectors, against torch.linalg in float32:
                    ``svdvals`` of dW and W, or ``svdvals`` of dW and ``svd`` of W. In this process, in an
                    order that turns with every repeat, summed over the model's matrices
    accuracy        both sides' error at sigma / sigma_1 = 1e-3 of a planted spectrum, against a float64 SVD
    intruders       counts left and right from the GPU's decompositions and from the CPU's

Memory is the device's, of all processes, above what it was before.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch
from gpu_training import shape
from safetensors.numpy import save_file
from spectra_speed import THRESHOLD, TOP, Shape, label
from transformers import LlamaConfig, LlamaForCausalLM

from rankdrift import files
from rankdrift.analysis.mathematics.spectral import intruders, linalg
from rankdrift.analysis.mathematics.spectral.decomposition import DenseSum, DeviceSum, device_half_system
from rankdrift.analysis.measures.spectra import Settings
from rankdrift.layout import StudyLayout
from rankdrift.models.tiny import tiny_tokenizer

HERE = Path(__file__).resolve().parent
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
TARGET_SECONDS = 60
VECTORS = max(Settings().vector_counts)
SPIKES = (0.5, 0.45, 0.4)
"""Planted singular values of an update, as shares of ||W0||_F."""
POLL = 0.05  # seconds
PARTS = ("checkpoint", "matrices", "error_at_1e-3", "intruders_left_and_right")
OURS, VALUES, VECTORS_TOO = "rankdrift", "svdvals float32", "svd float32"


# ---- weights


def parameter_shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a model's parameters by name; nothing is allocated."""
    with torch.device("meta"):
        return {name: tuple(value.shape) for name, value in LlamaForCausalLM(config).named_parameters()}


def matrix_pair(of: Shape, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return W0 and W, float32; the update is heavy-tailed as well, with directions that W0 has not.

    They are drawn where the GPU is: NumPy would take a minute of its time for a whole model.
    """
    generator = torch.Generator(DEVICE).manual_seed(seed)
    base, update = heavy_tailed(of, generator), 0.05 * heavy_tailed(of, generator)
    left, right = (torch.linalg.qr(normal((size, len(SPIKES)), generator)).Q for size in of)
    spikes = (left * torch.tensor(SPIKES, device=DEVICE) * torch.linalg.norm(base)) @ right.T
    return base.cpu().numpy(), (base + update + spikes).cpu().numpy()


def heavy_tailed(of: Shape, generator: torch.Generator) -> torch.Tensor:
    """Return random weights with a heavy-tailed spectrum: log-normal scales of rows and columns."""
    rows, columns = (torch.exp(0.4 * normal((size,), generator)) for size in of)
    return 0.02 * normal(of, generator) * rows[:, None] * columns


def normal(of: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    """Return standard normal numbers on the device."""
    return torch.randn(of, generator=generator, device=DEVICE)


def save_models(config: LlamaConfig, folder: Path) -> tuple[Path, Path]:
    """Save a base and a tuned model, one tensor pair after the other; return their folders."""
    places = folder / "base-model", folder / "tuned-model"
    stored: tuple[dict[str, np.ndarray], ...] = ({}, {})
    for seed, (name, of) in enumerate(parameter_shapes(config).items()):
        pair = matrix_pair((of[0], of[1]), seed) if len(of) == 2 else (np.ones(of, np.float32),) * 2
        for tensors, value in zip(stored, pair, strict=True):
            tensors[name] = value
    for place, tensors in zip(places, stored, strict=True):
        config.save_pretrained(place)
        tiny_tokenizer().save_pretrained(place)
        save_file(tensors, place / "model.safetensors")
    return places


# ---- the checkpoint


def free_bytes() -> int:
    """Return the GPU's free memory; 0 without one."""
    return torch.cuda.mem_get_info()[0] if DEVICE.type == "cuda" else 0


def watched(command: list[str]) -> dict[str, float | None]:
    """Run a program; return its seconds, to within ``POLL``, and the most GPU memory it took, in GiB."""
    before = least = free_bytes()
    began = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while process.poll() is None:
            least = min(least, free_bytes())
            time.sleep(POLL)
    seconds = time.perf_counter() - began
    if process.returncode:
        raise subprocess.CalledProcessError(process.returncode, command)
    return {"seconds": seconds, "peak_gpu_gib": (before - least) / 2**30 if DEVICE.type == "cuda" else None}


def analyze(base: Path, tuned: Path, output: Path, workers: int) -> dict[str, Any]:
    """Analyse a checkpoint as a user does, its tables gone before; return seconds, memory, rows."""
    study = StudyLayout(output)
    shutil.rmtree(study.tables, ignore_errors=True)
    command = [sys.executable, "-m", "rankdrift", "analyze", "spectra"]
    command += ["--workers", str(workers)] if workers else []
    command += ["--base", str(base), "--tuned", str(tuned), "--output", str(output)]
    found = watched(command)
    rows = files.read_table(study.tables / "svd_analysis_results.parquet")
    return {**found, "matrices": len(rows)}


def measure_checkpoint(base: Path, tuned: Path, counts: list[int], repeats: int) -> dict[str, Any]:
    """Return the first run and, by the number of workers, those that find the base's decompositions."""
    output = base.parent / "analysis"
    first = analyze(base, tuned, output, counts[0])
    print("first run", first, flush=True)
    runs: dict[str, list[dict[str, Any]]] = {str(workers): [] for workers in counts}
    for _ in range(repeats):
        for workers in counts:
            runs[str(workers)].append(analyze(base, tuned, output, workers))
            print(f"{workers} workers", runs[str(workers)][-1], flush=True)
    medians = {workers: statistics.median(run["seconds"] for run in of) for workers, of in runs.items()}
    return {"first": first, "cached_median_seconds_by_workers": medians, "cached_runs_by_workers": runs}


# ---- one matrix of each shape


def sides(base: np.ndarray, tuned: np.ndarray) -> dict[str, Callable[[], object]]:
    """Return what each side computes of a matrix; that of W0 is there before, and timed on neither side."""
    half, change = device_half_system(base, DEVICE), tuned.astype(np.float64) - base

    def ours() -> None:
        total = DeviceSum(half, change, DEVICE)
        total.update_values(), total.singular_system(VECTORS), total.changes()

    def theirs(vectors: bool) -> None:
        start, end = (torch.from_numpy(matrix).to(DEVICE) for matrix in (base, tuned))
        torch.linalg.svdvals(end - start).cpu()
        if not vectors:
            torch.linalg.svdvals(end).cpu()
            return
        left, sigma, right = torch.linalg.svd(end, full_matrices=False)
        left[:, :VECTORS].cpu(), sigma.cpu(), right[:VECTORS].cpu()

    return {OURS: ours, VALUES: lambda: theirs(False), VECTORS_TOO: lambda: theirs(True)}


def in_turn(works: dict[str, Callable[[], object]], repeats: int) -> dict[str, list[float]]:
    """Return the seconds of each side, in an order that turns; a first round sets libraries up, untimed."""
    names = list(works)
    seconds: dict[str, list[float]] = {name: [] for name in names}
    for repeat in range(-1, repeats):
        for name in names[repeat % len(names) :] + names[: repeat % len(names)]:
            began = time.perf_counter()
            works[name]()
            if repeat >= 0:
                seconds[name].append(time.perf_counter() - began)
    return seconds


def measure_matrices(shapes: Counter[Shape], repeats: int) -> dict[str, Any]:
    """Return each side's seconds by shape, and summed over the model's matrices with ratios to ours."""
    runs = {}
    for of in shapes:
        runs[of] = in_turn(sides(*matrix_pair(of, 0)), repeats)
        print(label(of), {side: statistics.median(times) for side, times in runs[of].items()}, flush=True)
    sums = {
        side: sum(count * statistics.median(runs[of][side]) for of, count in shapes.items())
        for side in (OURS, VALUES, VECTORS_TOO)
    }
    return {
        "seconds_of_all_matrices": sums,
        "ratios_to_ours": {side: seconds / sums[OURS] for side, seconds in sums.items() if side != OURS},
        "counts": {label(of): count for of, count in shapes.items()},
        "runs": {label(of): times for of, times in runs.items()},
    }


def errors_at_a_thousandth(size: int) -> dict[str, float]:
    """Return both sides' relative error at sigma / sigma_1 = 1e-3, of a log-spaced spectrum down to 1e-6."""
    left, right = (
        np.linalg.qr(np.random.default_rng(seed).standard_normal((size, size)))[0] for seed in range(2)
    )
    matrix = ((left * np.logspace(0, -6, size)) @ right.T).astype(np.float32)
    exact = scipy.linalg.svdvals(matrix.astype(np.float64))
    at = int(np.searchsorted(-exact, -1e-3 * exact[0]))
    theirs = torch.linalg.svdvals(torch.from_numpy(matrix).to(DEVICE)).cpu()
    found = {OURS: device_half_system(matrix, DEVICE).sigma, VALUES: theirs}
    return {side: float(abs(float(sigma[at]) / exact[at] - 1)) for side, sigma in found.items()}


def intruder_counts(of: Shape) -> dict[str, list[float]]:
    """Return the intruders left and right of a matrix, all of it decomposed on the device, and by LAPACK."""
    base, tuned = matrix_pair(of, 0)
    change = tuned.astype(np.float64) - base
    on_device = DeviceSum(device_half_system(base, DEVICE), change, DEVICE)
    by_lapack = DenseSum(linalg.half_system(base), change)
    return {DEVICE.type: counts_of(on_device), "lapack": counts_of(by_lapack)}


def counts_of(total: DenseSum | DeviceSum) -> list[float]:
    """Return the intruders left and right of a sum."""
    system = total.singular_system(TOP)
    counts = []
    for side in ("left", "right"):
        cosines = intruders.best_cosines(total.base.components(getattr(system, side), side))
        counts.append(intruders.intruders(cosines, system.sigma[:TOP], THRESHOLD).count)
    return counts


def gpu_facts() -> dict[str, Any] | None:
    """Return what the GPU is; None without one."""
    if DEVICE.type != "cuda":
        return None
    facts = torch.cuda.get_device_properties(0)
    return {
        "name": facts.name,
        "memory_gib": facts.total_memory / 2**30,
        "capability": f"{facts.major}.{facts.minor}",
        "cuda": torch.version.cuda,
        "visible": torch.cuda.device_count(),
    }


def main(arguments: argparse.Namespace, folder: Path) -> None:
    """Make the models, measure, write the result."""
    config = shape("tiny" if arguments.quick else "1.1b")
    repeats = 1 if arguments.quick else arguments.repeats
    result = {
        "claim": f"spectra of 1.1 billion parameters on one GPU, the base's cached: < {TARGET_SECONDS} s",
        "settings": {"quick": arguments.quick, "repeats": repeats, "vectors": VECTORS},
        "gpu": gpu_facts(),
        "environment": files.environment(),
    }
    shapes = Counter((of[0], of[1]) for of in parameter_shapes(config).values() if len(of) == 2)
    in_blocks = [of for of in shapes if of[0] != config.vocab_size]
    parts: dict[str, Callable[[], Any]] = {
        "checkpoint": lambda: measure_checkpoint(*save_models(config, folder), arguments.workers, repeats),
        "matrices": lambda: measure_matrices(shapes, repeats),
        "error_at_1e-3": lambda: errors_at_a_thousandth(config.hidden_size),
        "intruders_left_and_right": lambda: {label(of): intruder_counts(of) for of in in_blocks},
    }
    for name in arguments.parts:
        result[name] = parts[name]()
        if name == "checkpoint" and not arguments.quick:
            fastest = min(result[name]["cached_median_seconds_by_workers"].values())
            result["below_target"] = fastest < TARGET_SECONDS
        if arguments.output:  # what is measured is kept if the rest has no time
            files.write_json(arguments.output, result)
        print(name, json.dumps(result[name], indent=2), flush=True)


def arguments_of() -> argparse.Namespace:
    """Parse the command line; refuse to measure without a GPU."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--folder", type=Path, help="where the models lie (default: a temporary folder)")
    parser.add_argument("--quick", action="store_true", help="a tiny model, once, on whatever there is")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--workers", type=int, nargs="+", default=[0], help="0: the product's own choice")
    parser.add_argument(
        "--parts", nargs="+", choices=PARTS, default=PARTS, metavar="PART", help=", ".join(PARTS)
    )
    parser.add_argument("--output", type=Path, help="default: results/gpu_spectra.json, none with --quick")
    parsed = parser.parse_args()
    if not parsed.quick:
        if DEVICE.type != "cuda":
            parser.error("no NVIDIA GPU here; --quick checks the script without one")
        parsed.output = parsed.output or HERE / "results" / "gpu_spectra.json"
    return parsed


if __name__ == "__main__":
    given = arguments_of()
    with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
        main(given, Path(temporary))
