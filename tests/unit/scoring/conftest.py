"""A small random Llama with sharp, varied predictions, and token sequences of unequal lengths."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

VOCABULARY = 97
PAD, EOS = 0, 1


def small_config(**changes):
    shape = {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "initializer_range": 0.3,
        "pad_token_id": PAD,
        "eos_token_id": EOS,
        "bos_token_id": None,
    }
    return LlamaConfig(**(shape | changes))


def small_model(seed, model_class=LlamaForCausalLM, **changes):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return model_class(small_config(**changes)).eval()


@pytest.fixture(scope="session")
def model():
    return small_model(1)


@pytest.fixture(scope="session")
def other():
    return small_model(2)


@pytest.fixture(scope="session")
def build():
    """Builds a model from a seed, a class and changes of the configuration."""
    return small_model


@pytest.fixture(scope="session")
def prompts():
    generator = torch.Generator().manual_seed(5)
    return [
        tuple(torch.randint(2, VOCABULARY, (length,), generator=generator).tolist())
        for length in (3, 11, 1, 7, 7, 16, 2, 9)
    ]
