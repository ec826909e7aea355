"""What to change where memory does not suffice."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

from rankdrift.errors import UserError
from rankdrift.spec import Spec


@contextlib.contextmanager
def explained(spec: Spec, stage: int, ranks: int) -> Iterator[None]:
    """Turn an error of the allocator into one UserError that says what would need less."""
    try:
        yield
    except RuntimeError as error:  # torch.OutOfMemoryError is one; the CPU's allocator raises it plain
        if not _is_of_memory(error):
            raise
        first = str(error).strip().splitlines()[0]
        raise UserError(f"out of memory ({first}); {'; or '.join(remedies(spec, stage, ranks))}") from error


def remedies(spec: Spec, stage: int, ranks: int) -> list[str]:
    """Return what would need less memory, what costs least first."""
    training, model = spec.training, spec.model
    found = []
    if training.micro_batch_tokens:
        found.append(f"lower training.micro_batch_tokens (now {training.micro_batch_tokens})")
    elif training.micro_batch != "auto" and training.micro_batch > 1:
        found.append(f"lower training.micro_batch (now {training.micro_batch}), or set it to auto")
    if model.gradient_checkpointing is not True:
        found.append("set model.gradient_checkpointing=true, which computes activations twice")
    if stage < 3 and ranks > 1:
        found.append(f"use a higher ZeRO stage (now {stage}; --config ds_configs/zero3.json)")
    if torch.cuda.is_available():
        found.append(f"offload the optimizer (--config ds_configs/zero{max(2, stage)}_offload.json)")
    found.append(f"lower data.max_length (now {spec.data.max_length})")
    if spec.method.name == "full":
        found.append("train an adapter (method.name=lora)")
    return found


def _is_of_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error)
