"""A run's scores: files and their schema, agreement with what they are made of, and doing nothing twice."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file

from rankdrift import files
from rankdrift.cli.main import main
from rankdrift.errors import UserError
from rankdrift.layout import StudyLayout
from rankdrift.models.base import load_model, load_tokenizer
from rankdrift.scoring.run import score_run
from rankdrift.spec import ModelSpec, parse_spec

LIMIT = 12
TEXT_METRICS = ["nll", "perplexity", "kl_from_base", "kl_to_base", "top1_agreement"]


def settings(**model):
    return {
        "model": {"name": "tiny", **model},
        "data": {"tasks": ["topic"], "max_length": 96},
        "scoring": {"limit": LIMIT, "text_limit": 6, "batch_tokens": 400, "max_new_tokens": 5},
    }


@pytest.fixture(scope="module")
def template(tmp_path_factory, tiny):
    """A study whose run has a LoRA export at step 2 and a full one at step 4, scored with its base."""
    study = StudyLayout(tmp_path_factory.mktemp("scored"))
    run = study.run("lora-r8-seed42")
    files.write_json(run.spec, parse_spec(settings()).as_dict())
    changed = load_model(tiny, ModelSpec())
    torch.manual_seed(0)
    for parameter in changed.parameters():
        parameter.data += 0.02 * torch.randn_like(parameter)
    changed.save_pretrained(run.export(4))
    lora = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(load_model(tiny, ModelSpec()), lora).save_pretrained(str(run.export(2)))
    score_run(run, [], base=True, progress=lambda line: None)
    return study.root


@pytest.fixture
def study(template, tmp_path):
    """A copy of the scored study, times of change included."""
    return StudyLayout(Path(shutil.copytree(template, tmp_path / "study")))


@pytest.fixture
def run(study):
    return study.run("lora-r8-seed42")


def rescored(run, *arguments):
    """Score again; return the names of the score files that were written anew."""
    study = StudyLayout(run.root.parent.parent)
    files = [*study.base.rglob("*.json"), *run.scores.glob("*.json")]
    before = {file: file.stat().st_mtime_ns for file in files}
    score_run(run, *arguments, progress=lambda line: None)
    return sorted(file.name for file in files if file.stat().st_mtime_ns != before[file])


@pytest.mark.parametrize("step", [2, 4])
def test_scores_have_the_schema_and_follow_from_the_items(run, step):
    scores = json.loads(run.score(step).read_text())
    assert (scores["step"], scores["model"].endswith(f"exports/step-00000{step}")) == (step, True)
    topic = scores["tasks"]["topic"]
    items = pd.read_parquet(run.score_items(step, "topic"))
    assert topic["n"] == len(items) == LIMIT
    accuracy = items["correct"].mean()
    assert topic["metrics"]["accuracy"]["value"] == pytest.approx(accuracy)
    error = math.sqrt(accuracy * (1 - accuracy) / (LIMIT - 1))
    assert topic["metrics"]["accuracy"]["stderr"] == pytest.approx(error)
    assert 0 < topic["metrics"]["f1"]["stderr"] < 0.5
    majority = items["label"].value_counts().max() / LIMIT
    assert topic["baselines"]["accuracy"]["majority"] == pytest.approx(majority)
    assert topic["baselines"]["accuracy"]["random"] == pytest.approx(1 / 4, abs=0.05)
    assert (topic["role"], topic["metrics"]["accuracy"]["best"]) == ("trained", 1.0)
    assert (scores["canary"]["moved"], scores["canary"]["texts_changed"]) == (False, 0)
    likelihoods = np.stack(items["log_likelihoods"])
    assert (likelihoods.argmax(-1) == items["prediction"]).all()
    assert (items["correct"] == (items["label"] == items["prediction"])).all()


@pytest.mark.parametrize("step", [2, 4])
def test_general_text_follows_from_its_windows(run, step):
    text = json.loads(run.score(step).read_text())["tasks"]["general_text"]
    windows = pd.read_parquet(run.score_items(step, "general_text"))
    assert text["n"] == len(windows) == 6
    assert list(text["metrics"]) == TEXT_METRICS
    assert (text["role"], text["metrics"]["nll"]["best"]) == ("text", None)
    value = {name: estimate["value"] for name, estimate in text["metrics"].items()}
    assert value["nll"] == pytest.approx(windows["nll"].sum() / windows["tokens"].sum())
    assert value["perplexity"] == pytest.approx(math.exp(value["nll"]))
    assert value["kl_from_base"] > 0
    better = {name: estimate["higher_is_better"] for name, estimate in text["metrics"].items()}
    assert better == {name: name == "top1_agreement" for name in TEXT_METRICS}


def test_the_base_is_scored_in_the_studys_folder_and_has_not_moved(study):
    scores = json.loads((study.base / "scores" / "step-000000.json").read_text())
    metrics = scores["tasks"]["general_text"]["metrics"]
    assert (scores["step"], metrics["kl_from_base"]["value"], metrics["top1_agreement"]["value"]) == (0, 0, 1)


def test_scores_that_are_up_to_date_are_left_alone(run):
    assert rescored(run, [], True) == []


def test_a_new_export_a_new_setting_or_a_lost_table_is_scored_again(run):
    weights = run.export(2) / "adapter_model.safetensors"
    weights.touch()
    assert rescored(run, [], True) == []  # the same weights
    save_file({name: 1.5 * value for name, value in load_file(weights).items()}, weights)
    assert rescored(run, [], True) == ["step-000002.json"]
    run.score_items(4, "topic").unlink()
    assert rescored(run, [], False) == ["step-000004.json"]
    changed = settings()
    changed["scoring"]["limit"] = 5
    files.write_json(run.spec, parse_spec(changed).as_dict())
    assert rescored(run, [4], False) == ["step-000004.json"]
    assert len(pd.read_parquet(run.score_items(4, "topic"))) == 5


def test_tokens_at_once_change_neither_numbers_nor_whether_they_are_current(run):
    before = pd.read_parquet(run.score_items(2, "general_text"))
    changed = settings()
    changed["scoring"]["batch_tokens"] = 96
    files.write_json(run.spec, parse_spec(changed).as_dict())
    assert rescored(run, [2], False) == []
    run.score(2).unlink()
    score_run(run, [2], False, progress=lambda line: None)
    after = pd.read_parquet(run.score_items(2, "general_text"))
    pd.testing.assert_frame_equal(after, before, rtol=1e-4, atol=1e-4)


def test_a_generation_task_stores_texts_and_references(run):
    changed = settings()
    changed["data"]["tasks"] = ["describe"]
    files.write_json(run.spec, parse_spec(changed).as_dict())
    score_run(run, [2], False, progress=lambda line: None)
    items = pd.read_parquet(run.score_items(2, "describe"))
    assert len(items) == LIMIT
    assert items["prediction"].map(type).eq(str).all()
    assert items["references"].map(len).ge(1).all()
    bleu = json.loads(run.score(2).read_text())["tasks"]["describe"]["metrics"]["bleu"]
    assert bleu["higher_is_better"]


def test_a_task_that_was_not_trained_on_is_retention(run):
    changed = settings()
    changed["scoring"]["tasks"] = ["topic", "describe"]
    files.write_json(run.spec, parse_spec(changed).as_dict())
    score_run(run, [2], False, progress=lambda line: None)
    tasks = json.loads(run.score(2).read_text())["tasks"]
    roles = {name: score["role"] for name, score in tasks.items()}
    assert roles == {
        "topic": "trained",
        "describe": "retention",
        "general_text": "text",
        "topic_prompts": "text",
    }


def test_a_classifier_is_scored_without_general_text(study, tiny):
    run = study.run("full-seed1")
    spec = parse_spec(settings(head="classifier"))
    files.write_json(run.spec, spec.as_dict())
    load_model(tiny, spec.model, num_labels=4).save_pretrained(run.export(1))
    load_tokenizer(tiny).save_pretrained(run.export(1))
    score_run(run, [], False, progress=lambda line: None)
    scores = json.loads(run.score(1).read_text())
    assert list(scores["tasks"]) == ["topic"]
    items = pd.read_parquet(run.score_items(1, "topic"))
    np.testing.assert_allclose(np.exp(np.stack(items["log_likelihoods"])).sum(-1), 1, rtol=1e-5)


@pytest.mark.parametrize(("steps", "named"), [([3], r"step 3 \(there: 2, 4\)"), ([2, 9], "step 9")])
def test_a_step_without_export_is_an_error(run, steps, named):
    with pytest.raises(UserError, match=named):
        score_run(run, steps, False, progress=print)


def test_a_diverged_checkpoint_is_an_error(run):
    model = load_model(run.export(4), ModelSpec())
    model.model.norm.weight.data.fill_(float("nan"))
    model.save_pretrained(run.export(4))
    with pytest.raises(UserError, match=r"step-000004: .*'topic' are not finite"):
        score_run(run, [4], False, progress=print)


def test_the_command_scores_and_says_what_it_did(run, capsys):
    assert main(["score", str(run.root), "--step", "2", "--base"]) == 0
    assert capsys.readouterr().out.count("up to date") == 2
    run.score(2).unlink()
    assert main(["score", str(run.root), "--step", "2"]) == 0
    assert "step 2: topic: 5 of 12 prompts lost tokens, accuracy 0." in capsys.readouterr().out
    assert main(["score", str(run.root), "--step", "3"]) == 2
    assert "no export of step 3" in capsys.readouterr().err
