"""Models and adapters from anywhere: what they are compared with, and a base that is loaded once."""

from __future__ import annotations

import json

import pandas as pd
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from rankdrift.cli.main import main
from rankdrift.data.general_text import TextWindow
from rankdrift.errors import UserError
from rankdrift.models.base import load_model, load_tokenizer
from rankdrift.scoring import models as scoring_models
from rankdrift.scoring.folders import score_folders
from rankdrift.scoring.models import Models
from rankdrift.scoring.retention import GeneralText, Reference, measure_windows
from rankdrift.spec import ModelSpec, parse_spec

IDS = torch.arange(5, 25)[None]


@pytest.fixture(scope="module")
def folders(tmp_path_factory, tiny):
    """Two adapters of one base, one that trains its head as well, and a whole model."""
    root = tmp_path_factory.mktemp("anywhere")
    for seed, name in enumerate(("one", "two", "headed", "on the head")):
        torch.manual_seed(seed)
        saved = ["lm_head"] if name == "headed" else None
        targets = ["lm_head"] if name == "on the head" else ["q_proj", "up_proj"]
        config = LoraConfig(r=2, target_modules=targets, init_lora_weights=False, modules_to_save=saved)
        model = get_peft_model(load_model(tiny, ModelSpec()), config)
        model.peft_config["default"].init_lora_weights = True  # as it is where an adapter was trained
        model.peft_config["default"].base_model_name_or_path = str(tiny)
        model.save_pretrained(str(root / name))
    whole = load_model(tiny, ModelSpec())
    whole.model.norm.weight.data *= 1.5
    whole.save_pretrained(root / "whole")
    load_tokenizer(tiny).save_pretrained(root / "whole")
    return root


def a_spec(**scoring):
    settings = {"tasks": ["topic"], "limit": 4, **scoring}
    return parse_spec({"model": {"name": "tiny"}, "data": {"tasks": []}, "scoring": settings})


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits.clone()


@pytest.mark.parametrize("merge", [True, False])
def test_models_are_the_same_whatever_was_loaded_before(folders, tiny, merge, monkeypatch):
    loads = []
    monkeypatch.setattr(
        scoring_models, "load_model", lambda *given: loads.append(given[0]) or load_model(*given)
    )
    models = Models(a_spec(merge=merge), tiny)
    names = ("one", "two", "headed", "one", "whole", "two")
    found = [logits(models.load(folders / name)) for name in names[:2]]
    base = logits(models.load(tiny))
    assert torch.equal(base, logits(load_model(tiny, ModelSpec()).eval()))
    assert len(loads) == 1
    found += [logits(models.load(folders / name)) for name in names[2:]]
    for name, value in zip(names, found, strict=True):
        if name == "whole":
            expected = logits(load_model(folders / name, ModelSpec()).eval())
        else:
            expected = logits(PeftModel.from_pretrained(load_model(tiny, ModelSpec()), folders / name).eval())
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)
        assert not torch.allclose(value, base, atol=1e-3)


@pytest.mark.parametrize("name", ["one", "on the head"])
def test_what_is_compared_with_is_the_base_and_not_what_became_of_it(folders, tiny, name):
    windows = (TextWindow(tuple(range(5, 25)), 0, 0, 0), TextWindow(tuple(range(40, 52)), 1, 1, 0))
    text = GeneralText(windows, 0, 100)
    models = Models(a_spec(), tiny)
    reference = Reference.of(models.load(tiny), text)
    found = measure_windows(models.load(folders / name), text, reference)
    apart = PeftModel.from_pretrained(load_model(tiny, ModelSpec()), folders / name).merge_and_unload()
    reference = Reference.of(load_model(tiny, ModelSpec()).eval(), text)
    expected = measure_windows(apart.eval(), text, reference)
    pd.testing.assert_frame_equal(found, expected, rtol=1e-4)
    assert found["kl_from_base"].min() > 1e-4


def test_in_bf16_a_model_is_rounded_once_it_is_merged(folders, tiny):
    models = Models(a_spec(precision="bf16"), tiny)
    base, found = models.load(tiny), models.load(folders / "one")
    merged = PeftModel.from_pretrained(load_model(tiny, ModelSpec()), folders / "one").merge_and_unload()
    expected = {name: value.bfloat16() for name, value in merged.state_dict().items()}
    assert all(torch.equal(value, expected[name]) for name, value in found.state_dict().items())
    assert base.dtype == torch.bfloat16
    assert not torch.equal(logits(base), logits(found))


def test_adapters_are_compared_with_the_base_they_name(folders, tiny, tmp_path):
    said = []
    paths = score_folders([folders / "one", folders / "two"], a_spec(), None, True, tmp_path, said.append)
    scores = [json.loads(path.read_text()) for path in paths]
    assert [path.parent.parent.name for path in paths] == ["base", "one", "two"]
    moved = [score["tasks"]["general_text"]["metrics"]["kl_from_base"]["value"] for score in scores]
    assert moved[0] == 0
    assert min(moved[1:]) > 1e-4
    assert score_folders([folders / "one"], a_spec(), None, False, tmp_path, said.append) == paths[1:2]
    assert said[-1] == "one: scores are up to date"
    items = pd.read_parquet(tmp_path / "one" / "scores" / "step-000000.topic.parquet")
    assert items["prompt_digest"].str.len().eq(64).all()


def test_validation_stands_beside(folders, tmp_path):
    spec = a_spec(splits=["validation", "test"])
    validation, test = score_folders([folders / "one"], spec, None, False, tmp_path, lambda line: None)
    assert (validation.name, test.name) == ("step-000000.validation.json", "step-000000.json")
    assert list(json.loads(validation.read_text())["tasks"]) == ["topic"]
    prompts = [
        set(pd.read_parquet(path.with_suffix(".topic.parquet"))["prompt_digest"])
        for path in (validation, test)
    ]
    assert not prompts[0] & prompts[1]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{}/none", "--tasks", "topic"], "none: no such folder"),
        (["{}/one", "{}/one", "--tasks", "topic"], "two folders of one name"),
        (["{}/one", "--tasks", "topik"], "unknown task 'topik': did you mean 'topic'?"),
        (["{}/one", "--tasks", "topic", "--limit", "0"], "scoring.limit=0"),
    ],
)
def test_what_cannot_be_scored_is_told(folders, tmp_path, capsys, arguments, message):
    filled = [argument.replace("{}", str(folders)) for argument in arguments]
    assert main(["score", *filled, "--output", str(tmp_path)]) == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_adapters_of_several_bases_need_one_to_be_named(folders, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "elsewhere/model"}))
    with pytest.raises(UserError, match=r"of different base models .*; name one with --model"):
        score_folders([folders / "one", other], a_spec(), None, False, tmp_path, print)
