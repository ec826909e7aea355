"""What do exact spectra cost, and are they as good, beside the usual ways to compute them?

    python benchmarks/spectra_speed.py                 shapes of SmolLM2-135M and TinyLlama-1.1B, ten minutes
    python benchmarks/spectra_speed.py --quick         the small shapes only: checks the script itself

Random weights of both models' shapes, rows and columns scaled unevenly as in trained ones; one thread, its
processor time; both sides in this process, in turn, repeated; medians and ratios.

    lora values     spectrum of a rank-16 update from its factors, against torch.linalg.svdvals of the product
    full values     spectrum of a dense update by its float64 Gram matrix, against torch.linalg.svdvals in
                    float32, with both errors at sigma / sigma_1 = 1e-3 of a planted spectrum
    intruders       the ten leading vectors of W against all of W0's, both sides, W0's decomposition read from
                    the cache on disk, against the published way (reeceshuttle/intruder-dimensions): float32
                    thin SVDs of W0 and W, left vectors alone; also with its W0 kept ("base kept")
    metrics         spectrum and metrics of W, against what WeightWatcher computes of a layer without its
                    power-law fit: scipy.linalg.svd in float64, values alone, and the metrics. It is not
                    installed here; this is its documented computation, not its code
    checkpoint      everything the analysis tabulates of a matrix, files read, W0's decomposition cached
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import scipy.linalg
import torch
from safetensors.numpy import save_file
from threadpoolctl import threadpool_limits

from rankdrift import files
from rankdrift.analysis.contract import Params
from rankdrift.analysis.mathematics.spectral import intruders, linalg
from rankdrift.analysis.mathematics.spectral.lowrank import LowRankSum
from rankdrift.analysis.measures import spectra
from rankdrift.analysis.sources.base_spectra import BaseSpectra
from rankdrift.analysis.sources.subjects import Subject
from rankdrift.analysis.sources.weights import BaseWeights, Projection

HERE = Path(__file__).resolve().parent
RANK, TOP, THRESHOLD = 16, 10, 0.5
SHORTEST_SECONDS = 0.05
NAME, PLACE = "model.layers.0.self_attn.q_proj", Projection(0, "q_proj")
Shape = tuple[int, int]
Clock = Callable[[], float]


@dataclass(frozen=True)
class Model:
    """The projections of a Llama-like model."""

    layers: int
    hidden: int
    kv: int
    intermediate: int

    def matrices(self) -> dict[Shape, int]:
        """Return how many projections of each shape (rows, columns) there are."""
        h, kv, inner = self.hidden, self.kv, self.intermediate
        counts = {(h, h): 2, (kv, h): 2, (inner, h): 2, (h, inner): 1}
        return {shape: self.layers * count for shape, count in counts.items()}


MODELS = {"smollm2-135m": Model(30, 576, 192, 1536), "tinyllama-1.1b": Model(22, 2048, 256, 5632)}


# ---- weights


def weights(shape: Shape, seed: int) -> np.ndarray:
    """Return random float32 weights with a heavy-tailed spectrum: log-normal scales of rows and columns."""
    generator = np.random.default_rng(seed)
    rows, columns = (np.exp(0.4 * generator.standard_normal(size)) for size in shape)
    values = 0.02 * generator.standard_normal(shape) * rows[:, None] * columns
    return values.astype(np.float32)


def factors(shape: Shape, seed: int, share: float = 0.05) -> tuple[np.ndarray, np.ndarray]:
    """Return B (rows, r) and A (r, columns), float32; B A is about ``share`` as large as the weights."""
    generator = np.random.default_rng(seed)
    left = 0.02 * share * generator.standard_normal((shape[0], RANK))
    right = generator.standard_normal((RANK, shape[1])) * np.sqrt(2.0 / RANK)
    return left.astype(np.float32), right.astype(np.float32)


def save_models(folder: Path, shape: Shape) -> tuple[Path, Path, Path]:
    """Save one matrix as a base model, fully tuned, and tuned by an adapter; return the three folders."""
    base, (left, right) = weights(shape, 1), factors(shape, 2)
    places = folder / "base", folder / "full", folder / "lora"
    for place in places:
        place.mkdir(parents=True)
    save_file({f"{NAME}.weight": base}, places[0] / "model.safetensors")
    save_file({f"{NAME}.weight": base + 0.05 * weights(shape, 3)}, places[1] / "model.safetensors")
    stored = {f"base_model.model.{NAME}.lora_{key}.weight": v for key, v in (("B", left), ("A", right))}
    save_file(stored, places[2] / "adapter_model.safetensors")
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": ["q_proj"]}
    files.write_json(places[2] / "adapter_config.json", config)
    return places


# ---- the sides


def published_vectors(matrix: np.ndarray) -> torch.Tensor:
    """Return the left vectors as the published code computes them."""
    return torch.linalg.svd(torch.from_numpy(matrix), full_matrices=False)[0]


def published_count(tuned: np.ndarray, base: torch.Tensor) -> int:
    """Return the published number of intruders, left side, given the base's left vectors."""
    cosines = (published_vectors(tuned).T @ base).abs().max(dim=1).values
    return int((cosines[:TOP] < THRESHOLD).sum())


def our_counts(spectra_of_base: BaseSpectra, base: np.ndarray, update: Any) -> list[float]:
    """Return the number of intruders left and right, W0's decomposition read from the disk."""
    half = spectra_of_base.system(PLACE, base)
    if isinstance(update, tuple):
        system = LowRankSum(half, *(factor.astype(np.float64) for factor in update)).leading_system(TOP)
    else:
        system = linalg.singular_system(update, TOP)
    counts = []
    for side in ("left", "right"):
        cosines = intruders.best_cosines(half.components(getattr(system, side), side))
        counts.append(intruders.intruders(cosines, system.sigma[:TOP], THRESHOLD).count)
    return counts


def weightwatcher_layer(matrix: np.ndarray) -> dict[str, float]:
    """Return a layer's metrics from a float64 SVD, the power-law fit left out."""
    values = np.square(scipy.linalg.svd(matrix.astype(np.float64), compute_uv=False))
    shares = values / values.sum()
    positive = shares[shares > 0]
    return {
        "norm": float(values.sum()),
        "spectral_norm": float(values[0]),
        "stable_rank": float(values.sum() / values[0]),
        "entropy": float(-np.sum(positive * np.log(positive)) / np.log(len(values))),
    }


def our_metrics(matrix: np.ndarray) -> linalg.RankMetrics:
    """Return all metrics of a matrix."""
    return linalg.rank_metrics(linalg.singular_values(matrix), *matrix.shape)


def errors_at_a_thousandth(shape: Shape) -> dict[str, float]:
    """Return both sides' relative error at sigma / sigma_1 = 1e-3, of a log-spaced spectrum down to 1e-6."""
    small = min(shape)
    left, right = (
        np.linalg.qr(np.random.default_rng(seed).standard_normal((size, small)))[0]
        for seed, size in enumerate(shape)
    )
    matrix = ((left * np.logspace(0, -6, small)) @ right.T).astype(np.float32)
    exact = scipy.linalg.svdvals(matrix.astype(np.float64))
    at = int(np.searchsorted(-exact, -1e-3 * exact[0]))
    found = {"ours": linalg.singular_values(matrix), "theirs": torch.linalg.svdvals(torch.tensor(matrix))}
    return {side: float(abs(float(sigma[at]) / exact[at] - 1)) for side, sigma in found.items()}


# ---- measuring


def timed(work: Callable[[], Any]) -> float:
    """Return the processor seconds of one call, the mean of several where one is too short to time."""
    calls, began = 0, time.process_time()
    while True:
        work()
        calls, seconds = calls + 1, time.process_time() - began
        if seconds > SHORTEST_SECONDS:
            return seconds / calls


def compare(sides: dict[str, Callable[[], Any]], repeats: int) -> dict[str, Any]:
    """Time the sides in turn; return medians, all runs, and the others' ratios to ours (the first)."""
    runs: dict[str, list[float]] = {side: [] for side in sides}
    for _ in range(repeats):
        for side, work in sides.items():
            runs[side].append(timed(work))
    medians = {side: statistics.median(of_side) for side, of_side in runs.items()}
    ours, *others = sides
    ratios = {side: medians[side] / medians[ours] for side in others}
    return {"seconds": medians, "ratios_to_ours": ratios, "runs": runs}


def compare_shape(shape: Shape, folder: Path, repeats: int) -> dict[str, Any]:
    """Return all cases of one shape."""
    base_folder, full, lora = save_models(folder, shape)
    base, update, (left, right) = weights(shape, 1), 0.05 * weights(shape, 3), factors(shape, 2)
    product, tuned = torch.from_numpy(left @ right), base + left @ right
    cached, kept = BaseSpectra(BaseWeights(base_folder), folder / "cache"), published_vectors(base)
    counts = our_counts(cached, base, (left, right))
    assert counts[0] == published_count(tuned, kept), "both sides must count the same intruders"
    cases: dict[str, dict[str, Callable[[], Any]]] = {
        "lora values": {
            "ours": lambda: linalg.product_singular_values(left, right),
            "dense svdvals": lambda: torch.linalg.svdvals(product),
        },
        "full values": {
            "ours": lambda: linalg.singular_values(update),
            "svdvals float32": lambda: torch.linalg.svdvals(torch.from_numpy(update)),
        },
        "intruders, lora": {
            "ours": lambda: our_counts(cached, base, (left, right)),
            "published": lambda: published_count(tuned, published_vectors(base)),
            "published, base kept": lambda: published_count(tuned, kept),
        },
        "intruders, full": {
            "ours": lambda: our_counts(cached, base, base + update),
            "published": lambda: published_count(base + update, published_vectors(base)),
            "published, base kept": lambda: published_count(base + update, kept),
        },
        "metrics": {"ours": lambda: our_metrics(base), "weightwatcher": lambda: weightwatcher_layer(base)},
        "checkpoint, lora": {"ours": lambda: tabulate(base_folder, lora, folder / "cache")},
        "checkpoint, full": {"ours": lambda: tabulate(base_folder, full, folder / "cache")},
    }
    found: dict[str, Any] = {case: compare(sides, repeats) for case, sides in cases.items()}
    found["full values"]["error_at_1e-3"] = errors_at_a_thousandth(shape)
    stored = cache_bytes(folder / "cache")
    return {"cases": found, "intruders_left_and_right": counts, "cache_bytes": stored}


def tabulate(base: Path, tuned: Path, cache: Path) -> None:
    """Compute every table's rows of the one matrix."""
    spectra.measure(Subject("run", "", 0, (), 0, 1, base, tuned), Params(cache=cache), "0000.q_proj")


def cache_bytes(folder: Path) -> int:
    """Return the size of the base decompositions in a cache."""
    return sum(file.stat().st_size for file in folder.rglob("*.safetensors"))


def whole_adapter(model: Model, repeats: int) -> list[float]:
    """Return the seconds in which the spectra of all of an adapter's updates are computed."""
    every = [factors(shape, seed) for shape, count in model.matrices().items() for seed in range(count)]
    return [timed(lambda: [linalg.product_singular_values(*pair) for pair in every]) for _ in range(repeats)]


def totals(model: Model, shapes: dict[str, dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Return the seconds of all of a model's matrices, by the medians of their shapes."""
    sums: dict[str, dict[str, float]] = {}
    for shape, count in model.matrices().items():
        for case, found in shapes[label(shape)]["cases"].items():
            for side, seconds in found["seconds"].items():
                of_case = sums.setdefault(case, {})
                of_case[side] = of_case.get(side, 0.0) + count * seconds
    return sums


def label(shape: Shape) -> str:
    """Return ``5632x2048``."""
    return f"{shape[0]}x{shape[1]}"


def measure_model(name: str, repeats: int, folder: Path) -> dict[str, Any]:
    """Return all cases of a model's shapes, and the sums over its matrices."""
    model, shapes = MODELS[name], {}
    for shape in model.matrices():
        shapes[label(shape)] = compare_shape(shape, folder / f"{name}-{label(shape)}", repeats)
        for case, found in shapes[label(shape)]["cases"].items():
            print(name, label(shape), case, json.dumps({k: v for k, v in found.items() if k != "runs"}))
    return {
        "matrices": sum(model.matrices().values()),
        "shapes": shapes,
        "whole_adapter_seconds": statistics.median(whole_adapter(model, repeats)),
        "seconds_of_all_matrices": totals(model, shapes),
    }


def main(arguments: argparse.Namespace) -> None:
    """Measure, write the result."""
    torch.set_num_threads(1)
    names = [name for name in MODELS if not (arguments.quick and name != "smollm2-135m")]
    repeats = 2 if arguments.quick else arguments.repeats
    with threadpool_limits(limits=1), tempfile.TemporaryDirectory() as folder:
        models = {name: measure_model(name, repeats, Path(folder)) for name in names}
    result = {
        "claim": "at 2048 columns LoRA spectra cost a thousandth of a dense SVD; full ones are faster and "
        "better than float32 SVDs, intruders at least five times as fast as published",
        "settings": {"repeats": repeats, "rank": RANK, "top": TOP, "threads": 1, "quick": arguments.quick},
        "device": "cuda" if torch.cuda.is_available() else "cpu",
        "models": models,
        "environment": files.environment(),
    }
    files.write_json(arguments.output, result)
    for name, found in models.items():
        print(name, json.dumps({k: v for k, v in found.items() if k != "shapes"}, indent=2))


def arguments_of() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="the small model's shapes, twice")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "spectra_speed.json")
    return parser.parse_args()


if __name__ == "__main__":
    main(arguments_of())
