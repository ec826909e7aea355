"""What a study, or folders from anywhere, give to the analysis."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from rankdrift import files
from rankdrift.analysis.contract import Params
from rankdrift.data.dataset import load_rows
from rankdrift.errors import UserError
from rankdrift.layout import RunLayout, StudyLayout
from rankdrift.models.base import load_tokenizer
from rankdrift.spec import AnalysisSpec, parse_spec
from rankdrift.studies.study_checkpoints import (
    Source,
    folder_params,
    folder_subjects,
    stored_steps,
    study_params,
    study_subjects,
)
from rankdrift.zero_checkpoint.manifest import Manifest


def test_folders_are_told_apart_by_their_parents(tmp_path: Path) -> None:
    folders = [tmp_path / run / "step-000004" for run in ("full", "lora")]
    for folder in folders:
        folder.mkdir(parents=True)
    files.write_json(folders[1] / "adapter_config.json", {"r": 16})
    base, full, lora = folder_subjects(tmp_path, folders)
    assert (base.run, base.tuned) == ("base", None)
    assert (full.run, full.method, full.rank) == ("full-step-000004", "full", 0)
    assert (lora.run, lora.method, lora.rank) == ("lora-step-000004", "lora", 16)
    assert folder_subjects(tmp_path, folders[:1])[1].run == "step-000004"


def test_the_same_folder_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="given twice"):
        folder_subjects(tmp_path, [tmp_path, tmp_path])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": "four"}, "r='four' is no rank"),
        ({"r": None}, "r=None is no rank"),
        ({"r": True}, "r=True is no rank"),
        ({"r": -4}, "r=-4 is no rank"),
        ([], "not a JSON object, but list"),
    ],
)
def test_settings_of_an_adapter_that_are_none(tmp_path: Path, settings: object, message: str) -> None:
    path = tmp_path / "adapter_config.json"
    files.write_json(path, settings)
    with pytest.raises(UserError, match=f"^{path}: {message}"):
        folder_subjects(tmp_path, [tmp_path])


def test_only_the_base_model_is_called_base(tmp_path: Path) -> None:
    """Its rows are told from all others by that name."""
    folders = [tmp_path / "mine" / "base", tmp_path / "other"]
    for folder in folders:
        folder.mkdir(parents=True)
    found = folder_subjects(tmp_path, folders)
    assert [subject.run for subject in found] == ["base", "mine-base", f"{tmp_path.name}-other"]
    with pytest.raises(UserError, match=r"^/base: .* no name tells it from .* 'base'"):
        folder_subjects(tmp_path, [Path("/base")])


def test_a_study_gives_its_base_once_and_every_export(tiny: Path, tmp_path: Path) -> None:
    study = StudyLayout(tmp_path)
    for arm, method in (("full", "full"), ("lora-r4", "lora")):
        tree = {"arm": arm, "model": {"name": "tiny"}, "method": {"name": method, "rank": 4}}
        run = study.run(f"{arm}-seed42")
        files.write_json(run.spec, parse_spec(tree).as_dict())
        for step in (8, 16):
            run.export(step).mkdir(parents=True)
    subjects = study_subjects(study)
    assert [(s.run, s.method, s.rank, s.step) for s in subjects] == [
        ("base", "base", 0, 0),
        ("full-seed42", "full", 0, 8),
        ("full-seed42", "full", 0, 16),
        ("lora-r4-seed42", "lora", 4, 8),
        ("lora-r4-seed42", "lora", 4, 16),
    ]
    assert {s.base for s in subjects} == {tiny}


def checkpoint(run: RunLayout, step: int) -> None:
    run.checkpoint(step).mkdir(parents=True)
    (run.checkpoint(step) / "shard_states.pt").touch()
    facts = {"spec_digest": "s", "base": "b", "base_digest": "d", "data_position": 0, "seed": 1}
    manifest = Manifest(step=step, world_size=1, zero_stage=2, method="full", precision="fp32", **facts)
    manifest.write(run.checkpoint(step))


def export(run: RunLayout, step: int, dtype: str) -> None:
    files.write_json(run.export(step) / "provenance.json", {"dtype": dtype})


@pytest.fixture
def run(tmp_path: Path) -> RunLayout:
    """Checkpoints of steps 1 to 3 and half a one of 5, exports of 2 to 4, of which only 2 is in fp32."""
    layout = RunLayout(tmp_path / "runs" / "full-seed1")
    for step in (1, 2, 3):
        checkpoint(layout, step)
    layout.checkpoint(5).mkdir()
    for step, dtype in ((2, "fp32"), (3, "bf16"), (4, "bf16")):
        export(layout, step, dtype)
    return layout


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("auto", {1: "checkpoints", 2: "exports", 3: "checkpoints", 4: "exports"}),
        ("exports", {2: "exports", 3: "exports", 4: "exports"}),
        ("checkpoints", {1: "checkpoints", 2: "checkpoints", 3: "checkpoints"}),
    ],
)
def test_steps_are_read_from_what_is_exact(run: RunLayout, source: Source, expected: dict[int, str]) -> None:
    found = stored_steps(run, source)
    assert [(step, folder.parent.name) for step, folder in found.items()] == list(expected.items())
    assert all(folder.name == f"step-{step:06d}" for step, folder in found.items())


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("auto", "no run has a complete checkpoint or an export; train first"),
        ("exports", "no run has an export; run 'rankdrift consolidate'"),
        ("checkpoints", "no run has a complete checkpoint"),
    ],
)
def test_a_study_without_weights_is_refused(tiny: Path, tmp_path: Path, source: Source, message: str) -> None:
    study = StudyLayout(tmp_path)
    files.write_json(study.run("a").spec, parse_spec({"model": {"name": "tiny"}}).as_dict())
    with pytest.raises(UserError, match=f"{study.runs}: {message}"):
        study_subjects(study, source)


def test_a_checkpoint_from_anywhere_is_what_its_run_says(tmp_path: Path) -> None:
    runs = [RunLayout(tmp_path / name) for name in ("full", "lora")]
    for layout in runs:
        checkpoint(layout, 4)
    files.write_json(runs[0].model / "config.json", {})
    files.write_json(runs[1].model / "adapter_config.json", {"r": 16})
    _, full, lora = folder_subjects(tmp_path, [layout.checkpoint(4) for layout in runs])
    assert (full.method, full.rank) == ("full", 0)
    assert (lora.method, lora.rank) == ("lora", 16)


def test_drift_inputs_are_prompts_and_are_not_rewritten(tiny: Path, tmp_path: Path) -> None:
    spec = parse_spec({"model": {"name": "tiny"}, "analysis": {"drift": {"rows": 5}}})
    study = StudyLayout(tmp_path)
    params = study_params(study, spec, tiny)
    assert params.drift_inputs is not None
    rows = pd.read_parquet(params.drift_inputs)["input_ids"]
    assert len(rows) == 5
    from rankdrift.tasks.topic import TASK

    assert TASK.generate is not None
    prompts = [TASK.example(row).prompt for row in TASK.generate("validation")[:5]]
    assert [load_tokenizer(tiny).decode(list(ids)) for ids in rows] == prompts
    written = params.drift_inputs.stat().st_mtime_ns
    study_params(study, spec, tiny)
    assert params.drift_inputs.stat().st_mtime_ns == written


def test_drift_inputs_are_drawn_from_every_task(tiny: Path, tmp_path: Path) -> None:
    tree = {
        "model": {"name": "tiny"},
        "data": {"tasks": ["topic", "describe"]},
        "analysis": {"drift": {"rows": 5}},
    }
    params = study_params(StudyLayout(tmp_path), parse_spec(tree), tiny)
    assert params.drift_inputs is not None
    tokenizer = load_tokenizer(tiny)
    prompts = [tokenizer.decode(list(ids)) for ids in pd.read_parquet(params.drift_inputs)["input_ids"]]
    trails = [prompt.endswith("Description:") for prompt in prompts]  # as those of describe do
    assert trails == [False, True, False, True, False]


def gradient_inputs(params: Params) -> pd.DataFrame:
    assert params.gradient_inputs is not None
    return files.read_table(params.gradient_inputs)


def test_gradients_are_taken_on_the_first_rows_of_every_task(tiny: Path, tmp_path: Path) -> None:
    tree = {
        "model": {"name": "tiny"},
        "data": {"tasks": ["topic", "describe"], "validation_limit": 6},
        "analysis": {"checkpoint_gradients": {"rows": 4}},
    }
    rows = gradient_inputs(study_params(StudyLayout(tmp_path), parse_spec(tree), tiny))
    assert rows["task"].tolist() == ["topic"] * 4 + ["describe"] * 4
    for row in rows.itertuples(index=False):
        labels, ids = row.labels.tolist(), row.input_ids.tolist()
        prompt = labels.count(-100)
        assert labels == [-100] * prompt + ids[prompt:]
        assert 0 < prompt < len(ids)


def test_a_classifier_s_label_is_its_class(tiny: Path, tmp_path: Path) -> None:
    tree = {
        "model": {"name": "tiny", "head": "classifier"},
        "data": {"tasks": ["topic"], "validation_limit": 6},
    }
    spec = parse_spec(tree)
    rows = gradient_inputs(study_params(StudyLayout(tmp_path), spec, tiny))
    loaded = load_rows(spec, "validation", load_tokenizer(tiny))
    assert [labels.tolist() for labels in rows["labels"]] == [[row.label] for row in loaded]
    assert [len(ids) for ids in rows["input_ids"]] == [row.prompt_length for row in loaded]


def test_no_rows_for_gradients(tiny: Path, tmp_path: Path) -> None:
    tree = {"model": {"name": "tiny"}, "analysis": {"checkpoint_gradients": {"rows": 0}}}
    assert study_params(StudyLayout(tmp_path), parse_spec(tree), tiny).gradient_inputs is None


def test_folders_get_beginnings_of_general_text(tiny: Path, tmp_path: Path) -> None:
    settings = AnalysisSpec.model_validate({"drift": {"rows": 8}, "checkpoint_gradients": {"rows": 5}})
    params = folder_params(StudyLayout(tmp_path), tiny, settings)
    rows = gradient_inputs(params)
    assert rows["task"].tolist() == ["general_text"] * 5
    assert params.drift_inputs is not None
    whole = files.read_table(params.drift_inputs)["input_ids"]
    assert len(whole) == 8
    for row, window in zip(rows.itertuples(index=False), whole, strict=False):
        assert row.input_ids.tolist() == window.tolist()[:64]
        assert row.labels.tolist() == [-100, *window.tolist()[1:64]]
