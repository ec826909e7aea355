"""PEFT's names on disk, against PEFT's own ``get_peft_model_state_dict``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import families
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from transformers import LlamaForSequenceClassification

from rankdrift.errors import UserError
from rankdrift.export import peft_names
from rankdrift.zero_checkpoint.shards import open_checkpoint


def model(**options: Any) -> torch.nn.Module:
    lora = LoraConfig(task_type="SEQ_CLS", r=2, **options)
    return get_peft_model(LlamaForSequenceClassification(families.llama()), lora)


@pytest.mark.parametrize(
    "options",
    [
        {"target_modules": ["q_proj", "down_proj"]},
        {"target_modules": ["q_proj"], "use_dora": True},
        {"target_modules": ["q_proj", "embed_tokens"]},
        {"target_modules": ["default_proj", "q_proj"]},
        {"target_modules": ["q_proj"], "trainable_token_indices": [1, 4]},
    ],
    ids=str,
)
def test_names_equal_those_peft_saves(tmp_path: Path, zero: Any, options: dict[str, Any]) -> None:
    adapted = model(**options)
    official = get_peft_model_state_dict(adapted, save_embedding_layers=False)
    checkpoint = open_checkpoint(zero.save_stage_0(tmp_path, adapted.state_dict()))
    found = peft_names.adapter_tensors(checkpoint.tensors, tmp_path)
    assert set(found) == set(official)
    assert all(torch.equal(found[name].load(), official[name]) for name in official)


def test_a_module_called_default_keeps_its_name() -> None:
    name = "base_model.model.default.proj.lora_A.default.weight"
    assert peft_names.disk_name(name) == "base_model.model.default.proj.lora_A.weight"


def test_a_checkpoint_without_adapter_is_refused(tmp_path: Path, zero: Any, tensors: Any) -> None:
    checkpoint = open_checkpoint(zero.save_stage_0(tmp_path, tensors))
    with pytest.raises(UserError, match="no LoRA adapter named 'default'"):
        peft_names.adapter_tensors(checkpoint.tensors, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type='IA3'"),
        ({"bias": "all"}, "bias='all'"),
    ],
)
def test_what_is_not_exported_is_refused(changes: dict[str, Any], message: str) -> None:
    config = {"peft_type": "LORA", "bias": "none"}
    peft_names.check_config(config, Path("adapter_config.json"))
    with pytest.raises(UserError, match=message):
        peft_names.check_config(config | changes, Path("adapter_config.json"))
