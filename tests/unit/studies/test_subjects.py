"""What a study, or folders from anywhere, give to the analysis."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from rankdrift import records
from rankdrift.errors import UserError
from rankdrift.layout import StudyLayout
from rankdrift.spec import parse_spec
from rankdrift.studies.subjects import folder_subjects, study_params, study_subjects


def test_folders_are_told_apart_by_their_parents(tmp_path: Path) -> None:
    folders = [tmp_path / run / "step-000004" for run in ("full", "lora")]
    for folder in folders:
        folder.mkdir(parents=True)
    records.write_json(folders[1] / "adapter_config.json", {"r": 16})
    base, full, lora = folder_subjects(tmp_path, folders)
    assert (base.run, base.tuned) == ("base", None)
    assert (full.run, full.method, full.rank) == ("full-step-000004", "full", 0)
    assert (lora.run, lora.method, lora.rank) == ("lora-step-000004", "lora", 16)
    assert folder_subjects(tmp_path, folders[:1])[1].run == "step-000004"


def test_the_same_folder_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="given twice"):
        folder_subjects(tmp_path, [tmp_path, tmp_path])


def test_a_study_gives_its_base_once_and_every_export(tiny: Path, tmp_path: Path) -> None:
    study = StudyLayout(tmp_path)
    for arm, method in (("full", "full"), ("lora-r4", "lora")):
        tree = {"arm": arm, "model": {"name": "tiny"}, "method": {"name": method, "rank": 4}}
        run = study.run(f"{arm}-seed42")
        records.write_json(run.spec, parse_spec(tree).as_dict())
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


def test_drift_inputs_are_prompts_and_are_not_rewritten(tiny: Path, tmp_path: Path) -> None:
    spec = parse_spec({"model": {"name": "tiny"}, "analysis": {"drift_rows": 5}})
    study = StudyLayout(tmp_path)
    params = study_params(study, spec, tiny)
    assert params.drift_inputs is not None
    rows = pd.read_parquet(params.drift_inputs)["input_ids"]
    assert len(rows) == 5
    from rankdrift.models.base import load_tokenizer
    from rankdrift.tasks.topic import TASK

    assert TASK.generate is not None
    prompts = [TASK.example(row).prompt for row in TASK.generate("validation")[:5]]
    assert [load_tokenizer(tiny).decode(list(ids)) for ids in rows] == prompts
    written = params.drift_inputs.stat().st_mtime_ns
    study_params(study, spec, tiny)
    assert params.drift_inputs.stat().st_mtime_ns == written
