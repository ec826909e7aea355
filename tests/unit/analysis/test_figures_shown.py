"""What the figures of directions, representations, tasks, comparisons and edited models show."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure as Canvas

from rankdrift import registry
from rankdrift.analysis.figures import Figure, NothingToDraw
from rankdrift.analysis.figures._matrices import labelled_matrix
from rankdrift.analysis.figures._style import FULL_COLOURS, OTHER_COLOURS
from rankdrift.analysis.sources.subjects import IDENTITY

Tables = dict[str, pd.DataFrame]
TWO = (("lora", 8, 42), ("full", 0, 42))
TWELVE = tuple(
    (method, rank, seed)
    for seed in (1, 2, 3)
    for method, rank in (("full", 0), ("lora", 4), ("lora", 8), ("lora", 64))
)


@pytest.fixture(scope="module")
def two_runs(make_tables: Callable[..., Tables]) -> Tables:
    return make_tables(TWO, [8, 16, 24], 6, ["mean", "last_token", "token"])


def figure(name: str) -> Figure:
    return registry.load("figure", name)


def curves(axes: Axes, colour: str) -> list[np.ndarray]:
    """The (x, y) points of the lines of one colour."""
    return [np.column_stack(line.get_data()) for line in axes.lines if line.get_color() == colour]


# the analysis that makes each of the tables of runs and arms compared, of directions and of edited models
MADE_BY = {
    "performance_metrics": "performance",
    "drift_metrics": "drift",
    "layer_similarity": "drift",
    "intruder_dimensions": "spectra",
    "subspace_drift": "spectra",
    "task_gradients": "checkpoint_gradients",
    "gradient_noise": "checkpoint_gradients",
    "task_vectors": "task_vectors",
    "variant_scores": "variants",
    "matched_comparison": "comparisons",
    "matched_seeds": "comparisons",
    "seed_contrasts": "seed_contrasts",
    "seed_means": "seed_contrasts",
    "item_contrasts": "item_contrasts",
    "forgetting_predictors": "predictors",
}


@pytest.mark.parametrize("table", MADE_BY)
def test_made_up_tables_have_the_columns_of_real_ones(table: str, two_runs: Tables) -> None:
    declared = registry.load("analysis", MADE_BY[table]).columns[table]
    assert set(two_runs[table]) <= {*IDENTITY, *declared}


def marked(axes: Axes, marker: str) -> list[list[float]]:
    """The points drawn with a marker."""
    return [
        list(point)
        for line in axes.lines
        if line.get_marker() == marker
        for point in np.column_stack(line.get_data())
    ]


def test_intruder_grid_is_of_shares_beside_random_directions(two_runs: Tables) -> None:
    full, lora, random = figure("intruder_grid").render(two_runs).axes[:3]
    assert [axes.get_title(loc="left") for axes in (full, lora, random)] == [
        "full",
        "lora-r8",
        "random directions",
    ]
    assert full.images[0].get_array().mask.all()  # no intruder: grey
    # made up: one in each matrix of 2 of the 6 layers, from threshold 0.5 on; k = 1, 10, 32
    shares = lora.images[0].get_array()
    assert shares.mask.tolist() == [[True] * 3, [False] * 3, [False] * 3]
    np.testing.assert_allclose(shares[1], [1 / 3, 1 / 30, 1 / 96])
    np.testing.assert_allclose(random.images[0].get_array(), 1)
    assert {text.get_text() for text in lora.texts} == {"0", "28"}  # 2 layers, 7 modules, 2 sides


def test_subspace_drift_shows_the_safe_measure_above_the_naive_one(two_runs: Tables) -> None:
    canvas = figure("subspace_drift").render(two_runs)
    safe, naive = (curves(canvas.axes[place], FULL_COLOURS[0])[0] for place in (0, 3))
    # made up: drift 0.1 (1 + layer / 6) / 2 (k / 32)^0.2 at k = 10
    np.testing.assert_allclose(safe[:, 1], 0.05 * (1 + np.arange(6) / 6) * (10 / 32) ** 0.2)
    np.testing.assert_allclose(naive[:, 1], 0.68)
    # random signs: E (1 - s)^2 = 2 of at most 4
    assert canvas.axes[3].lines[-1].get_ydata()[0] == pytest.approx((2 / 4) ** 0.5)
    assert canvas.axes[0].lines[-1].get_ydata()[0] == pytest.approx((1 - 10 / 64) ** 0.5)


def test_layer_similarity_has_the_base_across(two_runs: Tables) -> None:
    grid = figure("layer_similarity").render(two_runs).axes[0].images[0].get_array()
    # made up: each layer of the tuned model loses 0.1 / 6 more than the one before it; rows are its layers
    assert grid[6, 5] == pytest.approx(1 - 0.8 / 6 - 0.1)
    assert grid[5, 6] == pytest.approx(1 - 0.8 / 6 - 0.1 * 5 / 6)


def test_drift_differs_by_representation(two_runs: Tables) -> None:
    axes = figure("drift_representations").render(two_runs).axes
    last = [curves(panel, FULL_COLOURS[0])[0][-1, 1] for panel in axes]
    np.testing.assert_allclose(last, [1 - 0.06, 1 - 0.12, 1 - 0.18] * 2)


def test_task_gradients_stand_corrected_beside_observed(two_runs: Tables) -> None:
    corrected, observed = figure("task_gradients").render(two_runs).axes[:2]
    expected = np.array([[1, 0, -1], [0, 1, 0], [-1, 0, 1]])
    np.testing.assert_allclose(corrected.images[0].get_array(), expected)
    np.testing.assert_allclose(observed.images[0].get_array(), 0.6 * expected)
    assert [text.get_text() for text in corrected.texts[:3]] == [
        "1.00",
        "0.00\n±0.12",
        "-1.00\n±0.12",
    ]  # 2.365 of 0.05


def test_noise_scale_marks_what_is_undefined(two_runs: Tables) -> None:
    topic, *_, text = figure("gradient_noise_scale").render(two_runs).axes
    assert marked(topic, "x") == []
    assert [step for step, _ in marked(text, "x")] == [24, 24]
    assert curves(text, FULL_COLOURS[0])[0][:, 0].tolist() == [8, 16, 24]


def test_task_vectors_are_symmetric_without_a_diagonal(make_tables: Callable[..., Tables]) -> None:
    canvas = figure("task_vectors").render(make_tables(TWELVE, [1], 1))
    cosines, conflicts = (axes.images[0].get_array() for axes in canvas.axes[:2])
    np.testing.assert_array_equal(cosines.mask, np.eye(12, dtype=bool))
    np.testing.assert_array_equal(cosines, cosines.T)
    assert cosines[0, :4].tolist() == [None, 0.5, 0.5, 0.05]  # seeds of full, then another arm
    assert conflicts[0, 1] == pytest.approx(20)
    assert "0 ± 0.002" in canvas.axes[0].get_title(loc="left")  # 1.96 of 1e-3


@pytest.mark.parametrize(("runs", "bars"), [(TWO, 0), (TWELVE, 3)], ids=["one seed", "three seeds"])
def test_matched_comparison_has_intervals_where_there_are_seeds(
    runs: Any, bars: int, make_tables: Callable[..., Tables]
) -> None:
    tables = make_tables(runs, [1], 1)
    first = tables["matched_comparison"].iloc[:3]
    tables["matched_comparison"] = first
    axes = figure("matched_comparison").render(tables).axes[0]
    lines = [line for line in axes.lines if line.get_color() == OTHER_COLOURS[0]]
    verticals = [list(line.get_ydata()) for line in lines if len(set(line.get_xdata())) == 1]
    assert verticals == [[pytest.approx(0.02), pytest.approx(0.04)]] * bars
    assert axes.xaxis_inverted()  # lower loss, further trained, to the right


def test_no_match_is_left_out_with_the_reason(two_runs: Tables) -> None:
    unmatched = two_runs["matched_comparison"].assign(difference=np.nan, reason="no value that all reach")
    with pytest.raises(NothingToDraw, match="no value that all reach"):
        figure("matched_comparison").render({**two_runs, "matched_comparison": unmatched})


def test_seed_control_draws_contrasts_on_the_negative_control(make_tables: Callable[..., Tables]) -> None:
    axes = figure("seed_control").render(make_tables(TWELVE, [1], 1)).axes
    assert [panel.get_title(loc="left") for panel in axes] == ["topic", "general text"]
    reach = sorted({(bar.get_x(), bar.get_x() + bar.get_width()) for bar in axes[0].patches})
    assert reach == [(-0.01, 0.01), (-0.005, 0.005)]
    assert {x for x, _ in marked(axes[0], "o")} == {0.02}
    assert len(axes[0].get_yticklabels()) == 6  # pairs of four arms


def test_a_contrast_of_one_seed_is_an_open_point(two_runs: Tables) -> None:
    axes = figure("seed_control").render(two_runs).axes[0]
    faces = [line.get_markerfacecolor() for line in axes.lines if len(line.get_xdata()) == 1]
    assert faces == ["white"]


def test_interventions_put_intruders_beside_controls(two_runs: Tables) -> None:
    axes = figure("interventions").render(two_runs).axes[0]
    assert marked(axes, "D") == [[-0.02, -0.004]]
    assert [marked(axes, control) for control in "s^o"] == [[[-0.01, -0.004]]] * 3
    assert marked(axes, "*") == [[0, 0]]


def test_strengths_of_one_edit_are_joined_and_named(two_runs: Tables) -> None:
    variants = two_runs["variant_scores"]
    edits = variants[variants["kind"] == "intervention"]
    half = edits.assign(at=0.5, variant=edits["variant"] + "5", difference=edits["difference"] / 2)
    tables = {**two_runs, "variant_scores": pd.concat([edits, half])}
    axes = figure("interventions").render(tables).axes[0]
    assert marked(axes, "D") == [[-0.02, -0.004], [-0.01, -0.002]]
    assert {text.get_text() for text in axes.texts} == {"x 0", "x 0.5"}


def test_interpolation_ends_at_the_tuned_model(two_runs: Tables) -> None:
    variants = two_runs["variant_scores"]
    without_end = {**two_runs, "variant_scores": variants[variants["at"] != 1]}
    score, text = figure("interpolation").render(without_end).axes
    np.testing.assert_allclose(
        curves(score, FULL_COLOURS[0])[0], [[0, 0.42], [0.5, 0.87 + 0.45 * (0.5**0.5 - 1)], [1, 0.87]]
    )
    np.testing.assert_allclose(curves(text, FULL_COLOURS[0])[0], [[0, 3.1], [0.5, 3.11], [1, 3.14]])


def test_predictors_state_their_correlation(two_runs: Tables) -> None:
    axes = figure("predictors_of_forgetting").render(two_runs).axes
    assert axes[1].get_title(loc="left") == "Spearman 0.80 [0.60, 0.85] (12 runs)"
    table = two_runs["forgetting_predictors"].assign(spearman_low=np.nan, spearman_high=np.nan, runs=2)
    axes = figure("predictors_of_forgetting").render({**two_runs, "forgetting_predictors": table}).axes
    assert axes[1].get_title(loc="left") == "Spearman 0.80, no interval (2 runs)"


@pytest.mark.parametrize(("value", "colour"), [(0.0, "#222222"), (-1.0, "white"), (1.0, "white")])
def test_numbers_in_cells_can_be_read(value: float, colour: str) -> None:
    axes = Canvas().subplots()
    labelled_matrix(axes, pd.DataFrame([[value]]), pd.DataFrame([["x"]]), Normalize(-1, 1))
    assert axes.texts[0].get_color() == colour


def test_matrices_outside_the_blocks_have_no_layer_to_be_drawn_at(two_runs: Tables) -> None:
    spectra = two_runs["svd_analysis_results"]
    outside = spectra[spectra["module"] == "q_proj"].assign(layer=-1, module="embed_tokens")
    tables = {**two_runs, "svd_analysis_results": pd.concat([outside, spectra])}
    for name in ("spectrum_similarity", "intruders"):
        axes = figure(name).render(tables).axes[-1]
        assert min(curves(axes, FULL_COLOURS[0])[0][:, 0]) == 0
    labels = figure("rank_by_module").render(tables).axes[0].get_xticklabels()
    assert "embed_tokens" not in [label.get_text() for label in labels]


@pytest.fixture(scope="module")
def wide(make_tables: Callable[..., Tables], scored_widely: Callable[[Tables], Tables]) -> Tables:
    return scored_widely(make_tables(TWELVE, [8, 16, 24], 1))


def titles(canvas: Canvas) -> list[str]:
    return [axes.get_title(loc="left") for axes in canvas.axes]


def test_the_learning_curve_has_validation_and_what_needs_no_model(wide: Tables) -> None:
    canvas = figure("learning_curve").render(wide)
    assert titles(canvas) == ["topic", "summary", "trained tasks, mean"]  # no retention task, no prompts
    test, validation = curves(canvas.axes[0], FULL_COLOURS[0])[0], dotted(canvas.axes[0], FULL_COLOURS[0])[0]
    np.testing.assert_allclose(validation - test, [[0, 0.01]] * 3, atol=1e-12)
    levels = [line.get_ydata()[0] for line in canvas.axes[1].lines if len(set(line.get_ydata())) == 1]
    assert levels == [30, 10]  # the base, and the most frequent answer
    (legend,) = canvas.legends
    names = [text.get_text() for text in legend.get_texts()]
    assert names[-3:] == ["base model", "validation split", "most frequent answer"]


def dotted(axes: Axes, colour: str) -> list[np.ndarray]:
    """The points of a colour's lines without markers."""
    lines = [line for line in axes.lines if line.get_color() == colour and line.get_marker() in ("", "None")]
    return [np.column_stack(line.get_data()) for line in lines]


def test_without_validation_and_baselines_the_curve_is_as_it_was(two_runs: Tables) -> None:
    (legend,) = figure("learning_curve").render(two_runs).legends
    assert [text.get_text() for text in legend.get_texts()] == ["full", "lora-r8", "base model"]


def test_the_plane_has_retention_where_it_was_scored(wide: Tables, two_runs: Tables) -> None:
    canvas = figure("learning_forgetting").render(wide)
    assert len(canvas.axes) == 3 * 3
    path = curves(canvas.axes[2], FULL_COLOURS[0])[0]
    progress = np.array([0, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(path, np.column_stack([0.05 * progress, 0.42 + 0.45 * progress]), atol=1e-12)
    assert len(figure("learning_forgetting").render(two_runs).axes) == 2


def test_rank_analysis_has_what_was_learnt_and_every_cost_by_rank(wide: Tables) -> None:
    canvas = figure("lora_rank_analysis").render(wide)
    costs = ["general text", "general text", "tasks' prompts", "retention tasks"]
    assert titles(canvas) == ["topic", "summary", "trained tasks, mean", *costs]
    accuracy, drop = canvas.axes[0], canvas.axes[-1]
    assert [text.get_text() for text in accuracy.get_xticklabels()] == ["4", "8", "64"]
    points = marked(accuracy, "o")
    assert len(points) == 9  # three ranks, three seeds
    np.testing.assert_allclose([value for _, value in points], 0.87)
    assert curves(drop, OTHER_COLOURS[0])[-1].tolist() == [
        [4, pytest.approx(0.02)],
        [8, pytest.approx(0.02)],
        [64, pytest.approx(0.02)],
    ]
    levels = [
        line.get_ydata()[0]
        for line in drop.lines
        if len(line.get_ydata()) == 2 and not len(set(line.get_xdata()) - {0, 1})
    ]
    assert levels == [pytest.approx(0.05), 0]  # full fine-tuning, the base


def test_means_of_a_rank_are_over_its_seeds(wide: Tables) -> None:
    performance = wide["performance_metrics"].copy()
    rows = (
        (performance["metric"] == "accuracy") & (performance["task"] == "topic") & (performance["rank"] == 8)
    )
    performance.loc[rows, "value"] = performance.loc[rows, "seed"] / 10  # 0.1, 0.2, 0.3
    canvas = figure("lora_rank_analysis").render({**wide, "performance_metrics": performance})
    means = dict(curves(canvas.axes[0], OTHER_COLOURS[0])[-1].tolist())
    assert means[8] == pytest.approx(0.2)
    assert means[4] == pytest.approx(0.87)


@pytest.mark.parametrize(
    ("runs", "reason"), [(TWO, "one rank of LoRA alone, 8"), (TWO[1:], "no run with a rank")]
)
def test_one_rank_is_no_rank_analysis(runs: Any, reason: str, make_tables: Callable[..., Tables]) -> None:
    with pytest.raises(NothingToDraw, match=reason):
        figure("lora_rank_analysis").render(make_tables(runs, [1], 1))


def test_a_layer_that_rested_has_not_moved(two_runs: Tables) -> None:
    from rankdrift.analysis.figures.layer_movement import movement

    spectra = two_runs["svd_analysis_results"]
    first, rested = spectra["step"] == 8, (spectra["step"] == 16) & (spectra["layer"] == 2)
    keys = ["run", "module", "layer"]
    before = spectra[first].set_index(keys)["update_norm"]
    places = pd.MultiIndex.from_frame(spectra.loc[rested, keys])
    spectra = spectra.copy()
    spectra.loc[rested, "update_norm"] = before.loc[places].to_numpy()
    found = movement(spectra).set_index(["run", "group", "layer", "step"])["moved"]
    still = found[found.index.get_level_values("layer") == 2].xs(16, level="step")
    assert (still == 0).all()
    others = found[found.index.get_level_values("layer") != 2]
    assert (others > 0).all()
    one = spectra.query(
        "run == 'lora-r8-seed42' and layer == 3 and module in ['gate_proj', 'up_proj', 'down_proj']"
    )
    sizes = {
        step: np.sqrt((rows["update_norm"] ** 2).sum() / (rows["base_norm"] ** 2).sum())
        for step, rows in one.groupby("step")
    }
    assert found["lora-r8-seed42", "mlp", 3, 8] == pytest.approx(sizes[8])
    assert found["lora-r8-seed42", "mlp", 3, 24] == pytest.approx(abs(sizes[24] - sizes[16]))


def test_every_bar_of_a_latency_stands_beside_its_models_name(two_runs: Tables) -> None:
    """Rows of a table are in no order that means anything: each request has its own here."""
    rows = two_runs["deployment_benchmark_summary"]
    requests = [(batch, quantity) for batch in (8, 1) for quantity in ("further_token", "first_token")]
    sizes = {(batch, quantity): 1 + batch + 0.1 * (quantity == "first_token") for batch, quantity in requests}
    drawn = [
        rows.sample(frac=1, random_state=number).assign(
            batch=batch,
            quantity=quantity,
            p50=rows["p50"] * size,
            low=rows["low"] * size,
            high=rows["high"] * size,
        )
        for number, ((batch, quantity), size) in enumerate(sizes.items())
    ]
    table = pd.concat(drawn, ignore_index=True)
    table["p50"] += table["arm"].map({"base": 0.0, "full": 1e-4, "lora-r8": 2e-4})
    canvas = figure("latency_comparison").render({"deployment_benchmark_summary": table})
    assert [ax.get_title("left") for ax in canvas.axes] == [
        f"{quantity}\n{batch} at once, prompt of 32"
        for batch in (1, 8)
        for quantity in ("first token", "further token")
    ]
    named = [label.get_text() for label in canvas.axes[0].get_yticklabels()]
    assert named == ["base", "full", "lora-r8, merged", "lora-r8, unmerged"]
    for ax, batch, quantity in zip(
        canvas.axes, (1, 1, 8, 8), ("first_token", "further_token") * 2, strict=True
    ):
        assert ax.get_ylim() == (3.5, -0.5)  # the first one above
        found = {round(bar.get_y() + bar.get_height() / 2): bar.get_width() for bar in ax.patches}
        own = table[(table["batch"] == batch) & (table["quantity"] == quantity)]
        for row in own.itertuples():
            name = row.arm if row.way in ("base", "full") else f"{row.arm}, {row.way}"
            assert found[named.index(name)] == pytest.approx(1000 * row.p50)


def test_a_legend_of_long_names_is_as_wide_as_its_figure_at_most(make_tables: Callable[..., Tables]) -> None:
    def long(arm: str) -> str:
        return f"dynamic-attention-then-mlp-then-both-{arm}"

    tables = make_tables(TWELVE, [8, 16], 1)
    for table in ("matched_comparison", "matched_seeds"):
        arms = {column: tables[table][column].map(long) for column in ("arm", "other_arm")}
        tables[table] = tables[table].assign(**arms)
    canvas = figure("matched_comparison").render(tables)
    canvas.draw_without_rendering()
    box = canvas.legends[0].get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= canvas.bbox.x1
