"""Tiny Llama models and adapters, saved the way transformers and PEFT save them."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

Q_PROJ = "model.layers.0.self_attn.q_proj"


def tiny_llama(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=64,
        tie_word_embeddings=True,
    )
    return LlamaForCausalLM(config)


def perturb(parameters: Any, scale: float) -> None:
    with torch.no_grad():
        for parameter in parameters:
            parameter.add_(scale * torch.randn_like(parameter))


@dataclass(frozen=True)
class Models:
    """A base model's folder, and makers of folders tuned from it."""

    root: Path

    @property
    def base(self) -> Path:
        return self.root / "base"

    @property
    def full(self) -> Path:
        return self.root / "full"

    def adapted(self, **settings: Any) -> PeftModel:
        """Return the base with an adapter that has learnt nothing."""
        return get_peft_model(LlamaForCausalLM.from_pretrained(self.base), LoraConfig(**settings))

    def adapter(self, name: str, **settings: Any) -> tuple[Path, PeftModel]:
        """Save an adapter with random factors; return its folder and the model it is in."""
        model = self.adapted(**settings)
        torch.manual_seed(1)
        perturb((p for p in model.parameters() if p.requires_grad), 0.05)
        model.save_pretrained(self.root / name)
        return self.root / name, model


@pytest.fixture(scope="session")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    made = Models(tmp_path_factory.mktemp("models"))
    model = tiny_llama()
    model.save_pretrained(made.base)
    perturb(model.parameters(), 0.003)
    model.save_pretrained(made.full)
    return made


@pytest.fixture(scope="session")
def lora(models: Models) -> Path:
    return models.adapter("lora", r=4, lora_alpha=8, target_modules=["q_proj", "v_proj", "down_proj"])[0]


@pytest.fixture
def one_matrix(tmp_path: Path) -> Callable[[str, np.ndarray], Path]:
    """Return save(name, W): a model folder with nothing but layer 0's q_proj."""

    def save(name: str, matrix: np.ndarray) -> Path:
        (tmp_path / name).mkdir()
        weight = torch.tensor(matrix, dtype=torch.float32)
        save_file({f"{Q_PROJ}.weight": weight}, tmp_path / name / "model.safetensors")
        return tmp_path / name

    return save


@pytest.fixture
def edited(tmp_path: Path) -> Callable[..., Path]:
    """Return edit(folder, config=..., **tensors): a copy with settings and tensors changed (None removes)."""

    def edit(folder: Path, config: dict[str, Any] | None = None, **tensors: torch.Tensor | None) -> Path:
        copy = tmp_path / "edited"
        copy.mkdir()
        for source in folder.iterdir():
            if source.suffix == ".safetensors":
                kept = load_file(source) | {name.replace("__", "."): value for name, value in tensors.items()}
                save_file({k: v for k, v in kept.items() if v is not None}, copy / source.name)
            elif source.suffix == ".json":
                changed = config if config and source.name.startswith("adapter") else {}
                (copy / source.name).write_text(json.dumps(json.loads(source.read_text()) | changed))
        return copy

    return edit
