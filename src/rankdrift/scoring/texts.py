"""Texts on which a checkpoint is compared with its base, token by token: general text, and tasks' prompts.

How far a model's predictions moved on the prompts it was trained for predicts how much it forgot
(arXiv 2509.04259); on general text it is what was forgotten.
"""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from rankdrift.data.general_text import TextWindow, load_windows
from rankdrift.scoring.items import TaskItems
from rankdrift.scoring.retention import GeneralText
from rankdrift.spec import Spec
from rankdrift.tasks.kinds import Classes, Completion, Continuation, Request, Tokens

GENERAL_TEXT = "general_text"
GENERAL_TEXT_VERSION = 2
"""Raised whenever the windows or their measures change: scores of two versions do not compare."""
PROMPTS = "_prompts"
"""What is put behind a task's name to name its prompts."""
PROMPT_TOKENS = 128
"""The last tokens of a prompt, as many as a window of general text has."""


def compared_texts(
    spec: Spec, tokenizer: PreTrainedTokenizerBase, trained: Sequence[TaskItems]
) -> dict[str, GeneralText]:
    """Return general text, and the prompts of each trained task, at most ``scoring.text_limit`` of each."""
    pad, limit = tokenizer.pad_token_id, spec.scoring.text_limit or spec.scoring.limit
    windows = load_windows(spec.data, tokenizer, limit)
    texts = {GENERAL_TEXT: tuple(windows)}
    for items in trained:
        found = prompt_windows(items, limit)
        if found:
            texts[items.task.name + PROMPTS] = found
    return {name: GeneralText(found, pad, spec.scoring.batch_tokens) for name, found in texts.items()}


def prompt_windows(items: TaskItems, limit: int | None) -> tuple[TextWindow, ...]:
    """Return the prompts of the first items that have one of at least two tokens; items share a document."""
    names = [
        example.document or str(index) for index, example in zip(items.indices, items.examples, strict=True)
    ]
    numbers = {name: number for number, name in enumerate(dict.fromkeys(names))}
    windows = [
        TextWindow(prompt[-PROMPT_TOKENS:], index, numbers[name], 0)
        for index, name, item in zip(items.indices, names, items.items, strict=True)
        if len(prompt := _prompt(item.requests)) > 1
    ]
    return tuple(windows[:limit])


def _prompt(requests: Sequence[Request]) -> Tokens:
    """Return what stands before an item's first answer."""
    match list(requests[:1]):
        case [Continuation(context=prompt) | Completion(prompt=prompt) | Classes(prompt=prompt)]:
            return prompt
    return ()
