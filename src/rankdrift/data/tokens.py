"""Examples as token ids: a prompt that carries no loss, then a target that does.

Prompt and target are tokenised apart, so the border between them is exact and a target's tokens do not depend
on the prompt. Rows whose target is lost would train nothing yet look like success: they are counted and
dropped.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from rankdrift.errors import UserError
from rankdrift.tasks import Example, Task

logger = logging.getLogger(__name__)

Head = Literal["lm", "classifier"]


@dataclass(frozen=True, eq=False)
class Row:
    """One example in tokens."""

    input_ids: np.ndarray
    """Shape (length,), int32: the prompt, then the target."""
    prompt_length: int
    """Leading tokens that carry no loss; at least 1, as nothing predicts a row's first token."""
    label: int | None
    """Class index; None for generation."""
    task: str
    index: int
    """Position of its example among the task's examples."""

    @property
    def target_tokens(self) -> int:
        """Tokens that carry loss under the LM head."""
        return len(self.input_ids) - self.prompt_length


@dataclass(frozen=True)
class TokenizedRows:
    """The rows of a split, and what became of the others."""

    rows: list[Row]
    dropped: int
    """Rows left out because no token was left to learn from."""
    truncated: int
    """Kept rows that lost tokens to the maximum length."""


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Return the token ids of prompts, with the tokenizer's BOS if it adds one and never an EOS."""
    start = leading_bos(tokenizer)
    return [start + ids for ids in _plain(tokenizer, prompts)]


def target_tokens(
    tokenizer: PreTrainedTokenizerBase, targets: Sequence[str], kind: Literal["classification", "generation"]
) -> list[list[int]]:
    """Return the token ids of targets; those of a generation task end with EOS, so that it learns to stop."""
    end = [_eos(tokenizer)] if kind == "generation" else []
    return [ids + end if ids else [] for ids in _plain(tokenizer, targets)]


def leading_bos(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the BOS token that the tokenizer puts before a text, or nothing."""
    special = list(tokenizer("").input_ids)
    return special[:1] if special and special[0] == tokenizer.bos_token_id else []


def tokenize(
    examples: Sequence[Example], task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int, head: Head
) -> TokenizedRows:
    """Return the rows of a task's examples, none longer than ``max_length`` tokens.

    A prompt is cut from the left, behind its BOS, to make room for the target; a target is cut from the right
    only where it is too long alone. The classifier's rows are the prompt only.

    Raises
    ------
    UserError
        If no row is left, if the classifier is asked to generate, or if the tokenizer lacks an EOS.

    """
    if head == "classifier" and task.kind != "classification":
        raise UserError(f"task '{task.name}' is {task.kind}: it needs model.head=lm, got classifier")
    start = len(leading_bos(tokenizer))
    prompts = prompt_tokens(tokenizer, [example.prompt for example in examples])
    targets: list[list[int]] = [[] for _ in examples]
    if head == "lm":
        targets = target_tokens(tokenizer, [example.target for example in examples], task.kind)
    rows, truncated = [], 0
    for index, (example, prompt, target) in enumerate(zip(examples, prompts, targets, strict=True)):
        prompt_length, ids = _fit(prompt, target, start, max_length)
        row = Row(np.array(ids, dtype=np.int32), prompt_length, example.label, task.name, index)
        if (row.target_tokens if head == "lm" else len(ids) - start) > 0:
            rows.append(row)
            truncated += len(ids) < len(prompt) + len(target)
    _report(task, len(examples), len(rows), max_length)
    return TokenizedRows(rows, dropped=len(examples) - len(rows), truncated=truncated)


def _fit(prompt: list[int], target: list[int], start: int, max_length: int) -> tuple[int, list[int]]:
    """Return the length of the prompt and all ids, cut to fit; ``start`` leading prompt tokens stay."""
    target = target[: max(max_length - max(start, 1), 0)]
    room = max(max_length - len(target) - start, 0)
    kept = prompt[:start] + prompt[max(start, len(prompt) - room) :]
    return max(len(kept), 1), kept + target


def _report(task: Task, examples: int, kept: int, max_length: int) -> None:
    if not kept:
        raise UserError(
            f"task '{task.name}': none of its {examples} rows has a token to learn from at "
            f"data.max_length={max_length}; raise data.max_length or correct the targets"
        )
    if kept < examples:
        logger.warning(
            "task '%s': %d of %d rows dropped, no token to learn from at data.max_length=%d",
            task.name,
            examples - kept,
            examples,
            max_length,
        )


def _plain(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    return tokenizer(list(texts), add_special_tokens=False).input_ids if texts else []


def _eos(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path or 'the model'} has no EOS token, which generation "
            "tasks end with: set eos_token in its tokenizer_config.json"
        )
    return tokenizer.eos_token_id
