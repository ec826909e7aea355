"""What answering requests needs of a tokenizer: what pads, what ends a text, and how tokens read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Detokenizer:
    """The part of a tokenizer that scoring needs."""

    pad_id: int
    """Fills up the rows of a batch; no answer depends on which token it is."""
    eos_ids: frozenset[int]
    """Tokens that end a completion and are no part of it."""
    decode: Callable[[Sequence[int]], str]
    """Turns a completion's tokens into text."""

    @classmethod
    def of(cls, tokenizer: PreTrainedTokenizerBase) -> Detokenizer:
        """Take them from a tokenizer that has a padding token."""
        assert tokenizer.pad_token_id is not None, "the tokenizer was loaded without a padding token"
        ends = {tokenizer.eos_token_id} - {None}

        def decode(tokens: Sequence[int]) -> str:
            return str(tokenizer.decode(list(tokens), skip_special_tokens=True))

        return cls(tokenizer.pad_token_id, frozenset(ends), decode)
