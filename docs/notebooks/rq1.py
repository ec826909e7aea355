# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
#   rankdrift:
#     tables: [svd_analysis_results, drift_metrics]
# ---

# %% [markdown]
# # RQ1: what do full fine-tuning and LoRA do to the weights and to the representations?
#
# Everything is read from the study's tables with pandas; `columns.csv` of `rankdrift export STUDY --csv` says
# what each column means. Figures are written as PDF, tables as LaTeX, below `OUTPUT`.

# %% tags=["parameters"]
STUDY = "outputs/demo"
OUTPUT = "outputs/demo/notebooks/rq1"

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd

tables, output = Path(STUDY) / "tables", Path(OUTPUT)
output.mkdir(parents=True, exist_ok=True)
spectra = pd.read_parquet(tables / "svd_analysis_results.parquet")
drift = pd.read_parquet(tables / "drift_metrics.parquet")


def arm_of(table):
    """An arm is a run's folder without the seed."""
    return [run.removesuffix(f"-seed{seed}") for run, seed in zip(table["run"], table["seed"])]


def last(table):
    """Rows of trained runs, each at its own last step, with the arm."""
    tuned = table[table["run"] != "base"]
    tuned = tuned[tuned["step"] == tuned.groupby("run")["step"].transform("max")]
    return tuned.assign(arm=arm_of(tuned))


def mean_and_spread(values):
    """Mean over seeds, and their standard deviation where there are several."""
    return f"{values.mean():.4g}" + (f" ± {values.std():.2g}" if len(values) > 1 else "")


def save(figure, name):
    figure.savefig(output / f"{name}.pdf", bbox_inches="tight")


matrices = last(spectra[spectra["layer"] >= 0])
matrices = matrices[matrices["update_norm"] > 0]
arms = list(dict.fromkeys(matrices.sort_values(["method", "rank"])["arm"]))
colours = {arm: f"C{number}" for number, arm in enumerate(arms)}
seeds = matrices.groupby("arm")["seed"].nunique()
print(f"{len(arms)} arms ({', '.join(arms)}), {seeds.min()} to {seeds.max()} seeds each")

# %% [markdown]
# ## Size and rank of the update
#
# The rank of an update says little without the rank that noise of the same shape has (for LoRA: a product of
# two Gaussian factors of the same r). A share of 1 is noise's.

# %%
share = matrices["update_entropy_rank"] / matrices["update_entropy_rank_null"]
modules = list(dict.fromkeys(matrices["module"]))
figure, axes = plt.subplots(1, 2, figsize=(9, 3.2), layout="constrained")
for axis, values, label in (
    (axes[0], matrices["relative_update_norm"], r"$\|\Delta W\|_F\;/\;\|W_0\|_F$"),
    (axes[1], share, "entropy rank over that of noise"),
):
    by_module = matrices.assign(value=values).groupby(["arm", "module"])["value"].median().unstack()
    for number, arm in enumerate(arms):
        places = np.arange(len(modules)) + 0.8 * (number + 0.5) / len(arms) - 0.4
        axis.bar(places, by_module.loc[arm].reindex(modules), 0.8 / len(arms), label=arm, color=colours[arm])
    axis.set_xticks(range(len(modules)), modules, rotation=45, ha="right")
    axis.set_ylabel(label)
axes[1].axhline(1, color="grey", linestyle="--", linewidth=1)
axes[0].legend(frameon=False, fontsize=8)
save(figure, "update_by_module")

# %% [markdown]
# ## Where in the network
#
# Medians over a layer's matrices.

# %%
figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
by_layer = matrices.groupby(["arm", "layer"])["relative_update_norm"].median().unstack("arm")
for arm in arms:
    axis.plot(by_layer.index, by_layer[arm], marker="o", markersize=3, label=arm, color=colours[arm])
axis.set_xlabel("layer")
axis.set_ylabel(r"$\|\Delta W\|_F\;/\;\|W_0\|_F$, median")
axis.set_ylim(bottom=0)
axis.legend(frameon=False, fontsize=8)
save(figure, "update_by_layer")

# %% [markdown]
# ## Representations
#
# Debiased linear CKA of hidden states with the base model's on the same inputs, mean-pooled; 1 is no change
# but for rotation and scale. Bands are jackknife standard errors over inputs, of each arm's first seed.

# %%
states = last(drift[(drift["representation"] == "mean") & (drift["features"] == "all")])
figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
for arm in arms:
    rows = states[states["arm"] == arm]
    rows = rows[rows["seed"] == rows["seed"].min()].sort_values("layer")
    axis.plot(rows["layer"], 1 - rows["cka"], label=arm, color=colours[arm])
    low, high = 1 - rows["cka"] - rows["cka_stderr"], 1 - rows["cka"] + rows["cka_stderr"]
    axis.fill_between(rows["layer"], low, high, color=colours[arm], alpha=0.2, linewidth=0)
axis.set_xlabel("state (0: embeddings)")
axis.set_ylabel("1 - CKA with the base model")
axis.legend(frameon=False, fontsize=8)
save(figure, "drift_by_state")

# %% [markdown]
# ## The table
#
# One number a run, then mean ± standard deviation over seeds. With one seed there is no spread, and a
# difference between arms holds a variation from seed to seed of unknown size.

# %%
every = last(spectra)  # embeddings and head as well
norms = every.groupby(["arm", "run"])[["update_norm", "base_norm"]].agg(lambda v: np.sqrt((v**2).sum()))
last_state = states[states["layer"] == states.groupby("run")["layer"].transform("max")]
runs = pd.DataFrame(
    {
        "size of the update": norms["update_norm"] / norms["base_norm"],
        "entropy rank": matrices.groupby(["arm", "run"])["update_entropy_rank"].median(),
        "share of noise's": matrices.assign(share=share).groupby(["arm", "run"])["share"].median(),
        "intruders, left": matrices.groupby(["arm", "run"])["intruders_left"].sum(),
        "intruders, right": matrices.groupby(["arm", "run"])["intruders_right"].sum(),
        "1 - CKA, last state": 1 - last_state.set_index(["arm", "run"])["cka"],
    }
)
summary = runs.groupby("arm").agg(mean_and_spread).reindex(arms)
summary.insert(0, "seeds", seeds)
(output / "summary.tex").write_text(
    summary.reset_index().to_latex(index=False, escape=True).replace("±", r"$\pm$"), encoding="utf-8"
)
runs.to_csv(output / "runs.csv")
summary
