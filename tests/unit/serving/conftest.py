"""Tuned models of the tiny model: adapters with drawn values, and a whole one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rankdrift.serving.bank import Bank, Place
from rankdrift.serving.deployed import Tuned
from rankdrift.spec import ModelSpec

MakeAdapter = Callable[..., Tuned]


@pytest.fixture(scope="session")
def make_adapter(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> MakeAdapter:
    def make(arm: str, scale: float = 0.05, labels: int = 0, **settings: object) -> Tuned:
        torch.manual_seed(len(arm))
        model = (
            AutoModelForSequenceClassification.from_pretrained(tiny, num_labels=labels, pad_token_id=0)
            if labels
            else AutoModelForCausalLM.from_pretrained(tiny)
        )
        chosen = {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "up_proj"], **settings}
        task = "SEQ_CLS" if labels else "CAUSAL_LM"
        adapted = get_peft_model(model, LoraConfig(task_type=task, **chosen))
        with torch.no_grad():
            for name, parameter in adapted.named_parameters():
                if "lora_B" in name:
                    parameter.normal_(std=scale)
        folder = tmp_path_factory.mktemp(arm)
        adapted.save_pretrained(folder)
        return Tuned(arm, folder)

    return make


@pytest.fixture(scope="session")
def adapter(make_adapter: MakeAdapter) -> Tuned:
    return make_adapter("lora-r4")


@pytest.fixture
def bank(tiny: Path, tmp_path: Path) -> Bank:
    return Bank(Place(tiny, ModelSpec(name="tiny")), tmp_path / "planted", 3)


@pytest.fixture(scope="session")
def prompt() -> torch.Tensor:
    """(rows, positions) tokens of the tiny model."""
    return torch.randint(1, 200, (4, 12), generator=torch.Generator().manual_seed(3))
