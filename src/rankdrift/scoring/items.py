"""What a task's checkpoints are scored on: the validation examples, one item an input, in tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from rankdrift.data.sources import load_examples
from rankdrift.data.tokens import encode_prompts, target_tokens
from rankdrift.errors import UserError
from rankdrift.spec import Spec
from rankdrift.tasks import Example, Task

Tokens = tuple[int, ...]


@dataclass(frozen=True)
class Item:
    """One input."""

    index: int
    """Position of its (first) example among the validation examples."""
    example: Example
    prompt: Tokens
    """The prompt's token ids, cut to fit."""


@dataclass(frozen=True)
class TaskItems:
    """All inputs of a task."""

    task: Task
    items: tuple[Item, ...]
    choices: tuple[Tokens, ...]
    """Token ids of a classification task's answers; empty for generation."""
    prompts_cut: int
    """Items whose prompt lost its beginning to ``data.max_length``."""

    @property
    def prompts(self) -> list[Tokens]:
        """The items' prompts."""
        return [item.prompt for item in self.items]


def task_items(spec: Spec, task: Task, tokenizer: PreTrainedTokenizerBase) -> TaskItems:
    """Return the first ``scoring.limit`` inputs of the validation split.

    Examples of one group are one input, which carries the references of all. Prompts are those of training
    (``encode_prompts``), cut alike.

    Raises
    ------
    UserError
        If the data cannot be used, two choices have the same tokens, or no room is left for a prompt.

    """
    distinct = _one_a_group(load_examples(task, "validation", spec.data))[: spec.scoring.limit]
    choices: list[Tokens] = []
    if spec.model.head == "lm" and task.kind == "classification":
        choices = [tuple(ids) for ids in target_tokens(tokenizer, task.choices, task.kind)]
        _check_choices(task, choices)
    texts = [example.prompt for _, example in distinct]
    prompts = encode_prompts(tokenizer, task, texts, spec.data.max_length, spec.model.head)
    items = [
        Item(index, example, tuple(prompt))
        for (index, example), prompt in zip(distinct, prompts.ids, strict=True)
    ]
    return TaskItems(task=task, items=tuple(items), choices=tuple(choices), prompts_cut=sum(prompts.cut))


def _one_a_group(examples: Sequence[Example]) -> list[tuple[int, Example]]:
    """Return the examples with their indices, of each group only the first; no group is a group of one."""
    first: dict[str | int, tuple[int, Example]] = {}
    for index, example in enumerate(examples):
        first.setdefault(example.group or index, (index, example))
    return list(first.values())


def _check_choices(task: Task, choices: Sequence[Tokens]) -> None:
    if not all(choices) or len(set(choices)) < len(choices):
        named = ", ".join(f"{text!r}: {ids}" for text, ids in zip(task.choices, choices, strict=True))
        raise UserError(
            f"task '{task.name}': the tokenizer cannot tell its choices apart ({named}); "
            "use another model, or model.head=classifier"
        )
