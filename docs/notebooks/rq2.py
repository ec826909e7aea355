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
#     tables: [deployment_benchmark_summary]
# ---

# %% [markdown]
# # RQ2: what does it cost to deploy?
#
# Read from the table that `rankdrift deploy STUDY` measures: base, full models, adapters merged into the
# base, adapters beside it, and several adapters in one batch. Figures are written as PDF, tables as LaTeX,
# below `OUTPUT`.

# %% tags=["parameters"]
STUDY = "outputs/demo"
OUTPUT = "outputs/demo/notebooks/rq2"

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

tables, output = Path(STUDY) / "tables", Path(OUTPUT)
output.mkdir(parents=True, exist_ok=True)
costs = pd.read_parquet(tables / "deployment_benchmark_summary.parquet")
costs["served"] = costs["arm"].where(costs["arm"] == costs["way"], costs["arm"] + ", " + costs["way"])
order = ["base", "full", "merged", "unmerged", "mixed"]
costs["place"] = costs["way"].map(lambda way: order.index(way) if way in order else len(order))
costs = costs.sort_values(["place", "arm"], kind="stable")
served = list(dict.fromkeys(costs["served"]))
colours = {name: f"C{number}" for number, name in enumerate(served)}
print("measured on:", ", ".join(costs["engine"].unique()))


def save(figure, name):
    figure.savefig(output / f"{name}.pdf", bbox_inches="tight")


def with_interval(value, low, high, digits=3):
    """A value and its 95 % interval; where there is none, none is shown."""
    ends = f" [{low:.{digits}g}, {high:.{digits}g}]" if low == low else ""
    return f"{value:.{digits}g}{ends}" if value == value else "--"


# %% [markdown]
# ## Latency
#
# Medians with 95 % intervals (whole rounds resampled, since requests of one round are alike).

# %%
requests = costs[costs["batch"] > 0]
for quantity, label in (("first_token", "to the first token"), ("further_token", "a further token")):
    rows = requests[requests["quantity"] == quantity]
    if rows.empty:
        continue
    asked = sorted(set(zip(rows["batch"], rows["prompt_tokens"])))
    figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
    for number, name in enumerate(served):
        own = rows[rows["served"] == name].set_index(["batch", "prompt_tokens"]).reindex(asked)
        places = [place + 0.8 * (number + 0.5) / len(served) - 0.4 for place in range(len(asked))]
        error = [1000 * (own["p50"] - own["low"]), 1000 * (own["high"] - own["p50"])]
        axis.bar(places, 1000 * own["p50"], 0.8 / len(served), label=name, color=colours[name])
        axis.errorbar(places, 1000 * own["p50"], yerr=error, fmt="none", color="black", linewidth=0.8)
    axis.set_xticks(range(len(asked)), [f"batch {batch}\n{prompt} tokens" for batch, prompt in asked])
    axis.set_ylabel(f"milliseconds {label}")
    axis.legend(frameon=False, fontsize=8)
    save(figure, quantity)

# %% [markdown]
# ## What an adapter costs that is not merged
#
# Ratios to the merged model, which is what a full model of the same shape costs, beside what operations and
# bytes alone would make of it. Where the measured ratio is far above both, it is the number of small products
# that costs, not their size.

# %%
ratios = requests[requests["quantity"].isin(["first_token", "further_token"]) & requests["ratio"].notna()]
ratios = ratios[ratios["way"].isin(["unmerged", "mixed"])]
ratio_table = pd.DataFrame(
    {
        "served": ratios["served"],
        "quantity": ratios["quantity"].str.replace("_", " "),
        "batch": ratios["batch"],
        "prompt tokens": ratios["prompt_tokens"],
        "ratio to merged": [
            with_interval(*values)
            for values in zip(ratios["ratio"], ratios["ratio_low"], ratios["ratio_high"])
        ],
        "by operations": ratios["flops_ratio"].map("{:.3f}".format),
        "by bytes": ratios["bytes_ratio"].map("{:.3f}".format),
    }
)
(output / "ratios.tex").write_text(ratio_table.to_latex(index=False, escape=True), encoding="utf-8")
ratio_table

# %% [markdown]
# ## Loading, switching, memory, disk

# %%
UNITS = {"s": (1, "s"), "bytes": (2**20, "MiB")}
once = costs[(costs["batch"] == 0) & costs["unit"].isin(list(UNITS))]
rows = []
for row in once.itertuples():
    scale, unit = UNITS[row.unit]
    ends = (row.low / scale, row.high / scale)
    rows.append(
        (row.served, f"{row.quantity.replace('_', ' ')}, {unit}", with_interval(row.p50 / scale, *ends))
    )
once_table = pd.DataFrame(rows, columns=["served", "quantity", "value"])
once_table = once_table.pivot_table(index="quantity", columns="served", values="value", aggfunc="first")
once_table = once_table.reindex(columns=[name for name in served if name in once_table]).fillna("--")
(output / "once.tex").write_text(
    once_table.reset_index().to_latex(index=False, escape=True), encoding="utf-8"
)
once_table
