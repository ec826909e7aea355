"""Examples as token ids: a prompt that carries no loss, then a target that does.

Prompt and target are tokenised apart, so the border between them is exact and a target's tokens do not depend
on the prompt. Prompts are cut here for training and scoring alike, by a length that does not depend on the
row's own target: what is scored is what was trained on. Rows whose target is lost would train nothing yet
look like success: they are counted and dropped.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from rankdrift.errors import UserError
from rankdrift.tasks import Example, Task

Head = Literal["lm", "classifier"]
GENERATED_SHARE = 4
"""A generation task's prompt leaves at least this part (a quarter) of the maximum length to its answer."""
NOTABLE = 0.01
"""Share of rows that lose tokens above which it is warned of."""


@dataclass(frozen=True, eq=False)
class Row:
    """One example in tokens."""

    input_ids: np.ndarray
    """Shape (length,), int32."""
    carries_loss: np.ndarray
    """Shape (length,), bool: the tokens the LM head learns to predict; never the first, as nothing does."""
    label: int | None
    """Class index; None for generation."""
    task: str
    index: int
    """Position of its example among the task's examples."""

    @property
    def prompt_length(self) -> int:
        """Tokens before the first that carries loss; all of them where none does."""
        return int(self.carries_loss.argmax()) if self.carries_loss.any() else len(self.input_ids)

    @property
    def target_tokens(self) -> int:
        """Tokens that carry loss."""
        return int(self.carries_loss.sum())


@dataclass(frozen=True)
class RowCounts:
    """What became of a task's examples."""

    rows: int
    """Examples that are used."""
    dropped: int
    """Left out because no token was left to learn from."""
    prompts_cut: int
    """Rows whose prompt lost its beginning to the maximum length."""
    targets_cut: int
    """Rows whose target lost its end to it."""


@dataclass(frozen=True)
class TokenizedRows:
    """The rows of a split, and what became of the others."""

    rows: list[Row]
    counts: dict[str, RowCounts]
    """By task."""


@dataclass(frozen=True)
class Prompts:
    """A task's prompts in tokens, cut to fit."""

    ids: list[list[int]]
    cut: list[bool]
    """Whether each lost its beginning."""
    special: int
    """Tokens of each that the tokenizer adds to every text."""


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, task: Task, prompts: Sequence[str], max_length: int, head: Head
) -> Prompts:
    """Return a task's prompts as a model meets them, in training and in scoring.

    With the tokenizer's BOS if it adds one and never an EOS; for a classifier as the tokenizer builds a text
    for it, [CLS] before and [SEP] behind. Longer ones lose their beginning, behind the BOS, so that the
    task's longest answer fits: the longest choice, or a quarter of ``max_length`` where one is generated.

    Raises
    ------
    UserError
        If no room is left for a prompt.

    """
    before, behind = _special_tokens(tokenizer, head)
    answer = _longest_answer(tokenizer, task, max_length, head)
    room = max_length - answer - len(before) - len(behind)
    if room <= 0:
        raise UserError(
            f"data.max_length={max_length} leaves no room for a prompt of task '{task.name}' beside "
            f"{answer} tokens of an answer and {len(before) + len(behind)} special ones; raise it"
        )
    plain = _plain(tokenizer, prompts)
    return Prompts(
        ids=[before + ids[-room:] + behind for ids in plain],
        cut=[len(ids) > room for ids in plain],
        special=len(before) + len(behind),
    )


def target_tokens(
    tokenizer: PreTrainedTokenizerBase, targets: Sequence[str], kind: Literal["classification", "generation"]
) -> list[list[int]]:
    """Return the token ids of targets; those of a generation task end with EOS, so that it learns to stop."""
    end = [_eos(tokenizer)] if kind == "generation" else []
    return [ids + end if ids else [] for ids in _plain(tokenizer, targets)]


def _special_tokens(tokenizer: PreTrainedTokenizerBase, head: Head) -> tuple[list[int], list[int]]:
    """Return what goes before a prompt and behind it: BOS; for a classifier also [CLS] and [SEP]."""
    special = list(tokenizer("").input_ids)
    starts = {tokenizer.bos_token_id} | ({tokenizer.cls_token_id} if head == "classifier" else set())
    before = special[:1] if special and special[0] in starts - {None} else []
    after = special[len(before) :]
    ends = tokenizer.sep_token_id is not None and after == [tokenizer.sep_token_id]
    return before, after if ends and head == "classifier" else []


def _longest_answer(tokenizer: PreTrainedTokenizerBase, task: Task, max_length: int, head: Head) -> int:
    if head == "classifier":
        return 0
    if task.kind == "generation":
        return -(-max_length // GENERATED_SHARE)
    return max(map(len, _plain(tokenizer, task.choices)), default=0)


def tokenize(
    examples: Sequence[Example], task: Task, tokenizer: PreTrainedTokenizerBase, max_length: int, head: Head
) -> TokenizedRows:
    """Return the rows of all examples of a task (:func:`tokenize_some`); raise UserError if none is left."""
    result = tokenize_some(examples, task, tokenizer, max_length, head)
    require_rows(task, result.counts[task.name], max_length)
    return result


def tokenize_some(
    examples: Sequence[Example],
    task: Task,
    tokenizer: PreTrainedTokenizerBase,
    max_length: int,
    head: Head,
    first: int = 0,
) -> TokenizedRows:
    """Return the rows of some of a task's examples, none longer than ``max_length`` tokens.

    ``first`` is the position of the first of them among the task's examples. A prompt is cut by
    :func:`encode_prompts`; a target loses its end where there is no room for it behind its prompt. The
    classifier's rows are the prompt only.

    Raises
    ------
    UserError
        If the classifier is asked to generate, or if the tokenizer lacks an EOS.

    """
    if head == "classifier" and task.kind != "classification":
        raise UserError(f"task '{task.name}' is {task.kind}: it needs model.head=lm, got classifier")
    prompts = encode_prompts(tokenizer, task, [example.prompt for example in examples], max_length, head)
    targets: list[list[int]] = [[] for _ in examples]
    if head == "lm":
        targets = target_tokens(tokenizer, [example.target for example in examples], task.kind)
    rows: list[Row] = []
    prompts_cut = targets_cut = 0
    for index, (example, prompt, target) in enumerate(zip(examples, prompts.ids, targets, strict=True)):
        ids = prompt + target[: max_length - len(prompt)]
        carries = np.arange(len(ids)) >= max(len(prompt), 1)
        row = Row(np.array(ids, dtype=np.int32), carries, example.label, task.name, first + index)
        if (row.target_tokens if head == "lm" else len(prompt) - prompts.special) > 0:
            rows.append(row)
            prompts_cut += prompts.cut[index]
            targets_cut += len(ids) < len(prompt) + len(target)
    counts = RowCounts(len(rows), len(examples) - len(rows), prompts_cut, targets_cut)
    return TokenizedRows(rows, {task.name: counts})


def require_rows(task: Task, counts: RowCounts, max_length: int) -> None:
    """Raise UserError if no row of a task is left."""
    if not counts.rows:
        raise UserError(
            f"task '{task.name}': none of its {counts.dropped} rows has a token to learn from at "
            f"data.max_length={max_length}; raise data.max_length or correct the targets"
        )


def losses(counts: dict[str, RowCounts], split: str, max_length: int) -> list[str]:
    """Return what is to be told of a split: rows dropped, and cut ones where they are more than 1 %."""
    return [
        f"task '{task}', {split}: {loss} at data.max_length={max_length}"
        for task, of in counts.items()
        for loss in _losses(of)
    ]


def _losses(of: RowCounts) -> Iterator[str]:
    if of.dropped:
        yield f"{of.dropped:,} of {of.rows + of.dropped:,} rows dropped, no token to learn from"
    for cut, loss in (
        (of.prompts_cut, "prompts lose their beginning"),
        (of.targets_cut, "targets lose their end"),
    ):
        if cut > NOTABLE * of.rows:
            yield f"{cut:,} of {of.rows:,} {loss} ({cut / of.rows:.1%})"


def _plain(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    return tokenizer(list(texts), add_special_tokens=False).input_ids if texts else []


def _eos(tokenizer: PreTrainedTokenizerBase) -> int:
    if tokenizer.eos_token_id is None:
        raise UserError(
            f"the tokenizer of {tokenizer.name_or_path or 'the model'} has no EOS token, which generation "
            "tasks end with: set eos_token in its tokenizer_config.json"
        )
    return tokenizer.eos_token_id
