"""A study's tables made up with the columns of docs/architecture.md: shapes are real, numbers are not."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
import pytest

from rankdrift.analysis.comparisons.comparisons import learning_forgetting
from rankdrift.analysis.sources.checkpoint_summary import checkpoint_summaries

Tables = dict[str, pd.DataFrame]
Who = tuple[str, int, int]
"""Method, rank, seed."""
Row = dict[str, object]
TASKS = ("topic", "entailment", "general_text")
"""Whose gradients are taken."""
EDITS = ("intruders", "neighbours", "random", "shrunk", "rescaled")
PREDICTORS = (
    "kl_from_base",
    "relative_update_norm",
    "sigma1_ratio",
    "intruders_left",
    "intruder_energy_left",
    "drift",
)
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
REPRESENTATIONS = {"mean": 1, "last_token": 2, "token": 3}
"""Representation -> how much more it drifts than the mean."""
ENERGIES = ("e90_energy", "e95_energy", "e90_nuclear", "e95_nuclear")


def run_name(method: str, rank: int, seed: int) -> str:
    arm = "full" if method == "full" else f"lora-r{rank}"
    return f"{arm}-seed{seed}"


def _identity(method: str, rank: int, seed: int, step: int) -> Row:
    run = "base" if method == "base" else run_name(method, rank, seed)
    return {"run": run, "method": method, "rank": rank, "tasks": "topic", "seed": seed, "step": step}


def _training(who: Who, last: int, generator: np.random.Generator) -> list[Row]:
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


def _performance(who: Who, step: int, progress: float) -> list[Row]:
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


def _spectrum(who: Who, step: int, progress: float, layer: int, module: str) -> Row:
    rows, columns = MODULES[module]
    small = min(rows, columns)
    bound = min(small, who[1]) if who[1] else small
    size = (0.004 if who[0] == "full" else 0.02) * progress * (1 + 0.3 * np.sin(layer))
    row = {**_identity(*who, step), "layer": layer, "module": module, "rows": rows, "columns": columns}
    row |= {"update_rows": rows, "update_columns": columns}
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


def _sigmas(who: Who, step: int, layer: int, module: str, matrix: str) -> Row:
    small = min(MODULES[module])
    count = min(small, who[1]) if matrix == "update" and who[1] else small
    return {
        **_identity(*who, step),
        "layer": layer,
        "module": module,
        "matrix": matrix,
        "index": range(count),
    }


def _singular_values(rows: list[Row]) -> pd.DataFrame:
    table = pd.DataFrame(rows).explode("index", ignore_index=True).astype({"index": int})
    scale = table["matrix"].map({"base": 3.0, "tuned": 3.001, "update": 0.05})
    return table.assign(sigma=scale * (1 + table["index"]) ** -0.6)


def _drift(
    who: Who, step: int, progress: float, layers: int, representations: Sequence[str]
) -> Iterator[Row]:
    size = 0.06 if who[0] == "full" else 0.02
    for layer, representation in itertools.product(range(layers + 1), representations):
        change = size * progress * (layer / layers) ** 2 * REPRESENTATIONS[representation]
        values = {"cka": 1 - change, "cka_stderr": change / 8, "cka_biased": 1 - change / 2}
        values |= {
            "cosine": 1 - change / 5,
            "cosine_centered": 1 - change / 2,
            "relative_l2": change**0.5,
            "n": 64,
        }
        for features in ("all", "without_top") if len(representations) > 1 else ("all",):
            place = {"layer": layer, "representation": representation, "features": features}
            yield {**_identity(*who, step), **place, **values}


def _gradients(who: Who, step: int, layers: int, generator: np.random.Generator) -> list[Row]:
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


def comparison_tables(runs: Sequence[Who], steps: Sequence[int], layers: int) -> Tables:
    """The tables of subspaces, layer pairs, task gradients, edited models and comparisons of runs."""
    points = [(who, step, step / steps[-1]) for who in runs for step in steps]
    frames = {
        "intruder_dimensions": [row for point in points for row in _intruder_grid(*point, layers)],
        "subspace_drift": [row for point in points for row in _subspaces(*point, layers)],
        "layer_similarity": [row for point in points for row in _layer_pairs(*point, layers)],
        "task_gradients": [row for point in points for row in _task_gradients(*point)],
        "gradient_noise": [row for point in points for row in _noise(*point)],
        "task_vectors": [
            _task_vector(*pair, steps[-1]) for pair in itertools.combinations_with_replacement(runs, 2)
        ],
        "variant_scores": [row for who in runs for row in _variants(who, steps[-1])],
        "forgetting_predictors": [_predictor(name, number) for number, name in enumerate(PREDICTORS)],
        "item_contrasts": list(_item_contrasts(runs, steps[-1])),
        **_of_arms(runs, steps[-1]),
    }
    return {name: pd.DataFrame(rows) for name, rows in frames.items()}


def _matrices(layers: int) -> itertools.product[tuple[int, str, str]]:
    return itertools.product(range(layers), MODULES, ("left", "right"))


def _intruder_grid(who: Who, step: int, progress: float, layers: int) -> Iterator[Row]:
    """One intruder in every third layer of LoRA, its cosine 0.45; random directions are all intruders."""
    for (layer, module, side), threshold, k in itertools.product(
        _matrices(layers), (0.3, 0.5, 0.9), (1, 10, 32)
    ):
        count = float(who[0] == "lora" and layer % 3 == 0 and threshold > 0.45)
        place = {"layer": layer, "module": module, "side": side, "threshold": threshold, "k": k}
        values = {
            "count": count,
            "energy_share": 0.05 * count,
            "count_random": float(k),
            "cosine_random": 0.3,
        }
        yield {**_identity(*who, step), **place, **values, "reason": ""}


def _subspaces(who: Who, step: int, progress: float, layers: int) -> Iterator[Row]:
    size = (0.1 if who[0] == "full" else 0.3) * progress
    for (layer, module, side), k in itertools.product(_matrices(layers), (1, 10, 32)):
        drift = size * (1 + layer / layers) / 2 * (k / 32) ** 0.2
        angles = {
            "angle_mean": drift,
            "angle_max": 2 * drift,
            "overlap": 1 - drift**2,
            "overlap_random": k / 64,
        }
        values = {
            "vector_drift": drift,
            "naive_drift": 0.68,
            "gap": 0.1,
            "wedin_bound": 1.0,
            "reliable": k == 1,
        }
        yield {
            **_identity(*who, step),
            "layer": layer,
            "module": module,
            "side": side,
            "k": k,
            **angles,
            **values,
            "reason": "",
        }


def _layer_pairs(who: Who, step: int, progress: float, layers: int) -> Iterator[Row]:
    for i, j in itertools.product(range(layers + 1), repeat=2):
        cka = 1 - 0.8 * abs(i - j) / layers - 0.1 * progress * j / layers
        yield {**_identity(*who, step), "base_layer": i, "tuned_layer": j, "cka": cka, "n": 64, "reason": ""}


def _task_gradients(who: Who, step: int, progress: float) -> Iterator[Row]:
    """Corrected cosines 1 - |i - j| progress, 0.6 of them as observed, at three levels."""
    places = [("global", -1, ""), ("group", -1, "mlp"), ("layer", 0, "")]
    for (i, one), (j, other), (level, layer, group) in itertools.product(
        enumerate(TASKS), enumerate(TASKS), places
    ):
        cosine = 1 - abs(i - j) * progress
        place = {
            "task": one,
            "other_task": other,
            "space": "weight",
            "level": level,
            "layer": layer,
            "group": group,
        }
        values = {
            "inner_product": cosine,
            "inner_product_stderr": 0.05,
            "cosine": 0.6 * cosine,
            "cosine_corrected": cosine,
        }
        values |= {"cosine_corrected_stderr": 0.05 * (i != j), "conflict": cosine < 0, "n": 32, "n_other": 32}
        values["shards"] = 8
        yield {**_identity(*who, step), **place, "factor": "", **values, "reason": ""}


def _noise(who: Who, step: int, progress: float) -> Iterator[Row]:
    """Noise scales 8 to 80 rows; that of the last task cannot be told at the last step."""
    for task in TASKS:
        known = task != TASKS[-1] or progress < 1
        scale = 8 * 10**progress if known else np.nan
        place = {"task": task, "space": "weight", "level": "global", "layer": -1, "group": "", "factor": ""}
        values = {
            "gradient_square": 0.1 if known else -0.1,
            "gradient_square_stderr": 0.02,
            "noise_trace": 0.8,
        }
        values |= {
            "noise_trace_stderr": 0.1,
            "noise_scale": scale,
            "noise_scale_stderr": scale / 5,
            "n": 32,
            "shards": 8,
        }
        yield {**_identity(*who, step), **place, **values, "reason": "" if known else "|G|² is not above 0"}


def _task_vector(one: Who, other: Who, step: int) -> Row:
    """Cosine 0.5 between seeds of an arm, 0.05 between arms; a run beside itself is two steps of it."""
    alike = one[:2] == other[:2]
    others = {f"other_{name}": value for name, value in _identity(*other, step).items()}
    place = {
        "pairing": "consecutive" if one == other else "last",
        "level": "global",
        "layer": -1,
        "module": "",
    }
    values = {
        "matrices": 7,
        "inner_product": 0.1,
        "norm": 1.0,
        "other_norm": 2.0,
        "cosine": 0.5 if alike else 0.05,
    }
    signs = {"cosine_null": 1e-3, "sign_conflict": 0.2 if alike else 0.45, "sign_entries": 99}
    return {**_identity(*one, step), **others, **place, **values, **signs, "reason": ""}


def _variants(who: Who, step: int) -> Iterator[Row]:
    """Editing intruders lowers the NLL by 0.02, every control by 0.01."""
    edits = [("intervention", arm, 0.0, -0.02 if arm == "intruders" else -0.01, -0.004) for arm in EDITS]
    edits += [
        ("interpolation", "interpolation", t, 0.04 * t**2 - 0.04, 0.45 * (t**0.5 - 1))
        for t in (0.0, 0.5, 1.0)
    ]
    for kind, arm, at, nll, score in edits:
        what = {"variant": f"{arm}-{at:g}", "kind": kind, "arm": arm, "at": at, "matrices": 7, "vectors": 9}
        sizes = {"relative_edit_norm": 0.01, "relative_update_norm": 0.02}
        sizes |= {"top_k": 10.0, "threshold": 0.5, "first_only": 0.0}
        for task, metric, trained, change, higher in (
            ("topic", "accuracy", 0.87, score, True),
            ("general_text", "nll", 3.14, nll, False),
        ):
            ends = {"difference": change, "difference_low": change - 0.003, "difference_high": change + 0.003}
            values = {"value": trained + change, "stderr": 0.02, "n": 400, "trained_value": trained, **ends}
            place = {**_identity(*who, step), **what, **sizes, "task": task, "metric": metric}
            yield {**place, **values, "higher_is_better": higher, "reason": ""}


def _predictor(name: str, number: int) -> Row:
    rho = 0.9 - 0.1 * number
    values = {"spearman": rho, "spearman_low": rho - 0.2, "spearman_high": rho + 0.05, "pearson_log": rho}
    values |= {"pearson_log_low": rho - 0.2, "pearson_log_high": rho + 0.05, "r2_log": rho**2}
    counts = {"runs": 12, "arms": 6, "checkpoints": 24, "log_checkpoints": 24}
    return {"scope": "pooled", "points": "all", "predictor": name, **values, **counts, "reason": ""}


def _item_contrasts(runs: Sequence[Who], step: int) -> Iterator[Row]:
    """Accuracy 0.45 ± 0.05 above the base, 0 ± 0.02 between arms; the NLL that of `_performance` ± 0.01."""
    rises = {who: 0.05 if who[0] == "full" else 0.02 for who in runs}
    for who in runs:
        yield from _over_items(who, ("base", 0, 0), step, (0.45, 0.05, 1e-9, 200), rises[who])
    for one, other in itertools.combinations(sorted(runs), 2):
        if one[:2] != other[:2] and one[2] == other[2]:
            yield from _over_items(one, other, step, (0.0, 0.02, 1.0, 20), rises[one] - rises[other])


def _over_items(
    one: Who, other: Who, step: int, score: tuple[float, float, float, int], nll: float
) -> Iterator[Row]:
    """Of a score: difference, half its interval, p, items gained of 400; 48 windows of 12 documents."""
    difference, half, p_value, gained = score
    of_base = other[0] == "base"
    place = {"contrast": "base" if of_base else "arms", "run": run_name(*one), "step": step, "seed": one[2]}
    place |= {"other_run": "base" if of_base else run_name(*other), "other_step": 0 if of_base else step}
    counts = {"gained": gained, "lost": gained - round(400 * difference), "mcnemar_p": p_value}
    for task, metric, items, resampled, middle, reach, right in (
        ("topic", "accuracy", 400, 400, difference, half, counts),
        ("general_text", "nll", 48, 12, nll, 0.01, dict.fromkeys(counts, np.nan)),
    ):
        ends = {"difference": middle, "low": middle - reach, "high": middle + reach}
        sizes = {"items": items, "resampled": resampled}
        yield {**place, "task": task, "metric": metric, **sizes, **ends, **right, "reason": ""}


def _seed_means(runs: Sequence[Who], step: int) -> Iterator[Row]:
    """Accuracy 0.87 ± 0.03 and NLL 3.15 ± 0.02 in every arm."""
    nll, perplexity = ("general_text", "nll", 3.15, 0.02), ("general_text", "perplexity", 23.3, 0.5)
    scores = (("topic", "accuracy", 0.87, 0.03), nll, perplexity)
    for method, rank in sorted({who[:2] for who in runs}):
        seeds = sorted(seed for *arm, seed in runs if arm == [method, rank])
        name = run_name(method, rank, seeds[0]).removesuffix(f"-seed{seeds[0]}")
        several = len(seeds) > 1
        for task, metric, mean, half in scores:
            ends = {"low": mean - half, "high": mean + half} if several else {"low": np.nan, "high": np.nan}
            place = {"checkpoint": "last", "step": step, "task": task, "metric": metric, "seeds": len(seeds)}
            reason = "" if several else "one seed: no interval over seeds"
            arm = {"arm": name, "method": method, "rank": rank, "tasks": "topic"}
            yield {**arm, **place, "mean": mean, "stdev": half / 2, **ends, "reason": reason}


def _of_arms(runs: Sequence[Who], step: int) -> dict[str, list[Row]]:
    """The first arm forgets 0.03 more than the second, and scores 0.02 more."""
    seeds = sorted({seed for _, _, seed in runs})
    arms = [
        run_name(*who, seeds[0]).removesuffix(f"-seed{seeds[0]}") for who in sorted({who[:2] for who in runs})
    ]
    pairs = [{"arm": one, "other_arm": other} for one, other in itertools.combinations(arms or ["full"], 2)]
    pairs = pairs or [{"arm": "full", "other_arm": "lora-r8"}]
    several = len(seeds) > 1

    def interval(middle: float, half: float) -> Row:
        low, high = (middle - half, middle + half) if several else (np.nan, np.nan)
        return {
            "difference": middle,
            "low": low,
            "high": high,
            "reason": "" if several else "one seed: no interval",
        }

    matched = [
        {**pair, "matched": name, "position": position, "level": first + position * (last - first)}
        for pair, (name, first, last) in itertools.product(
            pairs, (("task_loss", 2.5, 0.5), ("relative_update_norm", 0.001, 0.004))
        )
        for position in (0.0, 0.5, 1.0)
    ]
    sides = {"forgetting": 0.05, "other_forgetting": 0.02}
    last = {"checkpoint": "last", "step": step, "seeds": len(seeds), "stdev": 0.004 if several else np.nan}
    chance = {
        "p_value": 0.01 if several else np.nan,
        "p_holm": 0.02 if several else np.nan,
        "minimum_detectable": 0.01,
        "minimum_detectable_low": 0.005,
        "minimum_detectable_high": 0.06,
    }
    control = {"control_pairs": 3, "control_median": 0.005, "control_largest": 0.01, "control_share": 0.0}
    scores = (("topic", "accuracy", 0.02), ("general_text", "nll", 0.03), ("general_text", "perplexity", 0.4))
    return {
        "seed_means": list(_seed_means(runs, step)),
        "matched_comparison": [row | sides | {"seeds": len(seeds)} | interval(0.03, 0.01) for row in matched],
        "matched_seeds": [
            row | sides | {"seed": seed, "difference": 0.03} for row in matched for seed in seeds
        ],
        "seed_contrasts": [
            pair
            | last
            | {"task": task, "metric": metric}
            | chance
            | control
            | interval(difference, difference / 3)
            for pair, (task, metric, difference) in itertools.product(pairs, scores)
        ],
    }


def _make(
    runs: Sequence[Who], steps: Sequence[int], layers: int, representations: Sequence[str] = ("mean",)
) -> Tables:
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
        "drift_metrics": [row for point in points for row in _drift(*point, layers, representations)],
        "gradient_analysis_results": [
            row
            for who in runs
            for step in range(1, steps[-1] + 1)
            for row in _gradients(who, step, layers, generator)
        ],
    }
    tables = {name: pd.DataFrame(rows) for name, rows in frames.items()}
    plane = learning_forgetting(checkpoint_summaries(tables), tables["performance_metrics"])
    tables |= {"singular_values": _singular_values(sigmas), "learning_forgetting": plane}
    return tables | comparison_tables(runs, steps, layers)


@pytest.fixture(scope="session")
def make_tables() -> Callable[..., Tables]:
    """Return make(runs=[(method, rank, seed), ...], steps, layers, representations) -> a study's tables."""
    return _make
