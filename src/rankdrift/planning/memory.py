"""The memory of a rank under ZeRO, in closed form: what is always there, and what a moment of a step adds.

Symbols: ``T`` elements that train, ``F`` frozen ones, ``n`` ranks, ``w`` bytes of a weight (4, or 2 in bf16).
What DeepSpeed 0.19.8 allocates at each stage was read from its source and measured (docs/planning.md).
Masters are fp32 and apart even where the model is fp32.

| | 0 | 1 | 2 | 3 |
|---|---|---|---|---|
| weights | (T + F) w | (T + F) w | (T + F) w | (T + F) w / n, and those that are gathered |
| gradients | 4 T | w T, and 4 T / n | 4 T / n | 4 T / n |
| masters | | 4 T / n | 4 T / n | 4 T / n |
| moments | 8 T | 8 T / n | 8 T / n | 8 T / n |
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from rankdrift.planning.parameters import ModelSize

FP32, ADAM = 4, 8  # bytes an element
Moment = Literal["always", "backward", "update"]
MOMENTS: tuple[Moment, ...] = ("always", "backward", "update")
STAGES = (0, 1, 2, 3)
WHOLE_BUCKET = 500_000_000
"""Elements of gradients that are exchanged at once at stage 0, DeepSpeed's default for buckets elsewhere."""
LIVE_PARAMETERS = 1_000_000_000
"""``stage3_max_live_parameters`` where nobody sets it."""
STAYS = 1 / 2
"""Of what the less full of backward pass and update has in use, what a CPU rank's heap keeps beside the
fuller one's: half of it lies where the other's blocks were. Measured, not derived (docs/planning.md)."""
BOOKKEEPING = 64 * 2**20
"""What a CPU rank's process grows by beside the model: modules that are imported later, DeepSpeed's and
autograd's objects, evaluation, TensorBoard; measured on models of 30 and of 272 tensors."""


@dataclass(frozen=True)
class Zero:
    """What of a DeepSpeed configuration decides memory."""

    stage: int
    bucket: int = WHOLE_BUCKET
    """``reduce_bucket_size``, elements."""
    overlap: bool = False
    """``overlap_comm``: two buckets instead of one."""
    optimizer_on_host: bool = False
    weights_on_host: bool = False
    live: int = LIVE_PARAMETERS
    """``stage3_max_live_parameters``."""


@dataclass(frozen=True)
class Machine:
    """What a rank runs on."""

    ranks: int
    is_gpu: bool


@dataclass(frozen=True)
class Part:
    """Some of a rank's memory."""

    name: str
    size: int
    """Bytes."""
    moment: Moment = "always"
    on_host: bool = False
    """In the host's memory, of a rank that has a device of its own."""


@dataclass(frozen=True)
class RankMemory:
    """The memory of one rank."""

    parts: tuple[Part, ...]
    peak: int
    """Bytes: of the device, or resident of the process on a CPU."""
    at_once: int
    """Bytes that are in use at the fullest moment of a step: on a GPU the peak."""
    host: int
    """Bytes that are offloaded from a device."""


def rank_memory(
    size: ModelSize, zero: Zero, machine: Machine, weight: int, activations: int, accumulates: bool
) -> RankMemory:
    """Return what a rank takes.

    On a GPU the peak is that of tensors. A CPU rank's heap keeps what was freed (``training/heap.py``), and
    not every block fits where another one was: its resident set is larger (``STAYS``).

    Parameters
    ----------
    size
        The model's.
    zero
        The configuration's.
    machine
        How many ranks there are, of what kind.
    weight
        Bytes of one of the model's weights.
    activations
        Bytes that a forward pass keeps, logits and their gradient included.
    accumulates
        Whether a step has several micro-batches.

    """
    parts = tuple(
        part
        for part in (
            *_always(size, zero, machine, weight),
            Part("activations", activations, "backward"),
            *_in_backward(size, zero, machine, weight, accumulates),
            *_in_update(size, zero, machine, weight),
        )
        if part.size
    )
    on_device = [part for part in parts if not (part.on_host and machine.is_gpu)]
    less, more = sorted(_sum(on_device, moment) for moment in ("backward", "update"))
    at_once = _sum(on_device, "always") + more
    peak = at_once if machine.is_gpu else at_once + round(STAYS * less)
    host = sum(part.size for part in parts) - sum(part.size for part in on_device)
    return RankMemory(parts, peak, at_once, host)


def _always(size: ModelSize, zero: Zero, machine: Machine, weight: int) -> list[Part]:
    n = machine.ranks
    own = n if zero.stage == 3 else 1
    states = n if zero.stage else 1
    host = zero.optimizer_on_host
    return [
        Part("weights", -(-size.total * weight // own), on_host=zero.weights_on_host),
        Part("gathered weights", min(size.total, zero.live) * weight if zero.stage == 3 else 0),
        Part("fp32 masters", -(-size.trained * FP32 // n) if zero.stage else 0, on_host=host),
        Part("optimizer states", -(-size.trained * ADAM // states), on_host=host),
        Part("gradients", _gradients(size, zero, n, weight)),
        Part("offloaded gradients", -(-size.trained * FP32 // n) if host else 0, on_host=True),
        Part("bookkeeping", 0 if machine.is_gpu else BOOKKEEPING),
    ]


def _gradients(size: ModelSize, zero: Zero, ranks: int, weight: int) -> int:
    """Return the gradients that stay from one micro-batch to the next where they are not a rank's part."""
    if zero.stage == 3 and not zero.optimizer_on_host:
        return -(-size.trained * FP32 // ranks)
    return size.trained * (weight if zero.stage else FP32) if zero.stage < 2 else 0


def _in_backward(size: ModelSize, zero: Zero, machine: Machine, weight: int, accumulates: bool) -> list[Part]:
    bucket = min(zero.bucket, size.trained)  # as the engine tells DeepSpeed
    buckets = bucket * weight * (2 if zero.overlap else 1)
    part = -(-size.trained * FP32 // machine.ranks)
    twice = 2 if accumulates and weight == FP32 and zero.stage == 2 else 1
    exchange = 2 * bucket * weight if zero.stage == 3 else 0  # what is scattered, and gloo's copy of it
    return [
        Part("largest gradient", size.largest * weight, "backward"),
        Part("gradient partition", part * twice if zero.stage in (1, 2) else 0, "backward"),
        Part("reduce bucket", buckets if zero.stage else 0, "backward"),
        Part("exchange", exchange, "backward"),
    ]


def _in_update(size: ModelSize, zero: Zero, machine: Machine, weight: int) -> list[Part]:
    if zero.stage == 0:
        flat = 0 if machine.ranks == 1 else min(size.trained, WHOLE_BUCKET) * FP32
    else:
        flat = 0 if zero.optimizer_on_host else -(-size.trained * FP32 // machine.ranks)
    return [
        Part("flat gradients", flat, "update"),
        Part("gathering by gloo", _gathered(size, zero, machine, weight), "update"),
    ]


def _gathered(size: ModelSize, zero: Zero, machine: Machine, weight: int) -> int:
    """Return what gloo gathers updated weights into, on CPUs, before it copies them; NCCL does not."""
    if machine.is_gpu or machine.ranks == 1 or zero.stage == 0:
        return 0
    return (size.total if zero.stage == 3 else size.trained) * weight


def _sum(parts: Sequence[Part], moment: Moment) -> int:
    return sum(part.size for part in parts if part.moment == moment)
