"""What a task's checkpoints are scored on: the examples of a split, one item an input, in tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from rankdrift import registry
from rankdrift.data.dataset import codec_of
from rankdrift.data.sources import load_examples
from rankdrift.spec import Spec
from rankdrift.tasks import Example, Split, Task
from rankdrift.tasks.kinds import Codec, Completion, Item, Request


@dataclass(frozen=True)
class TaskItems:
    """All inputs of a task in a split."""

    task: Task
    split: Split
    indices: tuple[int, ...]
    """Of each item, the position of its (first) example in the split."""
    examples: tuple[Example, ...]
    items: tuple[Item, ...]

    @property
    def requests(self) -> list[Request]:
        """Everything that is asked of a model, item after item."""
        return [request for item in self.items for request in item.requests]

    @property
    def prompts_cut(self) -> int:
        """Items whose prompt lost tokens to the maximum length."""
        return sum(item.cut for item in self.items)


def task_items(
    spec: Spec, task: Task, split: Split, tokenizer: PreTrainedTokenizerBase, context: int
) -> TaskItems:
    """Return the first ``scoring.limit`` inputs of a split.

    Examples of one group are one input, which carries the references of all. A trained task's prompts are
    those of training, cut alike; those of others may be as long as the model reads (``context`` tokens).

    Raises
    ------
    UserError
        If the data cannot be used, two choices have the same tokens, or no room is left for a prompt.

    """
    numbered = _one_a_group(load_examples(task, split, spec.data))[: spec.scoring.limit]
    examples = tuple(example for _, example in numbered)
    codec = scoring_codec(spec, task, tokenizer, context)
    task.kind.require_head(task, codec.head)
    items = task.kind.items(task, examples, codec)
    if spec.scoring.max_new_tokens is not None:
        items = [_shortened(item, spec.scoring.max_new_tokens) for item in items]
    return TaskItems(task, split, tuple(index for index, _ in numbered), examples, tuple(items))


def scoring_codec(spec: Spec, task: Task, tokenizer: PreTrainedTokenizerBase, context: int) -> Codec:
    """Return how a task's texts become tokens when they are scored."""
    if task.name in trained_names(spec):
        return codec_of(spec, task, tokenizer)
    return Codec(tokenizer, min(spec.scoring.max_length or context, context), spec.model.head)


def trained_names(spec: Spec) -> tuple[str, ...]:
    """Return the names of the tasks that are trained on; a file's is in it."""
    return tuple(registry.load("task", name).name for name in spec.data.tasks)


def _one_a_group(examples: Sequence[Example]) -> list[tuple[int, Example]]:
    """Return the examples with their indices, of each group only the first; no group is a group of one."""
    first: dict[str | int, tuple[int, Example]] = {}
    for index, example in enumerate(examples):
        first.setdefault(example.group or index, (index, example))
    return list(first.values())


def _shortened(item: Item, most: int) -> Item:
    """Return an item whose answers are at most so many tokens long."""
    requests = (
        dataclasses.replace(request, max_new_tokens=min(most, request.max_new_tokens))
        if isinstance(request, Completion)
        else request
        for request in item.requests
    )
    return dataclasses.replace(item, requests=tuple(requests))
