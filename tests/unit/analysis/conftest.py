"""A study's tables made up with the columns of docs/architecture.md: shapes are real, numbers are not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pytest

Tables = dict[str, pd.DataFrame]
MODULES = {
    "q_proj": (64, 64),
    "k_proj": (16, 64),
    "v_proj": (16, 64),
    "o_proj": (64, 64),
    "gate_proj": (96, 64),
    "up_proj": (96, 64),
    "down_proj": (64, 96),
}
RANKS = (
    "threshold_rank",
    "numerical_rank",
    "entropy_rank",
    "energy_entropy_rank",
    "stable_rank",
    "participation_ratio",
)
ENERGIES = ("e90_energy", "e95_energy", "e90_nuclear", "e95_nuclear")


def run_name(method: str, rank: int, seed: int) -> str:
    arm = "full" if method == "full" else f"lora-r{rank}"
    return f"{arm}-seed{seed}"


def _identity(method: str, rank: int, seed: int, step: int) -> dict[str, object]:
    run = "base" if method == "base" else run_name(method, rank, seed)
    return {"run": run, "method": method, "rank": rank, "tasks": "topic", "seed": seed, "step": step}


def _training(
    who: tuple[str, int, int], last: int, generator: np.random.Generator
) -> list[dict[str, object]]:
    rows = []
    for step in range(1, last + 1):
        shared = {"learning_rate": 5e-4 * (1 - step / last), "gradient_norm": 1 + generator.random()}
        speed = {"tokens_per_second": 900 + 50 * generator.random(), "memory_gib": 2.5}
        loss = 0.3 + 2.2 * np.exp(-3 * step / last)
        rows.append(
            {
                **_identity(*who, step),
                "split": "train",
                "loss": loss + 0.1 * generator.random(),
                **shared,
                **speed,
            }
        )
        if step % max(last // 6, 1) == 0:
            rows.append({**_identity(*who, step), "split": "validation", "loss": loss + 0.05})
    return rows


def _performance(who: tuple[str, int, int], step: int, progress: float) -> list[dict[str, object]]:
    identity = _identity(*who, step)
    accuracy = 0.42 + 0.45 * progress
    drop = (0.05 if who[0] == "full" else 0.02) * progress
    values = [
        ("topic", "accuracy", accuracy, (accuracy * (1 - accuracy) / 400) ** 0.5, 400, True),
        ("general_text", "nll", 3.1 + drop, 0.05, 48, False),
        ("general_text", "perplexity", float(np.exp(3.1 + drop)), np.nan, 48, False),
        ("general_text", "kl_from_base", 1.4 * drop, 0.1 * drop, 48, False),
        ("general_text", "top1_agreement", 1 - drop, 0.01, 48, True),
    ]
    names = ("task", "metric", "value", "stderr", "n", "higher_is_better")
    return [{**identity, **dict(zip(names, value, strict=True))} for value in values]


def _spectrum(
    who: tuple[str, int, int], step: int, progress: float, layer: int, module: str
) -> dict[str, object]:
    rows, columns = MODULES[module]
    small = min(rows, columns)
    bound = min(small, who[1]) if who[1] else small
    size = (0.004 if who[0] == "full" else 0.02) * progress * (1 + 0.3 * np.sin(layer))
    row = {**_identity(*who, step), "layer": layer, "module": module, "rows": rows, "columns": columns}
    for matrix, norm, rank in (
        ("base", 8.0, 0.7 * small),
        ("tuned", 8.0, 0.7 * small),
        ("update", 8 * size, 0.6 * bound),
    ):
        row |= {
            f"{matrix}_norm": norm,
            f"{matrix}_sigma1": norm / 3,
            f"{matrix}_nuclear_norm": norm * small**0.5,
        }
        row |= {f"{matrix}_{name}": rank for name in (*RANKS, *ENERGIES)}
        if matrix != "base":
            row |= {
                f"{matrix}_{name}_null": 0.8 * (bound if matrix == "update" else small)
                for name in (*RANKS, *ENERGIES)
            }
    intruding = who[0] == "lora" and layer % 3 == 0
    row |= {"relative_update_norm": size, "sigma1_ratio": 1.5 * size, "spearman_sigma": 1 - size / 100}
    row |= {f"angle_{side}_{kind}": 4 * size for side in ("left", "right") for kind in ("mean", "max")}
    row |= {"overlap_left": 1 - size, "overlap_right": 1 - size, "overlap_random": 10 / 64}
    row |= {f"intruders_{side}": int(intruding) for side in ("left", "right")}
    row |= {f"intruder_energy_{side}": 0.05 * intruding for side in ("left", "right")}
    return row | {"bf16_floor_ratio": size / 0.0017}


def _sigmas(who: tuple[str, int, int], step: int, layer: int, module: str, matrix: str) -> dict[str, object]:
    small = min(MODULES[module])
    count = min(small, who[1]) if matrix == "update" and who[1] else small
    return {
        **_identity(*who, step),
        "layer": layer,
        "module": module,
        "matrix": matrix,
        "index": range(count),
    }


def _singular_values(rows: list[dict[str, object]]) -> pd.DataFrame:
    table = pd.DataFrame(rows).explode("index", ignore_index=True).astype({"index": int})
    scale = table["matrix"].map({"base": 3.0, "tuned": 3.001, "update": 0.05})
    return table.assign(sigma=scale * (1 + table["index"]) ** -0.6)


def _drift(who: tuple[str, int, int], step: int, progress: float, layers: int) -> list[dict[str, object]]:
    size = 0.06 if who[0] == "full" else 0.02
    rows = []
    for layer in range(layers + 1):
        change = size * progress * (layer / layers) ** 2
        values = {"cka": 1 - change, "cka_stderr": change / 8, "cka_biased": 1 - change / 2}
        values |= {
            "cosine": 1 - change / 5,
            "cosine_centered": 1 - change / 2,
            "relative_l2": change**0.5,
            "n": 64,
        }
        rows.append({**_identity(*who, step), "layer": layer, **values})
    return rows


def _gradients(
    who: tuple[str, int, int], step: int, layers: int, generator: np.random.Generator
) -> list[dict[str, object]]:
    factors = ("A", "B") if who[0] == "lora" else ("",)
    groups = ("attention", "mlp") if who[0] == "lora" else ("attention", "mlp", "embed", "norm")
    places = [("layer", layer, "") for layer in range(layers)] + [("group", -1, group) for group in groups]
    rows = []
    for level, layer, group in [*places, ("global", -1, "")]:
        for factor in factors:
            place = {"level": level, "layer": layer, "group": group, "factor": factor, "numel": 4096}
            size = 0.1 + 0.2 * generator.random()
            values = {
                "l2_norm": size,
                "mean_abs": size / 80,
                "std": size / 64,
                "zero_fraction": 0.001 * (factor == "A"),
            }
            rows.append({**_identity(*who, step), **place, **values})
    return rows


def _make(runs: Sequence[tuple[str, int, int]], steps: Sequence[int], layers: int) -> Tables:
    generator = np.random.default_rng(0)
    base = ("base", 0, 0)
    modules = [(layer, module) for layer in range(layers) for module in MODULES]
    points = [(who, step, step / steps[-1]) for who in runs for step in steps]
    sigmas = [_sigmas(base, 0, *place, "base") for place in modules]
    sigmas += [
        _sigmas(who, step, *place, m)
        for who, step, _ in points
        for place in modules
        for m in ("tuned", "update")
    ]
    frames = {
        "training_metrics": [row for who in runs for row in _training(who, steps[-1], generator)],
        "performance_metrics": _performance(base, 0, 0.0)
        + [row for who, step, progress in points for row in _performance(who, step, progress)],
        "svd_analysis_results": [_spectrum(*point, *place) for point in points for place in modules],
        "drift_metrics": [row for point in points for row in _drift(*point, layers)],
        "gradient_analysis_results": [
            row
            for who in runs
            for step in range(1, steps[-1] + 1)
            for row in _gradients(who, step, layers, generator)
        ],
    }
    tables = {name: pd.DataFrame(rows) for name, rows in frames.items()}
    return tables | {"singular_values": _singular_values(sigmas)}


@pytest.fixture(scope="session")
def make_tables() -> Callable[..., Tables]:
    """Return make(runs=[(method, rank, seed), ...], steps, layers) -> the six tables of a study."""
    return _make
