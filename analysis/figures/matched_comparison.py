"""Forgetting of two arms where both have learnt, or moved, equally far."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D

from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._style import GREY, MARKERS, OTHER_COLOURS, few, few_ticks, panels, put_legend
from rankdrift.analysis.sources.observations import rows_of

MATCHED = {
    "task_loss": "validation loss (nats / target token)",
    "relative_update_norm": r"$\|\Delta W\| / \|W_0\|$, all matrices",
}
MOST = 12
"""Pairs above which those of the first arm alone are drawn, and no more of them."""
Pair = tuple[str, str]


def _draw(tables: Mapping[str, pd.DataFrame]) -> Canvas:
    table = tables["matched_comparison"]
    means = table.dropna(subset=["difference"])
    if means.empty:
        raise NothingToDraw(f"no two arms could be matched: {table['reason'].iloc[0]}")
    seeds = tables.get("matched_seeds", pd.DataFrame(columns=["arm", "other_arm", "matched"]))
    pairs = _drawn(list(dict.fromkeys(zip(means["arm"], means["other_arm"], strict=True))))
    shown = [matched for matched in MATCHED if (means["matched"] == matched).any()]
    canvas, axes = panels(len(shown), columns=2, height=3.3)
    for ax, matched in zip(axes, shown, strict=True):
        for number, pair in enumerate(pairs):
            _draw_pair(ax, _of(means, matched, pair), _of(seeds, matched, pair), _style(number))
        ax.axhline(0, color=GREY, linestyle="--", linewidth=1.2)
        ax.set_title(f"at equal {'loss' if matched == 'task_loss' else 'size of the update'}")
        ax.set_xlabel(MATCHED[matched])
        few_ticks(ax)
        if matched == "task_loss":
            ax.invert_xaxis()  # further trained is to the right in both
    axes[0].set_ylabel("first - second:\nNLL increase (nats / token)")
    handles = [Line2D([], [], label=f"{one} - {other}", **_style(n)) for n, (one, other) in enumerate(pairs)]
    put_legend(canvas, handles)
    return canvas


def _drawn(pairs: list[Pair]) -> list[Pair]:
    """Return all pairs, or of many those of the first arm, evenly spaced: the table has the others."""
    return pairs if len(pairs) <= MOST else few([pair for pair in pairs if pairs[0][0] in pair], MOST)


def _style(number: int) -> dict[str, Any]:
    colour = OTHER_COLOURS[number % len(OTHER_COLOURS)]
    return {"color": colour, "marker": MARKERS[number % len(MARKERS)]}


def _of(table: pd.DataFrame, matched: str, pair: Pair) -> pd.DataFrame:
    one, other = pair
    return table[(table["matched"] == matched) & (table["arm"] == one) & (table["other_arm"] == other)]


def _draw_pair(ax: Axes, means: pd.DataFrame, seeds: pd.DataFrame, style: dict[str, Any]) -> None:
    """Draw means over seeds with their intervals, and behind them the seeds."""
    rows = means.sort_values("level")
    ax.plot(rows["level"], rows["difference"], **style)
    for row in rows_of(rows.dropna(subset=["low", "high"])):
        ax.plot([row.level] * 2, [row.low, row.high], color=style["color"], linewidth=1.0)
    if len(seeds):
        ax.scatter(seeds["level"], seeds["difference"], s=16, color=style["color"], alpha=0.45, linewidths=0)


FIGURE = Figure(
    name="matched_comparison",
    title="Forgetting at equal learning and at equal update",
    section="Forgetting",
    tables=("matched_comparison",),
    caption=(
        "Difference in forgetting of two arms, first minus second, where the runs of both have the same "
        "validation loss, or an update of the same relative size; runs are interpolated between their "
        "checkpoints, never beyond. Above zero the second arm forgets less. Lines: mean over seeds; "
        "vertical: 95 % t intervals of the differences paired by seed; small dots: the seeds. Without a "
        "vertical there is no interval (one seed), and a difference that may be the seed's alone. Of more "
        "than twelve pairs those of the first arm are drawn, twelve at most, evenly spaced. Neighbouring "
        "levels come from the same runs: they are not independent evidence."
    ),
    draw=_draw,
)
