"""A small byte-level BPE trained on the spot, with and without the special tokens that tokenizers add."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from made_tokenizers import made_tokenizer
from transformers import PreTrainedTokenizerBase


@pytest.fixture(scope="session")
def make_tokenizer() -> Callable[[str], PreTrainedTokenizerBase]:
    """Return a tokenizer by what it adds to a text: "none", "bos" or "bos_eos"."""
    return made_tokenizer


@pytest.fixture(scope="session")
def tokenizer() -> PreTrainedTokenizerBase:
    """Return the tokenizer that puts a BOS before a text."""
    return made_tokenizer("bos")
