"""Timed passes of a served model: the first token, each further one, and a classification."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rankdrift.serving.bank import Served

Clock = Callable[[], float]


def clock_of(device: str) -> Clock:
    """Return a clock that first waits until the device has done what it was given.

    Without that a GPU's times are those of giving it work, and adapters, which give it more and smaller work,
    look several times too dear (docs/serving.md).
    """
    if not device.startswith("cuda"):
        return time.perf_counter

    def synchronised() -> float:
        torch.cuda.synchronize(device)
        return time.perf_counter()

    return synchronised


@dataclass(frozen=True)
class Answer:
    """What a request took, and what came out."""

    first: float
    """Seconds until the first token of every row, or the classes."""
    further: tuple[float, ...]
    """Seconds of each further token of every row."""
    tokens: Tensor
    """(rows, tokens) that were chosen; of a classifier (rows, 1) the classes."""

    @property
    def seconds(self) -> float:
        """Of the whole request."""
        return self.first + sum(self.further)


@torch.inference_mode()
def generate(served: Served, prompt: Tensor, tokens: int, clock: Clock) -> Answer:
    """Continue (rows, positions) prompts by so many tokens, the likeliest each time; no row ends early."""
    began = clock()
    found = served(prompt, use_cache=True, logits_to_keep=1)
    chosen = [found.logits[:, -1:].argmax(-1)]
    first = clock() - began
    further = []
    for _ in range(tokens - 1):
        began = clock()
        found = served(chosen[-1], use_cache=True, past_key_values=found.past_key_values)
        chosen.append(found.logits[:, -1:].argmax(-1))
        further.append(clock() - began)
    return Answer(first, tuple(further), torch.cat(chosen, dim=1))


@torch.inference_mode()
def classify(served: Served, prompt: Tensor, tokens: int, clock: Clock) -> Answer:
    """Classify (rows, positions) texts; ``tokens`` is not used."""
    began = clock()
    logits = served(prompt).logits
    classes = logits.argmax(-1, keepdim=True)
    return Answer(clock() - began, (), classes)
