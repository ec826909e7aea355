"""What answering requests needs of a tokenizer: what pads, what ends a text, and how tokens read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jinja2
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
        """Take them from a tokenizer that has a padding token; its chat template may end turns otherwise."""
        assert tokenizer.pad_token_id is not None, "the tokenizer was loaded without a padding token"
        ends = {tokenizer.eos_token_id, end_of_turn(tokenizer)} - {None}

        def decode(tokens: Sequence[int]) -> str:
            return str(tokenizer.decode(list(tokens), skip_special_tokens=True))

        return cls(tokenizer.pad_token_id, frozenset(ends), decode)


def end_of_turn(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the special token that the chat template writes behind what the assistant says, if it does."""
    if not tokenizer.chat_template:
        return None
    said = "Yes"
    turns = [{"role": "user", "content": "No?"}, {"role": "assistant", "content": said}]
    try:
        text = str(tokenizer.apply_chat_template(turns, tokenize=False))
    except (jinja2.TemplateError, ValueError, TypeError):  # who needs the template is told by chats
        return None
    behind = tokenizer(text.rpartition(said)[2].lstrip(), add_special_tokens=False)["input_ids"]
    return int(behind[0]) if behind and behind[0] in tokenizer.all_special_ids else None
