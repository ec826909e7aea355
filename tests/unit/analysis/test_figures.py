from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise

import matplotlib
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Canvas

from rankdrift import registry
from rankdrift.analysis.figures import SECTIONS, Figure, NothingToDraw, in_report_order
from rankdrift.analysis.figures._null_spectra import noise_spectrum
from rankdrift.analysis.figures._style import FULL_COLOURS, STYLE, heatmap, log_colours, run_styles

Tables = dict[str, pd.DataFrame]
NAMES = registry.names("figure")
TWO = (("lora", 8, 42), ("full", 0, 42))
TWELVE = tuple(
    (method, rank, seed)
    for seed in (1, 2, 3)
    for method, rank in (("full", 0), ("lora", 4), ("lora", 8), ("lora", 64))
)
SIZES = {"12 runs": (TWELVE, [2, 4], 1), "20 steps": (TWO[1:], range(1, 21), 1)}


MANY = tuple(
    (method, rank, seed)
    for method, rank in (("full", 0), *(("lora", r) for r in range(1, 28)))
    for seed in (1, 2)
)
"""28 arms of two seeds."""


@pytest.fixture(scope="module")
def many_runs(make_tables: Callable[..., Tables]) -> Tables:
    return make_tables(MANY, [4, 8], 1)


@pytest.fixture(scope="module")
def two_runs(make_tables: Callable[..., Tables]) -> Tables:
    return make_tables(TWO, [8, 16, 24], 6, ["mean", "last_token", "token"])


@pytest.fixture(scope="module")
def sized(make_tables: Callable[..., Tables]) -> dict[str, Tables]:
    return {name: make_tables(runs, list(steps), layers) for name, (runs, steps, layers) in SIZES.items()}


@pytest.fixture(scope="module")
def ten_rows(make_tables: Callable[..., Tables]) -> Tables:
    tables = make_tables(TWO[:1], [1], 1)
    tables["singular_values"] = tables["singular_values"].groupby("matrix").head(4)
    tables["variant_scores"] = tables["variant_scores"].groupby("kind").head(5)
    tables["task_vectors"] = make_tables(TWO, [1], 1)["task_vectors"].query("pairing == 'last'")
    two_ranks = make_tables((TWO[0], ("lora", 4, 42)), [1], 1)["performance_metrics"]
    tables["performance_metrics"] = two_ranks.groupby("run", sort=False).head(3)
    return {name: table.head(10) for name, table in tables.items()}


@pytest.mark.parametrize("name", NAMES)
def test_many_runs_are_no_book(name: str, many_runs: Tables) -> None:
    canvas = figure(name).render(many_runs)
    assert canvas.get_size_inches()[1] < 30
    bars = sum(ax.get_label() == "<colorbar>" for ax in canvas.axes)
    assert len(canvas.axes) - bars <= 24  # twelve runs with two panels each
    for shown in canvas.legends:
        assert len(shown.get_texts()) <= 30


def test_a_few_of_many_runs_are_of_different_arms(many_runs: Tables) -> None:
    canvas = figure("drift_heatmap").render(many_runs)
    titles = [title for ax in canvas.axes if (title := ax.get_title(loc="left"))]
    assert len(titles) == 12
    assert titles[0] == "full-seed1"
    assert titles[-1] == "lora-r27-seed1"
    assert all(title.endswith("-seed1") for title in titles)


def test_more_arms_than_colours_are_told_apart_by_their_kind(make_tables: Callable[..., Tables]) -> None:
    performance = make_tables((("full", 0, 1), ("lora", 8, 1)), [4], 1)["performance_metrics"]
    lora = performance[performance["method"] == "lora"]
    more = [lora.assign(run=f"lora-rate{number}-seed1") for number in range(40)]
    tables = {"performance_metrics": pd.concat([performance, *more])}
    styles = run_styles(tables)
    assert {style.family for style in styles.values()} == {"full (1 arm)", "lora r=8 (41 arms)"}
    assert len({style.colour for style in styles.values()}) == 2
    (shown,) = figure("learning_curve").render(tables).legends
    assert len(shown.get_texts()) < 6


def figure(name: str) -> Figure:
    return registry.load("figure", name)


def drawn(canvas: Canvas) -> Canvas:
    with matplotlib.rc_context(STYLE):
        canvas.draw_without_rendering()
    return canvas


def curves(axes: Axes, colour: str) -> list[np.ndarray]:
    """The (x, y) points of the lines of one colour."""
    return [np.column_stack(line.get_data()) for line in axes.lines if line.get_color() == colour]


def neighbours(axes: Axes) -> Iterator[tuple[float, float]]:
    """Right edge of each x tick label, left edge of the next."""
    low, high = sorted(axes.get_xlim())
    ticks = [
        tick
        for tick in axes.xaxis.get_major_ticks()
        if low <= tick.get_loc() <= high and tick.label1.get_text()
    ]
    boxes = sorted((tick.label1.get_window_extent() for tick in ticks), key=lambda box: box.x0)
    yield from ((left.x1, right.x0) for left, right in pairwise(boxes))


@pytest.mark.parametrize("name", NAMES)
def test_declares_itself(name: str) -> None:
    assert figure(name).name == name
    assert figure(name).section in SECTIONS
    assert len(figure(name).caption) > 100


@pytest.mark.parametrize("name", NAMES)
def test_renders_from_ten_rows(name: str, ten_rows: Tables) -> None:
    needed = {table: ten_rows[table] for table in figure(name).tables}
    canvas = figure(name).render(needed)
    assert any(axes.has_data() for axes in canvas.axes)
    assert canvas.get_size_inches()[0] == 9.5


@pytest.mark.parametrize("name", NAMES)
def test_tick_labels_do_not_meet_and_axes_are_labelled(
    name: str, two_runs: Tables, sized: dict[str, Tables]
) -> None:
    tables = sized["12 runs"] if name == "lora_rank_analysis" else two_runs  # which have one rank
    canvas = drawn(figure(name).render(tables))
    assert all(end < start for axes in canvas.axes for end, start in neighbours(axes))
    assert any(axes.get_xlabel() for axes in canvas.axes)
    assert any(axes.get_ylabel() for axes in canvas.axes)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", NAMES)
def test_renders_whatever_the_size(name: str, size: str, sized: dict[str, Tables]) -> None:
    of_several = {"task_vectors": "no pair of runs", "lora_rank_analysis": "no run with a rank"}
    if name in of_several and sized[size]["performance_metrics"]["run"].nunique() == 2:  # one, and the base
        with pytest.raises(NothingToDraw, match=of_several[name]):
            figure(name).render(sized[size])
        return
    canvas = figure(name).render(sized[size])
    assert canvas.axes
    assert canvas.get_size_inches()[0] == 9.5


@pytest.mark.parametrize("name", ["learning_forgetting", "predictors_of_forgetting", "seed_control"])
def test_a_run_that_diverged_leaves_the_others_room(name: str, make_tables: Callable[..., Tables]) -> None:
    tables = make_tables(TWELVE, [2, 4], 1)
    lost = {"run": "lora-r64-seed1", "arm": "lora-r64", "other_arm": "lora-r64"}

    def diverged(table: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
        rows = np.logical_or.reduce([table[key] == run for key, run in lost.items() if key in table])
        return table.assign(**{column: table[column].where(~rows, table[column] * 300) for column in columns})

    tables["performance_metrics"] = diverged(tables["performance_metrics"], ["value"])
    tables["learning_forgetting"] = diverged(tables["learning_forgetting"], ["nll_increase", "kl_from_base"])
    tables["seed_contrasts"] = diverged(tables["seed_contrasts"], ["difference", "low", "high"])
    canvas = drawn(figure(name).render(tables))
    scales = {scale for axes in canvas.axes for scale in (axes.get_xscale(), axes.get_yscale())}
    assert "symlog" in scales
    assert all(end < start for axes in canvas.axes for end, start in neighbours(axes))


def test_squares_of_many_runs_stand_one_above_the_other(sized: dict[str, Tables], two_runs: Tables) -> None:
    for tables, stacked in ((two_runs, False), (sized["12 runs"], True)):
        cosines, conflicts, *_ = drawn(figure("task_vectors").render(tables)).axes
        assert (cosines.get_position().y0 > conflicts.get_position().y1) == stacked


def test_an_axis_stays_linear_without_extreme_values(two_runs: Tables) -> None:
    for axes in figure("learning_forgetting").render(two_runs).axes:
        assert axes.get_xscale() == "linear"


def test_many_runs_have_a_legend_of_arms_and_seeds(sized: dict[str, Tables], two_runs: Tables) -> None:
    def entries(tables: Tables) -> list[str]:
        (found,) = figure("training_dynamics").render(tables).legends
        return [text.get_text() for text in found.get_texts()]

    seeds = ["seed 1", "seed 2", "seed 3"]
    assert entries(sized["12 runs"]) == ["full", "lora-r4", "lora-r8", "lora-r64", *seeds]
    assert entries(two_runs) == ["full", "lora-r8"]


def test_eighty_layers(make_tables: Callable[..., Tables]) -> None:
    tables = make_tables(TWO[:1], [1], 80)
    for name in ("drift_by_layer", "drift_heatmap", "gradient_heatmap"):
        canvas = drawn(figure(name).render(tables))
        assert all(end < start for axes in canvas.axes for end, start in neighbours(axes))


@pytest.mark.parametrize("name", NAMES)
def test_missing_and_empty_tables_are_named(name: str, two_runs: Tables) -> None:
    needed = figure(name).tables[-1]
    without = {key: table for key, table in two_runs.items() if key != needed}
    with pytest.raises(NothingToDraw, match=needed):
        figure(name).render(without)
    with pytest.raises(NothingToDraw, match=needed):
        figure(name).render({**two_runs, needed: two_runs[needed].head(0)})


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"training_loss", "training_dynamics"}))
def test_the_base_alone_is_nothing_to_draw(name: str, two_runs: Tables) -> None:
    of_base = {"run": "base", "method": "base", "step": 0}
    base = {key: t.assign(**of_base) if "run" in t else t.head(0) for key, t in two_runs.items()}
    if "gradient_analysis_results" in figure(name).tables:
        base["gradient_analysis_results"] = two_runs["gradient_analysis_results"].assign(level="cell")
    with pytest.raises(NothingToDraw):
        figure(name).render(base)


def test_report_order_is_by_section_and_complete() -> None:
    places = [list(SECTIONS).index(found.section) for found in in_report_order()]
    assert places == sorted(places)
    assert len(places) == len(NAMES)


def test_a_run_looks_the_same_in_every_figure(make_tables: Callable[..., Tables]) -> None:
    tables = make_tables(TWELVE, [1], 1)
    styles = run_styles(tables)
    only_lora = tables["drift_metrics"][tables["drift_metrics"]["rank"] == 8]
    assert run_styles({**tables, "drift_metrics": only_lora}) == styles
    assert len({(style.colour, str(style.line), style.marker) for style in styles.values()}) == 12
    assert {style.colour for run, style in styles.items() if run.startswith("full")} == {FULL_COLOURS[0]}


def test_labels_name_the_seed_where_there_are_several(two_runs: Tables, sized: dict[str, Tables]) -> None:
    assert [style.label for style in run_styles(two_runs).values()] == ["full", "lora-r8"]
    assert next(iter(run_styles(sized["12 runs"]).values())).label == "full-seed1"


def test_learning_forgetting_starts_at_the_base(two_runs: Tables) -> None:
    axes = figure("learning_forgetting").render(two_runs).axes[0]
    path = curves(axes, run_styles(two_runs)["full-seed42"].colour)[0]
    # the made-up study: accuracy 0.42 + 0.45 t, NLL 3.1 + 0.05 t at t = 1/3, 2/3, 1
    progress = np.array([0, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(path, np.column_stack([0.05 * progress, 0.42 + 0.45 * progress]), atol=1e-12)


def test_drift_by_layer_draws_the_last_checkpoint(two_runs: Tables) -> None:
    axes = figure("drift_by_layer").render(two_runs).axes[0]
    curve = curves(axes, run_styles(two_runs)["full-seed42"].colour)[0]
    np.testing.assert_allclose(curve[:, 1], 1 - 0.06 * (np.arange(7) / 6) ** 2)


def test_update_energy_adds_up_to_a_hundred_per_cent(two_runs: Tables) -> None:
    axes = figure("update_energy").render(two_runs).axes[0]
    shares = axes.images[0].get_array()
    assert float(np.ma.sum(shares)) == pytest.approx(100)
    norms = two_runs["svd_analysis_results"].query(
        "run == 'full-seed42' and step == 24 and module == 'q_proj'"
    )["update_norm"]
    np.testing.assert_allclose(np.ma.getdata(shares)[-1] / shares[-1, 0], (norms / norms.iloc[0]) ** 2)


def test_rank_evolution_draws_medians_over_matrices(two_runs: Tables) -> None:
    axes = figure("rank_evolution").render(two_runs).axes[0]
    curve = curves(axes, run_styles(two_runs)["full-seed42"].colour)[0]
    # 7 modules of smaller side 64, 16, 16, 64, 64, 64, 64 with entropy rank 0.6 of it
    np.testing.assert_allclose(curve, [[8, 38.4], [16, 38.4], [24, 38.4]])


def test_singular_value_decay_shows_every_value_of_the_update(two_runs: Tables) -> None:
    axes = figure("singular_value_decay").render(two_runs).axes
    # the smallest is that of the largest matrix, 0.05 i^-0.6 at i = 64
    assert axes[3].get_ylim()[0] < 0.05 * 64**-0.6
    curve = curves(axes[3], FULL_COLOURS[0])[0]
    np.testing.assert_allclose(curve[:, 1], 0.05 * curve[:, 0] ** -0.6)


def test_long_training_is_smoothed(make_tables: Callable[..., Tables]) -> None:
    tables = make_tables(TWO[1:], [200], 1)
    axes = figure("training_loss").render(tables).axes[0]
    raw, smooth = curves(axes, FULL_COLOURS[0])
    window = raw[46:54, 1]  # 200 steps: a centred mean over 8
    assert smooth[50, 1] == pytest.approx(window.mean())


def test_heatmap_leaves_undefined_and_zero_cells_grey() -> None:
    grid = pd.DataFrame([[0.0, 1.0], [np.nan, 100.0]])
    image = heatmap(Canvas().subplots(), grid, log_colours(grid.to_numpy()), "y")
    np.testing.assert_array_equal(np.ma.getmaskarray(image.get_array()), [[True, False], [True, False]])


@pytest.mark.parametrize(
    ("values", "limits"),
    [([1, 100], (1, 100)), ([1e-9, 1], (1e-3, 1)), ([2, 4], (0, 4)), ([0, np.nan], (0, 1))],
)
def test_colour_scale(values: list[float], limits: tuple[float, float]) -> None:
    norm = log_colours(np.array(values))
    assert (norm.vmin, norm.vmax) == pytest.approx(limits)


@pytest.mark.parametrize(
    ("rows", "columns", "rank"), [(96, 64, 0), (64, 64, 0), (64, 96, 0), (96, 64, 8), (96, 64, 80)]
)
def test_noise_has_the_spectrum_of_dense_gaussian_matrices(rows: int, columns: int, rank: int) -> None:
    generator = np.random.default_rng(3)

    def dense() -> np.ndarray:
        if rank == 0:
            matrix = generator.standard_normal((rows, columns))
        else:
            matrix = generator.standard_normal((rows, rank)) @ generator.standard_normal((rank, columns))
        sigma = np.linalg.svd(matrix, compute_uv=False)[: rank or None]  # below are zeros
        return sigma / np.linalg.norm(sigma)

    expected = np.mean([dense() for _ in range(200)], axis=0)
    found = noise_spectrum(rows, columns, rank, norm=1.0, draws=200)
    np.testing.assert_allclose(found.mean(axis=0), expected, rtol=0.02, atol=6e-4)
    np.testing.assert_allclose(np.linalg.norm(noise_spectrum(rows, columns, rank, norm=7.0), axis=1), 7.0)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"lora_rank_analysis"}))  # of scores alone
def test_a_model_that_did_not_change_is_drawn_or_left_out(name: str, two_runs: Tables) -> None:
    tables = {key: table.copy() for key, table in two_runs.items()}
    tables["singular_values"].loc[tables["singular_values"]["matrix"] == "update", "sigma"] = 0.0
    spectra, drift = tables["svd_analysis_results"], tables["drift_metrics"]
    changes = spectra.filter(regex="^(update_|angle|intruder|relative|sigma1_ratio)").columns
    spectra[[column for column in changes if not column.endswith("_null")]] = 0.0
    drift[["cka", "cosine", "cosine_centered"]], drift[["cka_stderr", "relative_l2"]] = 1.0, 0.0
    tables["subspace_drift"][["angle_mean", "angle_max", "vector_drift", "naive_drift"]] = 0.0
    tables["intruder_dimensions"]["count"] = 0.0
    tables["task_vectors"]["cosine"] = np.nan
    left_out = {"rank_by_module", "rank_evolution", "singular_value_decay", "update_energy", "task_vectors"}
    left_out |= {"subspace_drift"}
    if name in left_out:
        with pytest.raises(NothingToDraw, match=r"differs? from the base"):
            figure(name).render(tables)
    else:
        assert figure(name).render(tables).axes
