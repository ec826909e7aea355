"""What all figures share: type and colours, one style a run in every figure, panels, legend.

Colours are from the palettes of Okabe & Ito (2008) and of Paul Tol (2021), which stay apart for
colour-blind readers: warm for full fine-tuning, cool for LoRA; seeds of one arm share its colour and differ
in line and marker.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LogNorm, Normalize
from matplotlib.figure import Figure as Canvas
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from rankdrift.analysis.sources.observations import (
    GENERAL_TEXT,
    RETENTION,
    RUN_KEYS,
    TRAINED_TASKS,
    arm_of,
    rows_of,
    tuned_rows,
)

STYLE: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.size": 9.5,
    "axes.titlesize": 10,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "axes.edgecolor": "#555555",
    "axes.linewidth": 0.8,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.color": "#333333",
    "ytick.color": "#333333",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.6,
    "lines.markersize": 4.5,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "pdf.fonttype": 42,  # TrueType: text stays text
}
WIDTH = 9.5
"""Inches."""
T = TypeVar("T")
GREY = "#6b6b6b"
FULL_COLOURS = ("#D55E00", "#E69F00", "#882255", "#AA4499")
OTHER_COLOURS = (
    *("#0072B2", "#56B4E9", "#009E73", "#CC79A7", "#332288", "#999933", "#44AA99", "#117733"),
    *("#DDCC77", "#661100", "#6699CC", "#AA3377"),
)
LINES: tuple[Any, ...] = ("-", "--", ":", "-.", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P")
WIDE = 30.0
"""Times the lower quartile from which on a largest value makes its axis logarithmic."""
MOST_ARMS = 16
"""Arms above which colours, and the legend, tell kinds of them apart: method and rank."""
LEGEND_LINE, LEGEND_LINES = 0.19, 3
"""Inches of a line of the legend, and how many lines take their room from the panels."""
MOST_PANELS = 12
"""Runs above which not each has a panel of its own."""
FEW = (
    " Of more than twelve runs the first seed of every arm is drawn, and of more than twelve arms twelve, "
    "evenly spaced in the order of the report; the table has all."
)
"""What the caption of a figure with a panel a run ends with."""
MOST_MARKED = 32
"""Points on a line above which markers would hide it."""


@dataclass(frozen=True)
class RunStyle:
    """How one run looks in every figure."""

    label: str
    colour: str
    line: Any
    marker: str
    family: str
    """What the legend names where it does not name every run: the arm, or of many arms their kind."""
    seed: int

    def of_line(self, points: int) -> dict[str, Any]:
        """Return the keywords of ``Axes.plot`` for a line of so many points."""
        marker = self.marker if points <= MOST_MARKED else ""
        return {"color": self.colour, "linestyle": self.line, "marker": marker}


def run_styles(tables: Mapping[str, pd.DataFrame]) -> dict[str, RunStyle]:
    """Return the style of every trained run that any table names: full before LoRA, by rank, by seed."""
    known = [
        table[RUN_KEYS].drop_duplicates("run") for table in tables.values() if set(RUN_KEYS) <= set(table)
    ]
    runs = tuned_rows(pd.concat(known)).drop_duplicates("run")
    arms = [arm_of(run, seed) for run, seed in zip(runs["run"], runs["seed"], strict=True)]
    runs = runs.assign(arm=arms, late=runs["method"] != "full").sort_values(["late", "rank", "arm", "seed"])
    seeded = bool((runs.groupby("arm").size() > 1).any())
    runs["family"] = runs["arm"] if runs["arm"].nunique() <= MOST_ARMS else _kinds(runs)
    places = _places(runs)
    order = {seed: place for place, seed in enumerate(sorted(runs["seed"].unique()))}
    return {
        row.run: _style(row, row.run if seeded else row.arm, places[row.family], order[row.seed])
        for row in rows_of(runs)
    }


def _kinds(runs: pd.DataFrame) -> pd.Series:
    """Return what kind of arm each run is of, by method and rank, with how many arms are of it."""
    kinds = runs["method"] + runs["rank"].map(lambda rank: f" r={rank}" if rank else "")
    if kinds.nunique() > MOST_ARMS:
        kinds = runs["method"]
    count = runs.groupby(kinds)["arm"].nunique()
    return kinds.map(lambda kind: f"{kind} ({count[kind]} arm{'s' if count[kind] > 1 else ''})")


def _places(runs: pd.DataFrame) -> dict[str, int]:
    """Return the place of every arm, or kind of arms, within its family of colours."""
    halves = [runs[~runs["late"]], runs[runs["late"]]]
    return {name: place for half in halves for place, name in enumerate(half["family"].unique())}


def _style(run: Any, label: str, place: int, order: int) -> RunStyle:
    colours = FULL_COLOURS if run.method == "full" else OTHER_COLOURS
    marker = MARKERS[(order + place // len(colours)) % len(MARKERS)]
    colour = colours[place % len(colours)]
    return RunStyle(label, colour, LINES[order % len(LINES)], marker, run.family, int(run.seed))


def few(names: Sequence[T], most: int = MOST_PANELS) -> list[T]:
    """Return all names, or of more than ``most`` as many, evenly spaced, the first and the last among them.

    >>> few(["a", "b", "c", "d", "e"], 3)
    ['a', 'c', 'e']
    """
    places = (
        range(len(names)) if len(names) <= most else np.linspace(0, len(names) - 1, most).round().astype(int)
    )
    return [names[place] for place in places]


def with_panels(runs: Iterable[Hashable], styles: Mapping[str, RunStyle]) -> list[str]:
    """Return the runs that get a panel each, in order: all, or of more than MOST_PANELS what ``FEW`` says."""
    found = in_order(runs, styles)
    if len(found) > MOST_PANELS:
        first: dict[str, str] = {}
        for run in found:
            first.setdefault(arm_of(run, styles[run].seed), run)
        found = few(list(first.values()))
    return found


def in_order(runs: Iterable[Hashable], styles: Mapping[str, RunStyle]) -> list[str]:
    """Return the given runs in the order of the styles."""
    given = set(runs)
    return [run for run in styles if run in given]


def arms_in_order(table: pd.DataFrame, styles: Mapping[str, RunStyle]) -> list[str]:
    """Return the arms of a table with the columns ``run`` and ``arm`` in the order of the styles."""
    arms = dict(zip(table["run"], table["arm"], strict=True))
    return list(dict.fromkeys(arms[run] for run in in_order(arms, styles)))


def columns_for(count: int) -> int:
    """Return how many panels stand side by side when there are so many."""
    if count <= 3:
        return max(count, 1)
    return {4: 2, 5: 3, 6: 3, 9: 3}.get(count, 4)


def panels(
    count: int, columns: int | None = None, height: float = 2.7, share_y: bool | Literal["row"] = False
) -> tuple[Canvas, list[Axes]]:
    """Return a canvas of WIDTH inches and its first ``count`` panels, each ``height`` inches high."""
    columns = columns or columns_for(count)
    rows = math.ceil(count / columns)
    canvas = Canvas(figsize=(WIDTH, rows * height + 0.4), layout="constrained")
    axes = list(canvas.subplots(rows, columns, squeeze=False, sharey=share_y).ravel())
    for spare in axes[count:]:
        spare.remove()
    return canvas, axes[:count]


def draw_runs(axes: Axes, table: pd.DataFrame, x: str, y: str, styles: Mapping[str, RunStyle]) -> None:
    """Draw one line a run, ``y`` over ``x``; undefined values interrupt it."""
    for run in in_order(table["run"].unique(), styles):
        rows = table[table["run"] == run].sort_values(x)
        axes.plot(rows[x], rows[y], **styles[run].of_line(len(rows)))


def draw_band(
    axes: Axes, table: pd.DataFrame, x: str, low: str, high: str, styles: Mapping[str, RunStyle]
) -> None:
    """Shade ``low`` to ``high`` over ``x`` in each run's colour."""
    for run in in_order(table["run"].unique(), styles):
        rows = table[table["run"] == run].sort_values(x)
        axes.fill_between(rows[x], rows[low], rows[high], color=styles[run].colour, alpha=0.15, linewidth=0)


def draw_errors(
    axes: Axes,
    table: pd.DataFrame,
    x: str,
    y: str,
    stderr: str,
    styles: Mapping[str, RunStyle],
    quantiles: pd.Series | None = None,
) -> None:
    """Add bars of 1.96 standard errors, or of as many as ``quantiles`` says of each row, to runs' points."""
    for run in in_order(table["run"].unique(), styles):
        rows = table[table["run"] == run]
        axes.errorbar(
            rows[x],
            rows[y],
            yerr=(1.96 if quantiles is None else quantiles.loc[rows.index]) * rows[stderr],
            fmt="none",
            color=styles[run].colour,
            linewidth=0.9,
            capsize=1.5,
        )


def legend(canvas: Canvas, runs: Iterable[Hashable], styles: Mapping[str, RunStyle], *extra: Line2D) -> None:
    """Put one legend above the panels: the runs, or arms and seeds if those are fewer; then the rest."""
    drawn = [styles[run] for run in in_order(runs, styles)]
    by_run = [Line2D([], [], label=style.label, **style.of_line(1)) for style in drawn]
    by_part = _arms_and_seeds(drawn)
    put_legend(canvas, [*(by_part if len(by_part) < len(by_run) else by_run), *extra])


def put_legend(canvas: Canvas, handles: Sequence[Any]) -> None:
    """Put a legend above the panels, in as many columns as the longest of its labels leaves room for."""
    longest = max(len(str(handle.get_label())) for handle in handles)
    columns = min(len(handles), 4, max(1, int(WIDTH / (0.6 + 0.068 * longest))))
    lines = math.ceil(len(handles) / columns)
    canvas.set_figheight(canvas.get_figheight() + LEGEND_LINE * max(0, lines - LEGEND_LINES))
    canvas.legend(handles=handles, loc="outside upper center", ncols=columns, handlelength=2.6)


def _arms_and_seeds(drawn: list[RunStyle]) -> list[Line2D]:
    """Return an entry for the colour of every arm, or kind of arms, and for line and marker of every seed."""
    arms = {style.family: style.colour for style in drawn}
    seeds = {style.seed: style for style in reversed(drawn)}
    return [
        *(Line2D([], [], label=arm, color=colour, linewidth=3) for arm, colour in arms.items()),
        *(reference(f"seed {seed}", seeds[seed].line, marker=seeds[seed].marker) for seed in sorted(seeds)),
    ]


def reference(label: str, linestyle: Any = "--", **style: Any) -> Line2D:
    """Return the legend's entry for a grey line of reference."""
    return Line2D([], [], label=label, **{"color": GREY, "linestyle": linestyle, "linewidth": 1.2, **style})


def whole_numbers(axes: Axes, label: str) -> None:
    """Label the x axis, whose ticks are whole numbers (steps, layers)."""
    axes.set_xlabel(label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6, min_n_ticks=1))


def log_if_positive(axes: Axes, values: pd.Series) -> None:
    """Use a logarithmic y axis where every defined value is positive and they span more than a decade."""
    defined = values.dropna()
    if not defined.empty and 0 < 10 * defined.min() < defined.max():
        axes.set_yscale("log")


def symlog_if_wide(set_scale: Callable[..., None], values: pd.Series) -> None:
    """Let a few extreme values, of a run that diverged say, not press all others to one place.

    Where the largest |value| is more than WIDE times the lower quartile of those that are not 0, the axis is
    logarithmic beyond the power of ten nearest to that quartile, and linear below.
    """
    sizes = values.abs()
    sizes = sizes[(sizes > 0) & np.isfinite(sizes)]
    if len(sizes) and sizes.max() > WIDE * sizes.quantile(0.25):
        set_scale("symlog", linthresh=10.0 ** np.round(np.log10(sizes.quantile(0.25))))


def from_zero(axes: Axes, values: pd.Series, least: float = 0.0) -> None:
    """Let the y axis run from zero to a little above the largest value, and at least to ``least``."""
    top = max(float(values.max(skipna=True)), least)
    axes.set_ylim(0, 1.08 * top if top > 0 else 1)


def task_title(task: str) -> str:
    """Return what a panel of a task's scores is called, or of what is scored beside tasks."""
    names = {GENERAL_TEXT: "general text", RETENTION: "retention tasks", TRAINED_TASKS: "trained tasks, mean"}
    return names.get(task, task)


def few_ticks(axes: Axes) -> None:
    """Thin out the x axis of a narrow panel, so that its numbers do not meet."""
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, min_n_ticks=2))


def log_colours(values: np.ndarray, decades: float = 3.0) -> Normalize:
    """Return a colour scale over the positive values: logarithmic, at most so many decades deep.

    Values that span less than a decade get a linear scale from zero.
    """
    values = np.asarray(values, dtype=float)
    positive = values[np.isfinite(values) & (values > 0)]
    top = float(positive.max(initial=0.0))
    low = max(float(positive.min(initial=np.inf)), top * 10.0**-decades)
    if 10 * low < top:
        return LogNorm(low, top)
    return Normalize(0.0, top or 1.0)


def shared_bar(canvas: Canvas, image: Any, axes: list[Axes], label: str) -> None:
    """Put one colour bar beside all panels."""
    rows = len({ax.get_subplotspec().rowspan.start for ax in axes})  # type: ignore[union-attr]
    canvas.colorbar(image, ax=axes, label=label, aspect=16 * rows, pad=0.015)


def heatmap(axes: Axes, grid: pd.DataFrame, norm: Normalize, y_label: str) -> Any:
    """Draw rows x columns as coloured cells with their names as ticks; return the image, for the colour bar.

    Undefined cells, and on a logarithmic scale zero cells, are light grey.
    """
    values = grid.to_numpy(dtype=float)
    shown = np.ma.masked_where(~np.isfinite(values) | (values <= 0), values)
    image = axes.imshow(
        shown, aspect="auto", norm=norm, cmap="viridis", origin="lower", interpolation="nearest"
    )
    axes.set_facecolor("#e0e0e0")
    axes.grid(False)
    axes.set_ylabel(y_label)
    _name_ticks(axes.set_xticks, grid.columns, 12)
    _name_ticks(axes.set_yticks, grid.index, 8)
    return image


def _name_ticks(set_ticks: Any, names: pd.Index, most: int) -> None:
    every = math.ceil(len(names) / most)
    set_ticks(range(0, len(names), every), [str(name) for name in names[::every]])
