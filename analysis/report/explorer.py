"""The explorer: linked views of the study, drawn by Vega-Lite in the page itself, without a network.

Views are Altair charts; one parameter of all of them, ``chosen``, holds the runs that are shown, and
``explorer.js`` sets it from a brush, the table and its filter.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any

import altair as alt
import pandas as pd
import vl_convert

from rankdrift import files
from rankdrift.analysis.figures._style import run_styles
from rankdrift.analysis.report.explorer_data import Data, Quantity, as_columns, explorer_data
from rankdrift.analysis.report.study import Study
from rankdrift.layout import cache_folder

CHOSEN = "(chosen.length == 0 || indexof(chosen, datum.run) >= 0)"
HEIGHT = 300
VIEW, SYMBOL, LETTER, LONGEST_NAME = 480, 26, 7, 40
"""Pixels of a view, of a legend's symbol, of a letter beside it; and the letters of it that are shown."""
AXIS = alt.Axis(format=".4~g")
"""Four digits: of a quantity that all runs share, the one tick that there is says how much it is."""


@dataclass(frozen=True)
class Explorer:
    """What the page needs of it."""

    bundle: str
    """Vega, Vega-Lite and vega-embed."""
    state: str
    """JSON: the views' specifications, the data as columns, the columns of the table."""
    views: tuple[tuple[str, str, str], ...]
    """Of every view its name, title and what it shows."""
    notes: str


def explorer(study: Study) -> Explorer | None:
    """Return the explorer of a study; None where there is no trained checkpoint to show."""
    data = explorer_data(study)
    if data is None or not data.quantities:
        return None
    colours = _colours(study, data)
    specs: dict[str, Any] = {"line": _line(data, colours)}
    if len(data.quantities) > 1:
        specs["plane"] = _plane(data, colours)
    if len(data.matrices):
        specs["heat"] = _heat(data)
    if len(data.spectra):
        specs["spectrum"] = _spectrum(data, colours)
    state = {
        "specs": specs,
        "data": {
            "checkpoints": as_columns(data.checkpoints),
            "matrices": as_columns(data.matrices),
            "spectra": as_columns(data.spectra),
        },
        "columns": [[each.column, each.label, each.better] for each in data.quantities],
    }
    views = tuple((name, *VIEWS[name]) for name in specs)
    text = json.dumps(state, separators=(",", ":")).replace("</", "<\\/")
    return Explorer(_bundle(), text, views, "; ".join(data.notes))


VIEWS = {
    "line": ("A quantity over training", "One line a run. Click an arm in the legend to see it alone."),
    "plane": (
        "One quantity against another",
        "One point a checkpoint; the stepped line joins those that no other one beats in both, where small "
        "or large values of both are good. Draw a box around points to see their runs alone everywhere.",
    ),
    "heat": ("Layer by module", "Mean over the runs of each arm that are shown, at one step."),
    "spectrum": (
        "Spectrum of a matrix",
        "Of the middle layer, at the last checkpoint, beside the base model; noise has the update's shape, "
        "rank bound and norm.",
    ),
}


@functools.cache
def _bundle() -> str:
    """Return Vega's bundle; it is made (in 2 s) once for a version of vl-convert, and kept in the cache."""
    kept = cache_folder() / "vega" / f"{version('vl-convert-python')}.js"
    if not kept.exists():
        files.write_text(kept, vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;"))
    return kept.read_text(encoding="utf-8").replace("</script", "<\\/script")


def _colours(study: Study, data: Data) -> alt.Color:
    styles = run_styles(study.tables)
    arms = data.checkpoints.drop_duplicates("arm")
    named = {arm: styles[run].colour for arm, run in zip(arms["arm"], arms["run"], strict=True)}
    scale = alt.Scale(domain=list(named), range=list(named.values()))
    columns = max(1, VIEW // (SYMBOL + LETTER * min(max(map(len, named)), LONGEST_NAME)))
    legend = alt.Legend(
        title=None, orient="top", columns=columns, symbolLimit=40, labelLimit=LETTER * LONGEST_NAME
    )
    return alt.Color("arm:N", scale=scale, legend=legend)


def _chosen() -> alt.Parameter:
    return alt.param(name="chosen", value=[])


def _choice(name: str, title: str, quantities: tuple[Quantity, ...], place: int = 0) -> alt.Parameter:
    bind = alt.binding_select(
        options=[each.column for each in quantities],
        labels=[each.label for each in quantities],
        name=f"{title} ",
    )
    return alt.param(name=name, value=quantities[min(place, len(quantities) - 1)].column, bind=bind)


def _legend_filter() -> Any:
    return alt.selection_point(name="arms", fields=["arm"], bind="legend")


def _line(data: Data, colour: alt.Color) -> dict[str, Any]:
    metric, arms = _choice("metric", "Quantity", data.quantities), _legend_filter()
    chart = (
        alt.Chart(alt.NamedData(name="checkpoints"))
        .transform_calculate(value="datum[metric]")
        .transform_filter(f"isValid(datum.value) && {CHOSEN}")
        .mark_line(point=alt.OverlayMarkDef(size=36))
        .encode(
            alt.X("step:Q", title="step", axis=alt.Axis(format="d")),
            alt.Y("value:Q", title=None, scale=alt.Scale(zero=False), axis=AXIS),
            colour,
            detail="run:N",
            opacity=alt.condition(arms, alt.value(1.0), alt.value(0.08)),
            tooltip=[alt.Tooltip("run:N"), alt.Tooltip("step:Q"), alt.Tooltip("value:Q", format=".4g")],
        )
        .add_params(_chosen(), metric, arms)
    )
    return _as_spec(chart)


def _plane(data: Data, colour: alt.Color) -> dict[str, Any]:
    """Two quantities, and the front of what is not beaten in both."""
    better = alt.param(name="better", value={each.column: each.better for each in data.quantities})
    across = _choice("across", "Across", data.quantities, _place(data, "nll_increase"))
    up, arms = _choice("up", "Up", data.quantities), _legend_filter()
    brush = alt.selection_interval(name="brush")
    known = (
        alt.Chart(alt.NamedData(name="checkpoints"))
        .transform_calculate(x="datum[across]", y="datum[up]")
        .transform_filter(f"isValid(datum.x) && isValid(datum.y) && {CHOSEN}")
    )
    axes = (
        alt.X("x:Q", title=None, scale=alt.Scale(zero=False), axis=AXIS),
        alt.Y("y:Q", title=None, scale=alt.Scale(zero=False), axis=AXIS),
    )
    points = (
        known.mark_point(filled=True, size=60)
        .encode(
            *axes,
            colour,
            opacity=alt.condition(arms, alt.value(0.9), alt.value(0.08)),
            tooltip=[
                alt.Tooltip("run:N"),
                alt.Tooltip("step:Q"),
                alt.Tooltip("x:Q", format=".4g"),
                alt.Tooltip("y:Q", format=".4g"),
            ],
        )
        .add_params(brush, arms)
    )
    front = (
        known.transform_filter("better[across] != 0 && better[up] != 0")
        .transform_calculate(good="datum.x * better[across]", height="datum.y * better[up]")
        .transform_window(
            best="max(height)",
            sort=[alt.SortField("good", order="descending"), alt.SortField("height", order="descending")],
            frame=[None, 0],
        )
        .transform_window(
            before="lag(best)",
            sort=[alt.SortField("good", order="descending"), alt.SortField("height", order="descending")],
        )
        .transform_filter("!isValid(datum.before) || datum.height > datum.before")
        .mark_line(interpolate="step-after", strokeDash=[4, 3], color="#888888")
        .encode(*axes)
    )
    return _as_spec(alt.layer(front, points).add_params(_chosen(), better, across, up))


def _place(data: Data, column: str) -> int:
    columns = [each.column for each in data.quantities]
    return columns.index(column) if column in columns else 1


def _heat(data: Data) -> dict[str, Any]:
    steps = sorted(int(step) for step in data.matrices["step"].unique())
    quantity = _choice("shown", "Quantity", data.of_matrices)
    slider = alt.param(
        name="place",
        value=len(steps) - 1,
        bind=alt.binding_range(min=0, max=max(len(steps) - 1, 0), step=1, name="Step "),
    )
    chart = (
        alt.Chart(alt.NamedData(name="matrices"))
        .transform_calculate(value="datum[shown]")
        .transform_filter(f"datum.step == steps[place] && isValid(datum.value) && {CHOSEN}")
        .transform_aggregate(value="mean(value)", groupby=["arm", "layer", "module", "step"])
        .mark_rect()
        .encode(
            alt.X("layer:O", title="layer", axis=alt.Axis(labelOverlap=True, labelAngle=0)),
            alt.Y("module:N", title=None, sort=_modules(data.matrices)),
            alt.Color(
                "value:Q", title=None, scale=alt.Scale(scheme="viridis"), legend=alt.Legend(orient="right")
            ),
            tooltip=[
                alt.Tooltip("arm:N"),
                alt.Tooltip("step:Q"),
                alt.Tooltip("layer:O"),
                alt.Tooltip("module:N"),
                alt.Tooltip("value:Q", format=".4g"),
            ],
        )
        .properties(width=190, height=130)
        .facet(alt.Facet("arm:N", title=None, header=alt.Header(labelAnchor="start")), columns=2)
        .properties(title=alt.Title(alt.expr("'step ' + steps[place]"), anchor="start", fontSize=12))
        .add_params(_chosen(), quantity, slider, alt.param(name="steps", value=steps))
    )
    found: dict[str, Any] = chart.to_dict(validate=False)
    return found


def _modules(matrices: pd.DataFrame) -> list[str]:
    usual = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    known = list(matrices["module"].unique())
    return [name for name in usual if name in known] + [name for name in known if name not in usual]


KINDS = {"update": "the update, ΔW", "tuned": "the tuned matrix, W"}


def _spectrum(data: Data, colour: alt.Color) -> dict[str, Any]:
    modules = _modules(data.spectra)
    module = alt.param(
        name="module", value=modules[0], bind=alt.binding_select(options=modules, name="Matrix ")
    )
    kind = alt.param(
        name="kind",
        value="update",
        bind=alt.binding_select(options=list(KINDS), labels=list(KINDS.values()), name="Of "),
    )
    arms = _legend_filter()
    known = alt.Chart(alt.NamedData(name="spectra")).transform_filter(
        "datum.module == module && datum.sigma > 0"
    )
    known = known.transform_calculate(place="datum.index + 1")
    axes = (
        alt.X("place:Q", title="index", scale=alt.Scale(type="log"), axis=alt.Axis(format="d")),
        alt.Y("sigma:Q", title="singular value", scale=alt.Scale(type="log")),
    )
    tip = [alt.Tooltip("run:N"), alt.Tooltip("place:Q", title="index"), alt.Tooltip("sigma:Q", format=".4g")]
    seen = alt.condition(arms, alt.value(1.0), alt.value(0.08))
    lines = (
        known.transform_filter(f"datum.kind == kind && {CHOSEN}")
        .mark_line()
        .encode(*axes, colour, detail="run:N", opacity=seen, tooltip=tip)
        .add_params(arms)
    )
    noise = (
        known.transform_filter(f"kind == 'update' && datum.kind == 'noise' && {CHOSEN}")
        .mark_line(strokeDash=[2, 3], strokeWidth=1.2)
        .encode(*axes, colour, detail="run:N", tooltip=tip)
    )
    base = (
        known.transform_filter("kind == 'tuned' && datum.kind == 'base'")
        .mark_line(color="#888888", strokeWidth=4, opacity=0.5)
        .encode(*axes)
    )
    return _as_spec(alt.layer(base, noise, lines).add_params(_chosen(), module, kind))


def _as_spec(chart: Any) -> dict[str, Any]:
    """Return a view that is as wide as its place; checking it against the schema takes seconds, in tests."""
    found: dict[str, Any] = chart.properties(width="container", height=HEIGHT).to_dict(validate=False)
    return found
