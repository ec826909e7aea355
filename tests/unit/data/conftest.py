"""A small byte-level BPE trained on the spot, with and without the special tokens that tokenizers add."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

CORPUS = [
    "The river rose in the night and the old mill stood in the water.",
    "She sold the mill and bought a boat. Topic: business nature",
    "name: Otter Way | length: 9 km. Description: Otter Way runs for 9 km.",
]
TEMPLATES = {"none": None, "bos": "<s> $A", "bos_eos": "<s> $A </s>"}


@lru_cache
def build_tokenizer(adds: str) -> PreTrainedTokenizerBase:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=320,
            special_tokens=["<s>", "</s>", "<pad>"],
            initial_alphabet=alphabet,
            show_progress=False,
        ),
    )
    if template := TEMPLATES[adds]:
        special = [(token, core.token_to_id(token)) for token in ("<s>", "</s>")]
        core.post_processor = processors.TemplateProcessing(single=template, special_tokens=special)
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    return PreTrainedTokenizerFast(tokenizer_object=core, **names)


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[[str], PreTrainedTokenizerBase]:
    """Return a tokenizer by what it adds to a text: "none", "bos" or "bos_eos"."""
    return build_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """Return the tokenizer that puts a BOS before a text."""
    return build_tokenizer("bos")
