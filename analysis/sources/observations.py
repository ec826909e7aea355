"""What figures and findings both read off the study's tables: last checkpoints, changes from the base.

Every function takes tables as docs/architecture.md describes them and returns a new one; none reads a file.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd

BASE = "base"
GENERAL_TEXT = "general_text"
RETENTION, MEAN_ACCURACY = "retention", "mean_accuracy"
"""Name and metric of the mean over retention tasks (:mod:`rankdrift.analysis.sources.averages`)."""
TRAINED_TASKS, MACRO_AVERAGE = "trained_tasks", "macro_average"
"""Name and metric of the mean over the tasks trained on."""
EDIT_SETTINGS = ["at", "top_k", "threshold", "first_only"]
"""Columns of `variant_scores` that an edit has in common with its controls."""
RUN_KEYS = ["run", "method", "rank", "seed"]
PARTS_OF_STEPS = {
    "data": "choosing a step's rows",
    "forward": "forward passes",
    "backward": "backward passes, with ZeRO's exchange of gradients",
    "update": "the optimizer's step, with ZeRO's exchange of weights",
    "exchange": "the exchange of losses, and on a GPU waiting for it",
}
"""Parts of a step's seconds, `seconds_PART` of `training_metrics`."""
BESIDE_STEPS = {
    "probe": "probes of this step",
    "evaluation": "the last evaluation before this step",
    "save": "what the last save before this step held it up",
}
"""What else takes time, `seconds_PART` of `training_metrics`."""


def arm_of(run: str, seed: int) -> str:
    """Return a run's arm: its folder name without the seed.

    >>> arm_of("lora-r8-seed42", 42)
    'lora-r8'
    """
    return run.removesuffix(f"-seed{seed}")


def with_arms(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with a column ``arm``."""
    arms = [arm_of(run, seed) for run, seed in zip(table["run"], table["seed"], strict=True)]
    return table.assign(arm=arms)


def rows_of(table: pd.DataFrame) -> Iterator[Any]:
    """Return the rows as named tuples."""
    return table.itertuples(index=False, name="Row")


def tuned_rows(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of trained runs, without those of the base model."""
    return table[table["run"] != BASE]


def changed_rows(spectra: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of trained runs' matrices that were changed."""
    return spectra[(spectra["run"] != BASE) & (spectra["update_norm"] > 0)]


def last_checkpoints(table: pd.DataFrame) -> pd.DataFrame:
    """Return each trained run's rows at its own last step."""
    rows = tuned_rows(table)
    return rows[rows["step"] == rows.groupby("run")["step"].transform("max")]


def of_changed(rows: pd.DataFrame, spectra: pd.DataFrame | None) -> pd.DataFrame:
    """Return the rows of matrices that were changed, by a table of (run, step, layer, module) and `spectra`.

    All rows where there are no spectra, which alone say what was changed.
    """
    if spectra is None:
        return rows
    place = ["run", "step", "layer", "module"]
    return rows.merge(changed_rows(spectra)[place].drop_duplicates(), on=place)


def of_blocks(spectra: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of matrices inside the blocks, which have a layer; not embeddings and heads."""
    return spectra[spectra["layer"] >= 0]


def mean_states(drift: pd.DataFrame) -> pd.DataFrame:
    """Return one row a layer of ``drift_metrics``: of mean-pooled states, with all of their features."""
    return drift[(drift["representation"] == "mean") & (drift["features"] == "all")]


def nearest_count(counts: pd.Series, wanted: int = 10) -> int:
    """Return the number of leading vectors in a table that is nearest to the one wanted.

    >>> nearest_count(pd.Series([1, 2, 8, 32]))
    8
    """
    return int(min(counts.unique(), key=lambda count: (abs(count - wanted), count)))


def leading_metrics(performance: pd.DataFrame) -> list[tuple[str, str]]:
    """Return (task, metric) for the first metric of every task that was trained on, in table order.

    Their macro average, where there is one, counts as a task. Retention tasks and texts are no learning.
    """
    return role_leads(performance, "trained")


def role_leads(performance: pd.DataFrame, role: str) -> list[tuple[str, str]]:
    """Return (task, metric) for the first metric of every task with the role, in table order."""
    first = performance[performance["role"] == role].drop_duplicates("task")
    return list(zip(first["task"], first["metric"], strict=True))


def compared_metrics(performance: pd.DataFrame) -> list[tuple[str, str]]:
    """Return what arms are compared on: leading metrics, text's NLL and the mean over retention tasks."""
    return [*leading_metrics(performance), (GENERAL_TEXT, "nll"), (RETENTION, MEAN_ACCURACY)]


def scores_of(performance: pd.DataFrame, task: str, metric: str) -> pd.DataFrame:
    """Return the rows of one metric of one task: trained runs and base."""
    return performance[(performance["task"] == task) & (performance["metric"] == metric)]


def base_score(performance: pd.DataFrame, task: str, metric: str) -> tuple[float, float] | None:
    """Return the base model's (value, stderr) of a metric, or None where the base was not scored."""
    rows = scores_of(performance, task, metric)
    rows = rows[rows["run"] == BASE]
    return None if rows.empty else (float(rows["value"].iloc[0]), float(rows["stderr"].iloc[0]))


def forgetting(performance: pd.DataFrame) -> pd.DataFrame:
    """Return a row a checkpoint: what it lost against the base, in four measures; NaN where one is missing.

    On general text `nll`, `nll_increase` over the base, `kl_from_base` with `kl_stderr`; `prompt_kl`, the
    mean over trained tasks of the KL from the base on their prompts, with `prompt_kl_stderr`: all in nats a
    token. `retention_drop`, base - checkpoint of the mean accuracy of retention tasks, with
    `retention_stderr` of two independent models: as both answer the same items, that is too much rather than
    too little. No rows where none of the texts and retention tasks were scored.
    """
    keys = [*RUN_KEYS, "step"]
    texts = performance["role"] == "text"
    mean = (performance["task"] == RETENTION) & (performance["metric"] == MEAN_ACCURACY)
    found = tuned_rows(performance[texts | mean])[keys].drop_duplicates(ignore_index=True)
    for task, metric, names in (
        (GENERAL_TEXT, "nll", ("nll", "nll_stderr")),
        (GENERAL_TEXT, "kl_from_base", ("kl_from_base", "kl_stderr")),
        (RETENTION, MEAN_ACCURACY, ("retention", "retention_stderr")),
    ):
        rows = tuned_rows(scores_of(performance, task, metric))[["run", "step", "value", "stderr"]]
        found = found.merge(rows.set_axis(["run", "step", *names], axis=1), on=["run", "step"], how="left")
    found = found.merge(_prompt_kl(performance), on=["run", "step"], how="left")
    nll, retention = (
        base_score(performance, *score) or (np.nan, np.nan)
        for score in ((GENERAL_TEXT, "nll"), (RETENTION, MEAN_ACCURACY))
    )
    found["nll_increase"] = found["nll"] - nll[0]
    found["retention_drop"] = retention[0] - found["retention"]
    found["retention_stderr"] = np.hypot(found["retention_stderr"], retention[1])
    return found.drop(columns=["nll_stderr", "retention"])


def prompt_texts(performance: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of the trained tasks' prompts, which are texts as general text is one."""
    return performance[(performance["role"] == "text") & (performance["task"] != GENERAL_TEXT)]


def _prompt_kl(performance: pd.DataFrame) -> pd.DataFrame:
    """Return the mean KL over prompts of the tasks; their errors are independent of each other."""
    rows = prompt_texts(performance)
    rows = rows[rows["metric"] == "kl_from_base"].assign(square=lambda table: table["stderr"] ** 2)
    means = rows.groupby(["run", "step"], as_index=False).agg(
        prompt_kl=("value", _whole_mean), square=("square", _whole_sum), tasks=("task", "size")
    )
    means["prompt_kl_stderr"] = np.sqrt(means["square"]) / means["tasks"]
    return means[["run", "step", "prompt_kl", "prompt_kl_stderr"]]


def _whole_mean(values: pd.Series) -> float:
    return float(values.mean(skipna=False))


def update_sizes(spectra: pd.DataFrame, by: tuple[str, ...] = ()) -> pd.DataFrame:
    """Return a row a checkpoint (and `by`): relative_update_norm = sqrt(sum ||dW||_F^2 / sum ||W0||_F^2)."""
    rows = tuned_rows(spectra)
    squares = rows.assign(update=rows["update_norm"] ** 2, base=rows["base_norm"] ** 2)
    sums = _whole_sums(squares, [*RUN_KEYS, "step", *by], ["update", "base"])
    sums["relative_update_norm"] = np.sqrt(sums["update"] / sums["base"])
    return sums.drop(columns=["update", "base"])


def intruder_totals(spectra: pd.DataFrame, by: tuple[str, ...] = ()) -> pd.DataFrame:
    """Return intruder counts summed, energy shares averaged, sigma1 ratios maximised, over the blocks.

    Embeddings and heads are left out, as in the published counts (arXiv 2410.21228). A sum is NaN where a
    count is undefined: what is left would not be the model's.
    """
    return (
        of_blocks(tuned_rows(spectra))
        .groupby([*RUN_KEYS, "step", *by], as_index=False)
        .agg(
            intruders_left=("intruders_left", _whole_sum),
            intruders_right=("intruders_right", _whole_sum),
            intruder_energy_left=("intruder_energy_left", "mean"),
            intruder_energy_right=("intruder_energy_right", "mean"),
            sigma1_ratio=("sigma1_ratio", "max"),
            matrices=("module", "size"),
        )
    )


def _whole_sums(rows: pd.DataFrame, keys: list[str], columns: list[str]) -> pd.DataFrame:
    """Return the sums of groups; NaN where a term is undefined, for what is left would not be the whole."""
    groups = rows.groupby(keys)[columns]
    return groups.sum().where(groups.count().eq(groups.size(), axis=0)).reset_index()


def _whole_sum(counts: pd.Series) -> float:
    return counts.sum(skipna=False)


def intruder_shares(grid: pd.DataFrame) -> pd.DataFrame:
    """Return a row an arm, threshold and k: `count`, `share`, `share_random`, over matrices of the blocks.

    `count` is that of one model, both sides together, mean over the arm's seeds; `share` is how many of the
    vectors examined are intruders, `share_random` how many of as many random directions would be. Vectors
    that are not defined are not examined.
    """
    keys = ["arm", "threshold", "k"]
    rows = with_arms(of_blocks(tuned_rows(grid))).dropna(subset=["count"])
    rows["examined"] = rows["k"]
    sums = rows.groupby(keys, as_index=False, sort=False).agg(
        count=("count", "sum"),
        count_random=("count_random", "sum"),
        examined=("examined", "sum"),
        runs=("run", "nunique"),
    )
    sums["share"] = sums["count"] / sums["examined"]
    sums["share_random"] = sums["count_random"] / sums["examined"]
    sums["count"] = sums["count"] / sums["runs"]
    return sums.drop(columns=["count_random", "examined", "runs"])


def whole_gradients(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of `task_gradients` or `gradient_noise` over all tuned weights together."""
    return table[(table["level"] == "global") & (table["space"] == "weight")]


def last_pairs(vectors: pd.DataFrame) -> pd.DataFrame:
    """Return one row a pair of runs of `task_vectors`: last checkpoints, all matrices, with both `arm`s."""
    rows = with_arms(vectors[(vectors["pairing"] == "last") & (vectors["level"] == "global")])
    others = zip(rows["other_run"], rows["other_seed"], strict=True)
    return rows.assign(other_arm=[arm_of(run, seed) for run, seed in others])


def of_contrast(contrasts: pd.DataFrame) -> pd.DataFrame:
    """Return last checkpoints' rows of `seed_means` or `seed_contrasts`: what arms are compared on."""
    last = contrasts[contrasts["checkpoint"] == "last"]
    wanted = compared_metrics(last)
    named = pd.Series(list(zip(last["task"], last["metric"], strict=True)), last.index)
    return last[named.isin(wanted)]


def edit_outcomes(variants: pd.DataFrame) -> pd.DataFrame:
    """Return a row an edited last checkpoint and task: changes of `nll` and of `score`, each `_low`, `_high`.

    Of `variant_scores`: `nll` is general text's, nats a token, `score` the task's leading metric; changes are
    variant - step, NaN where not scored, NaN ends where there is no interval. An edit that was scored on no
    task has one row. Arms of the same EDIT_SETTINGS belong together.
    """
    edits = last_checkpoints(variants[variants["kind"] == "intervention"])
    keys = ["run", "variant", "arm", *EDIT_SETTINGS, "vectors", "relative_edit_norm", "relative_update_norm"]
    ends = ["difference", "difference_low", "difference_high"]
    nll = scores_of(edits, GENERAL_TEXT, "nll")[["run", "variant", *ends]]
    nll = nll.set_axis(["run", "variant", "nll", "nll_low", "nll_high"], axis=1)
    leading = [scores_of(edits, *named) for named in leading_metrics(edits)]
    scores = pd.concat(leading or [edits.head(0)])
    scores = scores[["run", "variant", "task", "metric", "role", "higher_is_better", *ends]]
    names = dict(zip(ends, ("score", "score_low", "score_high"), strict=True))
    made = edits[keys].drop_duplicates(["run", "variant"])
    for measured in (scores.rename(columns=names), nll):
        made = made.merge(measured, on=["run", "variant"], how="left")
    return made.dropna(subset=["score", "nll"], how="all")


def line_scores(variants: pd.DataFrame) -> pd.DataFrame:
    """Return the interpolated last checkpoints of `variant_scores` with `low`, `high`; t = 1 is added.

    The ends are those of the difference from the step itself, which has none.
    """
    rows = last_checkpoints(variants[variants["kind"] == "interpolation"])
    rows = rows[rows["at"] != 1]
    rows = rows.assign(low=rows["trained_value"] + rows["difference_low"])
    rows["high"] = rows["trained_value"] + rows["difference_high"]
    step = rows.drop_duplicates(["run", "task", "metric"]).assign(at=1.0)
    step = step.assign(value=step["trained_value"], low=step["trained_value"], high=step["trained_value"])
    return pd.concat([rows, step], ignore_index=True)


def rank_shares(spectra: pd.DataFrame) -> pd.DataFrame:
    """Return the trained rows with the update's entropy rank as a share of its null and of its bound.

    `null_share` = entropy rank / what Gaussian noise of that shape (or Gaussian BA of that rank) gives;
    `bound_share` = entropy rank / min(rows, columns, r) of what changed, where r limits the update
    (`bounded`): that of a product BA, whose null is one too; not DoRA's, whose lengths make it dense, nor
    that of PiSSA. Matrices that were not changed, those an adapter leaves out above all, have no rank to
    speak of and are left out.
    """
    rows = changed_rows(spectra).copy()
    bound = rows[["update_rows", "update_columns"]].min(axis=1)
    rows["bounded"] = (rows["rank"] > 0) & (rows["update_entropy_rank_null"] <= rows["rank"])
    bound = bound.where(~rows["bounded"], np.minimum(bound, rows["rank"]))
    rows["null_share"] = rows["update_entropy_rank"] / rows["update_entropy_rank_null"]
    rows["bound_share"] = rows["update_entropy_rank"] / bound
    return rows


def gradient_statistics(gradients: pd.DataFrame, level: str) -> pd.DataFrame:
    """Return a row a (run, step, layer, group): `numel`, `l2_norm`, `rms`, `mean_abs`, `zero_fraction`.

    Rows of LoRA's factors A and B are combined (squares of norms add; means are weighted by `numel`),
    unless the table already holds their sum, marked by an empty factor.
    """
    keys = [*RUN_KEYS, "step", "layer", "group"]
    rows = gradients[gradients["level"] == level]
    whole = rows.assign(whole=rows["factor"] == "").groupby(keys)["whole"].transform("any")
    rows = rows[(rows["factor"] == "") | ~whole]
    weighted = rows.assign(
        square=rows["l2_norm"] ** 2,
        mean_abs=rows["mean_abs"] * rows["numel"],
        zero_fraction=rows["zero_fraction"] * rows["numel"],
    )
    sums = _whole_sums(weighted, keys, ["numel", "square", "mean_abs", "zero_fraction"])
    sums["l2_norm"] = np.sqrt(sums["square"])
    sums["rms"] = np.sqrt(sums["square"] / sums["numel"])
    for column in ("mean_abs", "zero_fraction"):
        sums[column] = sums[column] / sums["numel"]
    return sums.drop(columns="square")


def timed_steps(training: pd.DataFrame) -> pd.DataFrame:
    """Return the logged steps whose seconds are known, with a column for every part of them."""
    parts = [f"seconds_{part}" for part in (*PARTS_OF_STEPS, *BESIDE_STEPS)]
    named = ["seconds", "tokens_per_second", "padding", "teraflops", "mfu", *parts]
    steps = training[training["split"] == "train"].reindex(columns=[*RUN_KEYS, *named])
    return steps[steps["seconds"].notna()]


def times_of_runs(training: pd.DataFrame) -> pd.DataFrame:
    """Return where the time of every run's logged steps went.

    Returns
    -------
    pandas.DataFrame
        A row a run: medians over steps of `seconds`, `tokens_per_second`, `padding`, `teraflops` and `mfu`;
        `share_PART`, the parts' shares of all steps' seconds; `steps`; `beside`, the seconds of probes,
        evaluations and saves together.

    """
    steps = timed_steps(training)
    by_run = steps.groupby("run", sort=False)
    medians = by_run[["seconds", "tokens_per_second", "padding", "teraflops", "mfu"]].median()
    whole = by_run["seconds"].sum()
    shares = {f"share_{part}": by_run[f"seconds_{part}"].sum() / whole for part in PARTS_OF_STEPS}
    beside = by_run[[f"seconds_{part}" for part in BESIDE_STEPS]].sum().sum(axis=1)
    found = medians.assign(steps=by_run.size(), beside=beside, **shares).reset_index()
    return steps[RUN_KEYS].drop_duplicates("run").merge(found, on="run")


def noise_scales(noise: pd.DataFrame) -> pd.DataFrame:
    """Return ``noise_scale`` of the whole gradient, targets, a row a run and probed step of `live_noise`.

    A ratio of means over the steps up to there: S of one step over |G|² of one step says little.
    """
    whole = noise[noise["level"] == "global"].dropna(subset=["noise_trace"]).sort_values(["run", "step"])
    trace, square = (whole.groupby("run")[key].cumsum() for key in ("noise_trace", "gradient_square"))
    return whole.assign(noise_scale=trace / square.where(square > 0))


def running_agreement(conflict: pd.DataFrame, level: str = "global") -> pd.DataFrame:
    """Return ``cosine`` of two tasks' gradients without their noise, of `live_conflict`, a row a step.

    A ratio of means over the steps up to there; NaN while noise exceeds a gradient.
    """
    pair = ["run", "task", "other_task", "layer", "group"]
    columns = ["inner_product", "square", "other_square"]
    rows = conflict[conflict["level"] == level].dropna(subset=columns)
    rows = rows.groupby([*pair, "step"], sort=False)[columns].sum().reset_index().sort_values([*pair, "step"])
    sums = rows.groupby(pair)[columns].cumsum()
    positive = (sums["square"] > 0) & (sums["other_square"] > 0)
    size = np.sqrt((sums["square"] * sums["other_square"]).where(positive))
    return rows.assign(cosine=sums["inner_product"] / size)
