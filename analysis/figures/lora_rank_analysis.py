"""What was learnt and forgotten by the rank of LoRA, beside full fine-tuning and the base model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.ticker import NullLocator

from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._style import FULL_COLOURS, GREY, OTHER_COLOURS, panels, reference, task_title
from rankdrift.analysis.sources.observations import (
    base_score,
    forgetting,
    last_checkpoints,
    leading_metrics,
    scores_of,
)

COSTS = {
    "nll_increase": ("general text", "NLL increase (nats / token)", None),
    "kl_from_base": ("general text", "KL(base ‖ tuned) (nats / token)", "kl_stderr"),
    "prompt_kl": ("tasks' prompts", "KL(base ‖ tuned) (nats / token)", "prompt_kl_stderr"),
    "retention_drop": ("retention tasks", "drop of mean accuracy", "retention_stderr"),
}
"""Cost -> title, label, column of its standard error."""
COLOUR = OTHER_COLOURS[0]


@dataclass(frozen=True)
class Panel:
    """One measure of last checkpoints."""

    title: str
    label: str
    rows: pd.DataFrame
    """``method``, ``rank``, ``value``, ``stderr`` of every run."""
    base: tuple[float, float] | None
    """The base model's value and standard error."""


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    performance = tables["performance_metrics"]
    shown = [*_learnt(performance), *_forgotten(performance)]
    found = {rank for panel in shown for rank in _with_rank(panel.rows)["rank"]}
    if len(found) < 2:
        known = f"one rank of LoRA alone, {found.pop()}" if found else "no run with a rank"
        raise NothingToDraw(f"last checkpoints of {known} were scored; it takes two ranks to compare")
    canvas, axes = panels(len(shown), height=2.9)
    for ax, panel in zip(axes, shown, strict=True):
        _draw_panel(ax, panel)
        _name_ranks(ax, sorted(found))
    several = any((panel.rows["rank"] == 0).any() for panel in shown)
    full = [reference("full fine-tuning", linestyle="-", color=FULL_COLOURS[0])] if several else []
    lora = reference("LoRA: a run; mean", linestyle="-", marker="o", color=COLOUR)
    canvas.legend(handles=[lora, *full, reference("base model")], loc="outside upper center", ncols=3)
    return canvas


def _learnt(performance: pd.DataFrame) -> list[Panel]:
    return [
        Panel(
            task_title(task),
            metric,
            last_checkpoints(scores_of(performance, task, metric)).dropna(subset=["value"]),
            base_score(performance, task, metric),
        )
        for task, metric in leading_metrics(performance)
    ]


def _forgotten(performance: pd.DataFrame) -> list[Panel]:
    """Return the costs that were measured; the base model's are 0 by their definition."""
    costs, found = last_checkpoints(forgetting(performance)), []
    for cost, (title, label, error) in COSTS.items():
        stderr = costs[error] if error else np.nan
        rows = costs.assign(value=costs[cost], stderr=stderr).dropna(subset=["value"])
        if not rows.empty:
            found.append(Panel(title, label, rows, (0.0, 0.0)))
    return found


def _with_rank(rows: pd.DataFrame) -> pd.DataFrame:
    return rows[rows["rank"] > 0]


def _draw_panel(ax: Axes, panel: Panel) -> None:
    lora, full = _with_rank(panel.rows), panel.rows[panel.rows["rank"] == 0]
    for colour, line, level in ((FULL_COLOURS[0], "-", _level(full)), (GREY, "--", panel.base)):
        if level is not None:
            value, half = level
            ax.axhline(value, color=colour, linestyle=line, linewidth=1.2)
            ax.axhspan(value - half, value + half, color=colour, alpha=0.12, linewidth=0)
    means = lora.groupby("rank")["value"].mean()
    ax.errorbar(lora["rank"], lora["value"], yerr=lora["stderr"], fmt="none", color=COLOUR, linewidth=0.7)
    ax.plot(lora["rank"], lora["value"], linestyle="", marker="o", color=COLOUR, alpha=0.6)
    ax.plot(means.index, means.to_numpy(), color=COLOUR)
    ax.set_title(panel.title)
    ax.set_ylabel(panel.label)


def _level(full: pd.DataFrame) -> tuple[float, float] | None:
    """Return the mean over runs, and their standard deviation, of a single run its standard error."""
    if full.empty:
        return None
    spread = full["value"].std(ddof=1) if len(full) > 1 else full["stderr"].iloc[0]
    return float(full["value"].mean()), float(np.nan_to_num(spread))


def _name_ranks(ax: Axes, ranks: list[int]) -> None:
    """Let the axis double from tick to tick, named by the ranks there are; of many, every second one."""
    ax.set_xscale("log", base=2)
    ax.xaxis.set_minor_locator(NullLocator())
    named = ranks[:: 1 + len(ranks) // 7]
    ax.set_xticks(named, [str(rank) for rank in named])
    ax.set_xlim(ranks[0] / 2**0.5, ranks[-1] * 2**0.5)
    ax.set_xlabel("LoRA rank")


FIGURE = Figure(
    name="lora_rank_analysis",
    title="LoRA rank analysis",
    section="Learning",
    tables=("performance_metrics",),
    caption=(
        "Last checkpoints by the rank of LoRA: the first metric of each task trained on, then what was "
        "forgotten. A point is a run with one standard error over items; the line joins the means over all "
        "runs of a rank, whatever else they differ in. Solid: the mean of full fine-tuning, its band one "
        "standard deviation over its runs, of a single run one standard error over items. Dashed: the base "
        "model, by definition 0 where something is lost. The best learning rate may differ from rank to "
        "rank: where all were trained with one, a slope is not the rank's alone."
    ),
    draw=_draw,
)
