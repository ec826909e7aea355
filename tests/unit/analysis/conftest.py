"""A study's tables made up with the columns of docs/architecture.md: shapes are real, numbers are not."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence

import numpy as np
import pandas as pd
import pytest

from rankdrift.analysis.comparisons.comparisons import learning_forgetting
from rankdrift.analysis.sources.averages import averages
from rankdrift.analysis.sources.checkpoint_summary import checkpoint_summaries

Frame = pd.DataFrame
Tables = dict[str, Frame]
Who = tuple[str, int, int]
"""Method, rank, seed."""
Row = dict[str, object]
BASE = ("base", 0, 0)
IDENTITY = ["run", "method", "rank", "tasks", "seed", "step"]
TASKS = ("topic", "entailment", "general_text")
"""Whose gradients are taken."""
EDITS = ("intruders", "neighbours", "random", "shrunk", "rescaled")
PREDICTORS = ("kl_from_base", "relative_update_norm", "sigma1_ratio")
PREDICTORS += ("intruders_left", "intruder_energy_left", "drift")
MODULES = {"q_proj": (64, 64), "k_proj": (16, 64), "v_proj": (16, 64), "o_proj": (64, 64)}
MODULES |= {"gate_proj": (96, 64), "up_proj": (96, 64), "down_proj": (64, 96)}
RANKS = ("threshold_rank", "numerical_rank", "entropy_rank", "energy_entropy_rank", "stable_rank")
RANKS += ("participation_ratio", "e90_energy", "e95_energy", "e90_nuclear", "e95_nuclear")
REPRESENTATIONS = {"mean": 1, "last_token": 2, "token": 3}
"""Representation -> how much more it drifts than the mean."""
SIDES = ("left", "right")


def arm_name(method: str, rank: int) -> str:
    return f"lora-r{rank}" if method == "lora" else method


def _points(runs: Sequence[Who], steps: Sequence[int]) -> Frame:
    """Return a row a run and step: its identity, and the share of all steps that it has made."""
    rows = [
        (
            "base" if method == "base" else f"{arm_name(method, rank)}-seed{seed}",
            method,
            rank,
            "topic",
            seed,
            s,
        )
        for method, rank, seed in runs
        for s in steps
    ]
    return Frame(rows, columns=IDENTITY).assign(progress=lambda t: t["step"] / max(steps[-1], 1))


def _crossed(points: Frame, **values: Sequence[object]) -> Frame:
    """Return every row with every combination of the values, the last of which varies fastest."""
    return points.merge(Frame(itertools.product(*values.values()), columns=list(values)), how="cross")


def _each(points: Frame, names: str, *rows: tuple[object, ...]) -> Frame:
    """Return every row with each of the rows of values."""
    return points.merge(Frame(rows, columns=names.split()), how="cross")


def _matrices(points: Frame, layers: int, **values: Sequence[object]) -> Frame:
    return _crossed(points, layer=range(layers), module=list(MODULES), **values)


def _training(points: Frame, last: int, generator: np.random.Generator) -> Frame:
    """Of every step; evaluated six times."""
    loss = 0.3 + 2.2 * np.exp(-3 * points["progress"])
    drawn = generator.random((3, len(points)))
    train = points.assign(split="train", loss=loss + 0.1 * drawn[0])
    train["learning_rate"] = 5e-4 * (1 - points["progress"])
    train["gradient_norm"], train["tokens_per_second"] = 1 + drawn[1], 900 + 50 * drawn[2]
    train["padding"], train["teraflops"], train["mfu"], train["seconds"] = 0.0, 0.1, 0.4, 2.0
    parts = {"data": 0.0, "forward": 0.5, "backward": 1.0, "update": 0.3, "exchange": 0.1, "probe": 0.2}
    for part, seconds in (parts | {"evaluation": 3.0, "save": 1.0}).items():
        train[f"seconds_{part}"] = seconds
    validation = points.assign(split="validation", loss=loss + 0.05)
    every = points["step"] % max(last // 6, 1) == 0
    return pd.concat([train.assign(memory_gib=2.5), validation[every]]).sort_index(kind="stable")


def _performance(points: Frame) -> Frame:
    """Accuracy .42 + .45 progress; full forgets .05 nats, others .02."""
    table = _each(
        points,
        "task metric role n higher_is_better best",
        ("topic", "accuracy", "trained", 400, True, 1.0),
        ("general_text", "nll", "text", 48, False, np.nan),
        ("general_text", "perplexity", "text", 48, False, np.nan),
        ("general_text", "kl_from_base", "text", 48, False, np.nan),
        ("general_text", "top1_agreement", "text", 48, True, np.nan),
    )
    accuracy = 0.42 + 0.45 * points["progress"]
    drop = np.where(points["method"] == "full", 0.05, 0.02) * points["progress"]
    values = [accuracy, 3.1 + drop, np.exp(3.1 + drop), 1.4 * drop, 1 - drop]
    errors = [
        (accuracy * (1 - accuracy) / 400) ** 0.5,
        0.05 + 0 * drop,
        np.nan + drop,
        0.1 * drop,
        0.01 + 0 * drop,
    ]
    return table.assign(value=np.column_stack(values).ravel(), stderr=np.column_stack(errors).ravel())


def _spectra(points: Frame, layers: int) -> Frame:
    table = _matrices(points, layers)
    shapes = np.array([MODULES[module] for module in table["module"]])
    small, lora = shapes.min(axis=1), table["method"] == "lora"
    bound = np.where(lora, np.minimum(small, table["rank"]), small)
    size = np.where(lora, 0.02, 0.004) * table["progress"] * (1 + 0.3 * np.sin(table["layer"]))
    columns = dict(zip(("rows", "columns"), shapes.T, strict=True))
    columns |= {f"update_{name}": values for name, values in columns.items()}
    ranks = {"base": (8.0, 0.7 * small), "tuned": (8.0, 0.7 * small), "update": (8 * size, 0.6 * bound)}
    for matrix, (norm, rank) in ranks.items():
        columns |= {f"{matrix}_norm": norm, f"{matrix}_sigma1": norm / 3}
        columns |= {f"{matrix}_nuclear_norm": norm * small**0.5, **{f"{matrix}_{r}": rank for r in RANKS}}
        if matrix != "base":
            null = 0.8 * (bound if matrix == "update" else small)
            columns |= {f"{matrix}_{name}_null": null for name in RANKS}
    intruding = lora & (table["layer"] % 3 == 0)
    columns |= {"relative_update_norm": size, "sigma1_ratio": 1.5 * size, "spearman_sigma": 1 - size / 100}
    columns |= {f"angle_{side}_{kind}": 4 * size for side in SIDES for kind in ("mean", "max")}
    columns |= {"overlap_left": 1 - size, "overlap_right": 1 - size, "overlap_random": 10 / 64}
    columns |= {f"intruders_{side}": intruding.astype(int) for side in SIDES}
    columns |= {f"intruder_energy_{side}": 0.05 * intruding for side in SIDES}
    return table.assign(**columns, bf16_floor_ratio=size / 0.0017)


def _singular_values(points: Frame, layers: int) -> Frame:
    base = _matrices(_points([BASE], [0]), layers, matrix=["base"])
    table = pd.concat([base, _matrices(points, layers, matrix=["tuned", "update"])], ignore_index=True)
    small = table["module"].map(lambda module: min(MODULES[module]))
    bounded = (table["matrix"] == "update") & (table["method"] == "lora")
    table["index"] = [range(n) for n in np.where(bounded, np.minimum(small, table["rank"]), small)]
    table = table.explode("index", ignore_index=True).astype({"index": int})
    scale = table["matrix"].map({"base": 3.0, "tuned": 3.001, "update": 0.05})
    return table.assign(sigma=scale * (1 + table["index"]) ** -0.6)


def _drift(points: Frame, layers: int, names: Sequence[str]) -> Frame:
    features = ("all", "without_top") if len(names) > 1 else ("all",)
    table = _crossed(points, layer=range(layers + 1), representation=names, features=features)
    size = np.where(table["method"] == "full", 0.06, 0.02) * table["progress"]
    change = size * (table["layer"] / layers) ** 2 * table["representation"].map(REPRESENTATIONS)
    values = {"cka": 1 - change, "cka_stderr": change / 8, "cka_biased": 1 - change / 2, "n": 64}
    values |= {"cosine": 1 - change / 5, "cosine_centered": 1 - change / 2, "relative_l2": change**0.5}
    return table.assign(**values)


def _gradients(points: Frame, layers: int, generator: np.random.Generator) -> Frame:
    tables = []
    for method, rows in points.groupby("method"):
        groups = ("attention", "mlp") if method == "lora" else ("attention", "mlp", "embed", "norm")
        places = [("layer", n, "") for n in range(layers)] + [("group", -1, group) for group in groups]
        table = _each(rows, "level layer group", *places, ("global", -1, ""))
        tables.append(_crossed(table, factor=("A", "B") if method == "lora" else ("",)))
    table = pd.concat(tables, ignore_index=True).assign(numel=4096)
    size = 0.1 + 0.2 * generator.random(len(table))
    zeros = 0.001 * (table["factor"] == "A")
    return table.assign(l2_norm=size, mean_abs=size / 80, std=size / 64, zero_fraction=zeros)


def _probes(gradients: Frame) -> Tables:
    """Of every row of gradients: drift .01 to .02 progress, ratio 1e-3, S 8 |G|², cosines .5."""
    places = gradients.drop(columns=["numel", "l2_norm", "mean_abs", "std", "zero_fraction"]).assign(phase=0)
    size = 0.01 * places["progress"] * (1 + (places["layer"] + 1) / 4)
    whole = places[places["factor"] != "B"].drop(columns="factor").assign(parameter="", base_norm=10.0)
    drift = whole.assign(update_norm=10 * size, relative_update_norm=size)
    drift[["sigma1_ratio", "stable_rank", "entropy_rank"]] = np.nan
    adapted = drift[(drift["level"] == "layer") & (drift["method"] == "lora")]
    adapted = adapted.assign(level="parameter", parameter="w", group="mlp")
    adapted = adapted.assign(sigma1_ratio=size[adapted.index], stable_rank=1.5, entropy_rank=3.0)
    updates = places.assign(parameter="", update_norm=0.01, weight_norm=10.0, ratio=1e-3)
    noise = places.assign(micro_batches=4, targets=32, observed_square=1.25)
    noise = noise.assign(gradient_square=1.0, noise_trace=8.0)
    squares = {"square": 4.0, "other_square": 1.0, "observed_square": 5.0, "other_observed_square": 2.0}
    conflict = places.assign(task=TASKS[0], other_task=TASKS[1], inner_product=1.0, **squares, share=1.0)
    return {
        "live_drift": pd.concat([drift, adapted], ignore_index=True),
        "live_updates": updates,
        "live_noise": noise,
        "live_conflict": conflict,
    }


def _intruder_grid(points: Frame, layers: int) -> Frame:
    """One intruder in every third layer of LoRA, its cosine 0.45; random directions are all intruders."""
    table = _matrices(points, layers, side=SIDES, threshold=(0.3, 0.5, 0.9), k=(1, 10, 32))
    planted = (table["method"] == "lora") & (table["layer"] % 3 == 0) & (table["threshold"] > 0.45)
    count = planted.astype(float)
    random = {"count_random": table["k"].astype(float), "cosine_random": 0.3}
    return table.assign(count=count, energy_share=0.05 * count, **random, reason="")


def _subspaces(points: Frame, layers: int) -> Frame:
    table = _matrices(points, layers, side=SIDES, k=(1, 10, 32))
    size = np.where(table["method"] == "full", 0.1, 0.3) * table["progress"]
    drift = size * (1 + table["layer"] / layers) / 2 * (table["k"] / 32) ** 0.2
    values = {"angle_mean": drift, "angle_max": 2 * drift, "overlap": 1 - drift**2, "vector_drift": drift}
    values |= {"overlap_random": table["k"] / 64, "naive_drift": 0.68, "gap": 0.1, "wedin_bound": 1.0}
    return table.assign(**values, reliable=table["k"] == 1, reason="")


def _layer_pairs(points: Frame, layers: int) -> Frame:
    table = _crossed(points, base_layer=range(layers + 1), tuned_layer=range(layers + 1))
    i, j = table["base_layer"], table["tuned_layer"]
    change = 0.8 * abs(i - j) + 0.1 * table["progress"] * j
    return table.assign(cka=1 - change / layers, n=64, reason="")


def _task_gradients(points: Frame) -> Frame:
    """Corrected cosines 1 - |i - j| progress, 0.6 of them as observed, at three levels."""
    table = _crossed(points, task=TASKS, other_task=TASKS)
    table = _each(table, "level layer group", ("global", -1, ""), ("group", -1, "mlp"), ("layer", 0, ""))
    apart = abs(table["task"].map(TASKS.index) - table["other_task"].map(TASKS.index))
    cosine = 1 - apart * table["progress"]
    values = {"inner_product": cosine, "cosine": 0.6 * cosine, "cosine_corrected": cosine}
    values |= {"inner_product_stderr": 0.05, "cosine_corrected_stderr": 0.05 * (apart > 0)}
    counts = {"n": 32, "n_other": 32, "shards": 8}
    return table.assign(space="weight", factor="", **values, conflict=cosine < 0, **counts, reason="")


def _noise(points: Frame) -> Frame:
    """Noise scales 8 to 80 rows; that of the last task cannot be told at the last step."""
    table = _crossed(points, task=TASKS).assign(space="weight", level="global", layer=-1, group="", factor="")
    known = (table["task"] != TASKS[-1]) | (table["progress"] < 1)
    scale = np.where(known, 8 * 10 ** table["progress"], np.nan)
    values = {"gradient_square": np.where(known, 0.1, -0.1), "gradient_square_stderr": 0.02, "n": 32}
    values |= {"noise_trace": 0.8, "noise_trace_stderr": 0.1, "noise_scale": scale, "shards": 8}
    reason = np.where(known, "", "|G|² is not above 0")
    return table.assign(**values, noise_scale_stderr=scale / 5, reason=reason)


def _task_vectors(last: Frame) -> Frame:
    """Cosine 0.5 between seeds of an arm, 0.05 between arms; a run beside itself is two steps of it."""
    pairs = list(itertools.combinations_with_replacement(range(len(last)), 2))
    one, other = (last.iloc[list(index)].reset_index(drop=True) for index in zip(*pairs, strict=True))
    alike = (one[["method", "rank"]] == other[["method", "rank"]]).all(axis=1)
    place = {"pairing": np.where(one["run"] == other["run"], "consecutive", "last"), "level": "global"}
    values = {"layer": -1, "module": "", "matrices": 7, "inner_product": 0.1, "norm": 1.0, "other_norm": 2.0}
    values |= {"cosine": np.where(alike, 0.5, 0.05), "cosine_null": 1e-3, "sign_entries": 99}
    table = pd.concat([one, other[IDENTITY].add_prefix("other_")], axis=1)
    return table.assign(**place, **values, sign_conflict=np.where(alike, 0.2, 0.45), reason="")


def _variants(last: Frame) -> Frame:
    """Editing intruders lowers the NLL by 0.02, every control by 0.01."""
    edits = [("intervention", arm, 0.0, -0.02 if arm == "intruders" else -0.01, -0.004) for arm in EDITS]
    line = [(t, 0.04 * t**2 - 0.04, 0.45 * (t**0.5 - 1)) for t in (0.0, 0.5, 1.0)]
    edits += [("interpolation", "interpolation", *changes) for changes in line]
    table = _each(last, "kind arm at nll score", *edits)
    table["variant"] = [f"{arm}-{at:g}" for arm, at in zip(table["arm"], table["at"], strict=True)]
    sizes = {"matrices": 7, "vectors": 9, "relative_edit_norm": 0.01, "relative_update_norm": 0.02}
    sizes |= {"top_k": 10.0, "threshold": 0.5, "first_only": 0.0, "stderr": 0.02, "n": 400, "reason": ""}
    measured = (("topic", "accuracy", "trained", 0.87, True), ("general_text", "nll", "text", 3.14, False))
    table = _each(table, "task metric role trained_value higher_is_better", *measured).assign(**sizes)
    change = np.where(table["metric"] == "nll", table.pop("nll"), table.pop("score"))
    ends = {"difference": change, "difference_low": change - 0.003, "difference_high": change + 0.003}
    return table.assign(value=table["trained_value"] + change, **ends)


def _predictor(name: str, number: int) -> Row:
    rho = 0.9 - 0.1 * number
    values = {"r2_log": rho**2, "runs": 12, "arms": 6, "checkpoints": 24, "log_checkpoints": 24, "reason": ""}
    for statistic in ("spearman", "pearson_log"):
        values |= {statistic: rho, f"{statistic}_low": rho - 0.2, f"{statistic}_high": rho + 0.05}
    return {"scope": "pooled", "points": "all", "predictor": name, **values}


def _item_contrasts(last: Frame) -> Frame:
    """Accuracy 0.45 ± 0.05 above the base, 0 ± 0.02 between arms; the NLL that of `_performance` ± 0.01."""
    runs = sorted(last.itertuples(), key=lambda run: (run.method, run.rank, run.seed))
    rises = {run.run: 0.05 if run.method == "full" else 0.02 for run in runs} | {"base": 0.0}
    pairs = [(run, "base", 0) for run in last.itertuples()]
    for one, other in itertools.combinations(runs, 2):
        if (one.method, one.rank) != (other.method, other.rank) and one.seed == other.seed:
            pairs.append((one, other.run, other.step))
    rows = []
    for one, other, step in pairs:
        # of a score: difference, half its interval, p, items gained of 400; 48 windows of 12 documents
        middle, half, p_value, gained = (0.45, 0.05, 1e-9, 200) if other == "base" else (0.0, 0.02, 1.0, 20)
        place = ("base" if other == "base" else "arms", one.run, one.step, one.seed, other, step)
        ends, right = (middle, middle - half, middle + half), (gained, gained - round(400 * middle), p_value)
        rows.append((*place, "topic", "accuracy", 400, 400, *ends, *right, ""))
        nll = rises[one.run] - rises[other]
        nothing = (np.nan, np.nan, np.nan, "")
        rows.append((*place, "general_text", "nll", 48, 12, nll, nll - 0.01, nll + 0.01, *nothing))
    names = "contrast run step seed other_run other_step task metric items resampled difference low high"
    return Frame(rows, columns=[*names.split(), "gained", "lost", "mcnemar_p", "reason"])


def _seed_means(arms: dict[tuple[str, int], int], step: int) -> Iterator[Row]:
    """Accuracy 0.87 ± 0.03 and NLL 3.15 ± 0.02 in every arm."""
    texts = (("general_text", "nll", "text", 3.15, 0.02), ("general_text", "perplexity", "text", 23.3, 0.5))
    scores = (("topic", "accuracy", "trained", 0.87, 0.03), *texts)
    for ((method, rank), seeds), (task, metric, role, mean, half) in itertools.product(arms.items(), scores):
        arm = {"arm": arm_name(method, rank), "method": method, "rank": rank, "tasks": "topic"}
        place = {
            "checkpoint": "last",
            "step": step,
            "task": task,
            "metric": metric,
            "role": role,
            "seeds": seeds,
        }
        reach, reason = (half, "") if seeds > 1 else (np.nan, "one seed: no interval over seeds")
        ends = {"stdev": half / 2, "low": mean - reach, "high": mean + reach}
        yield {**arm, **place, "mean": mean, **ends, "reason": reason}


def _of_arms(runs: Sequence[Who], step: int) -> dict[str, list[Row]]:
    """The first arm forgets 0.03 more than the second, and scores 0.02 more."""
    seeds = sorted({seed for _, _, seed in runs})
    arms = {arm: sum(who[:2] == arm for who in runs) for arm in sorted({who[:2] for who in runs})}
    names = [arm_name(*arm) for arm in arms]
    pairs = [{"arm": one, "other_arm": other} for one, other in itertools.combinations(names, 2)]
    pairs = pairs or [{"arm": "full", "other_arm": "lora-r8"}]
    several = len(seeds) > 1

    def interval(middle: float, half: float) -> Row:
        reach, reason = (half, "") if several else (np.nan, "one seed: no interval")
        return {"difference": middle, "low": middle - reach, "high": middle + reach, "reason": reason}

    levels = (("task_loss", 2.5, 0.5), ("relative_update_norm", 0.001, 0.004))
    sides = {"forgetting": 0.05, "other_forgetting": 0.02}
    matched = [
        {**pair, "matched": name, "position": position, "level": first + position * (last - first), **sides}
        for pair, (name, first, last) in itertools.product(pairs, levels)
        for position in (0.0, 0.5, 1.0)
    ]
    last = {"checkpoint": "last", "step": step, "seeds": len(seeds), "stdev": 0.004 if several else np.nan}
    last |= {"p_value": 0.01 if several else np.nan, "p_holm": 0.02 if several else np.nan}
    last |= {"minimum_detectable": 0.01, "minimum_detectable_low": 0.005, "minimum_detectable_high": 0.06}
    last |= {"control_pairs": 3, "control_median": 0.005, "control_largest": 0.01, "control_share": 0.0}
    texts = (("general_text", "nll", "text", 0.03), ("general_text", "perplexity", "text", 0.4))
    scores = (("topic", "accuracy", "trained", 0.02), *texts)
    return {
        "seed_means": list(_seed_means(arms, step)),
        "matched_comparison": [row | {"seeds": len(seeds)} | interval(0.03, 0.01) for row in matched],
        "matched_seeds": [row | {"seed": seed, "difference": 0.03} for row in matched for seed in seeds],
        "seed_contrasts": [
            pair
            | last
            | {"task": task, "metric": metric, "role": role}
            | interval(difference, difference / 3)
            for pair, (task, metric, role, difference) in itertools.product(pairs, scores)
        ],
    }


def _search(runs: Sequence[Who]) -> Iterator[Row]:
    """Of every arm five learning rates, the middle one the best."""
    arms = {arm_name(method, rank): method for method, rank, _ in runs}
    for (arm, method), trial in itertools.product(arms.items(), range(5)):
        yield {
            **{"arm": arm, "method": method, "trial": trial, "setting": "training.learning_rate"},
            **{"at": 10.0 ** (trial - 6), "chosen": f"1e-0{6 - trial}", "scale": "log", "low": 1e-6},
            **{"high": 1e-2, "state": "done", "value": 1.0 + abs(trial - 2), "stderr": np.nan},
            **{"judged_by": "validation/loss", "is_better_low": 1, "best": int(trial == 2)},
            **{"steps": 30, "seconds": 9.0, "reason": ""},
        }


def _deployment(runs: Sequence[Who]) -> Iterator[Row]:
    """Of every arm a further token of 10 ms, with an adapter beside the base 14."""
    ways = {"base": ["base"]} | {
        arm_name(method, rank): ["merged", "unmerged"] if method == "lora" else ["full"]
        for method, rank, _ in runs
    }
    for arm, way in ((arm, way) for arm, found in ways.items() for way in found):
        size = 1.4 if way == "unmerged" else 1.0
        yield {
            **{"arm": arm, "way": way, "engine": "transformers, CPU, float32", "quantity": "further_token"},
            **{"unit": "s", "load": "", "batch": 1, "prompt_tokens": 32, "samples": 160, "rounds": 20},
            **{"p50": 0.01 * size, "low": 0.009 * size, "high": 0.011 * size, "p95": 0.02, "p99": np.nan},
            **{"reference": "lora-r8, merged", "ratio": size, "ratio_low": 0.98 * size},
            **{"ratio_high": 1.02 * size, "flops_ratio": 1.02, "bytes_ratio": 1.02, "reason": ""},
        }


def _make(
    runs: Sequence[Who], steps: Sequence[int], layers: int, representations: Sequence[str] = ("mean",)
) -> Tables:
    generator = np.random.default_rng(0)
    points, last, every = (
        _points(runs, steps),
        _points(runs, steps[-1:]),
        _points(runs, range(1, steps[-1] + 1)),
    )
    gradients = _gradients(every, layers, generator)
    frames = {
        "training_metrics": _training(every, steps[-1], generator),
        "performance_metrics": _performance(pd.concat([_points([BASE], [0]), points], ignore_index=True)),
        "svd_analysis_results": _spectra(points, layers),
        "singular_values": _singular_values(points, layers),
        "drift_metrics": _drift(points, layers, representations),
        "gradient_analysis_results": gradients,
        **_probes(gradients),
        "intruder_dimensions": _intruder_grid(points, layers),
        "subspace_drift": _subspaces(points, layers),
        "layer_similarity": _layer_pairs(points, layers),
        "task_gradients": _task_gradients(points),
        "gradient_noise": _noise(points),
        "task_vectors": _task_vectors(last),
        "variant_scores": _variants(last),
        "forgetting_predictors": Frame([_predictor(name, n) for n, name in enumerate(PREDICTORS)]),
        "item_contrasts": _item_contrasts(last),
        "search_trials": Frame(list(_search(runs))),
        "deployment_benchmark_summary": Frame(list(_deployment(runs))),
        **{name: Frame(rows) for name, rows in _of_arms(runs, steps[-1]).items()},
    }
    tables = {name: frame.drop(columns="progress", errors="ignore") for name, frame in frames.items()}
    summaries = checkpoint_summaries(tables)
    return tables | {"learning_forgetting": learning_forgetting(summaries, tables["performance_metrics"])}


@pytest.fixture(scope="session")
def make_tables() -> Callable[..., Tables]:
    """Return make(runs=[(method, rank, seed), ...], steps, layers, representations) -> a study's tables."""
    return _make


def _scored_widely(tables: Tables) -> Tables:
    """Return a study's tables with more scores: of a second task, of retention tasks, of prompts.

    ROUGE-L of `summary` is 30 + 20 progress; each of three retention tasks falls by as much as the NLL rises;
    KL on the prompts of `topic` is 2 of it, on those of `summary` 1. Validation is 0.01 above test; the most
    frequent answer gives 0.25 and 10.
    """
    performance = tables["performance_metrics"]
    rows = performance[performance["metric"] == "nll"]
    rise, progress = rows["value"] - 3.1, rows["step"] / performance["step"].max()
    retention = {"hellaswag": 0.4, "arc_challenge": 0.3, "winogrande": 0.5}
    scores = {
        ("summary", "rouge_l", "trained", True, 100.0): (30 + 20 * progress, 1.0),
        ("topic_prompts", "kl_from_base", "text", False, np.nan): (2 * rise, 0.04),
        ("summary_prompts", "kl_from_base", "text", False, np.nan): (rise, 0.03),
    }
    scores |= {
        (task, "accuracy", "retention", True, 1.0): (start - rise, 0.02) for task, start in retention.items()
    }
    names = ["task", "metric", "role", "higher_is_better", "best"]
    more = [
        rows.assign(**dict(zip(names, score, strict=True)), value=value, stderr=error, n=400)
        for score, (value, error) in scores.items()
    ]
    wide = pd.concat([performance, *more], ignore_index=True)
    means = [
        of_step.iloc[:1].assign(**average.row(of_step))
        for _, of_step in wide.groupby(["run", "step"], sort=False)
        for average in averages(of_step)
    ]
    wide = pd.concat([wide, *means], ignore_index=True)
    trained = wide[wide["role"] == "trained"]
    base = trained[trained["run"] == "base"].drop_duplicates("task").query("task != 'trained_tasks'")
    rules = base[[*IDENTITY, "task", "metric"]].assign(rule="majority", value=[0.25, 10.0])
    contrasts = tables["item_contrasts"]
    accuracy = contrasts[contrasts["metric"] == "accuracy"]
    of_base = accuracy[accuracy["other_run"] == "base"].assign(difference=-0.05, low=-0.08, high=-0.02)
    kept = [of_base.assign(task=task, mcnemar_p=0.01) for task in retention]
    mean = of_base.assign(task="retention", metric="mean_accuracy", mcnemar_p=np.nan, high=0.01)
    made = {
        "performance_metrics": wide,
        "validation_metrics": trained.assign(value=trained["value"] + 0.01),
        "baselines": rules,
        "item_contrasts": pd.concat([contrasts, *kept, mean], ignore_index=True),
    }
    return {
        **tables,
        **made,
        "learning_forgetting": learning_forgetting(checkpoint_summaries(tables | made), wide),
    }


@pytest.fixture(scope="session")
def scored_widely() -> Callable[[Tables], Tables]:
    """Return widely(tables) -> the tables with scores on two splits, of retention tasks and of prompts."""
    return _scored_widely
