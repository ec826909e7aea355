"""Where ZeRO keeps each parameter: pure bookkeeping from shapes and flat vectors to runs of elements.

Facts read from DeepSpeed 0.19.8 (``runtime/zero/stage_1_and_2.py``, ``stage3.py``, ``bf16_optimizer.py``,
``utils/zero_to_fp32.py``). Every vector must be used up exactly; a key that is not known is refused, since
a new key is how DeepSpeed announces a new layout (``param_alignment_paddings`` came that way).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from rankdrift.errors import IntegrityError, UserError
from rankdrift.zero_checkpoint.direct_io import BLOCK, BlockReader
from rankdrift.zero_checkpoint.storage_sums import StorageSums
from rankdrift.zero_checkpoint.torch_file import StoredTensor

_MAX_RANKS = 2**20

Shape = tuple[int, ...]
Parameters = dict[str, tuple[Shape, tuple["Span", ...]]]  # by name: shape, and the runs that hold it

_COPIED = 2**20  # elements at once of a tensor that does not lie in one piece
_KNOWN_KEYS = {
    # weights and their layout
    "zero_stage",
    "partition_count",
    "single_partition_of_fp32_groups",
    "fp32_flat_groups",
    "group_paddings",
    "param_alignment_paddings",
    # the optimizer's own state, which says nothing of where weights lie
    "base_optimizer_state",
    "base_optimizer_state_step",
    "optimizer_state_dict",
    "param_slice_mappings",
    "loss_scaler",
    "dynamic_loss_scale",
    "overflow",
    "clip_grad",
    "ds_version",
}


@dataclass(frozen=True)
class Span:
    """A run of elements of one stored tensor."""

    source: StoredTensor
    start: int
    count: int

    def load(self) -> torch.Tensor:
        """Return the run as a flat view of the file, in the stored dtype."""
        return self.source.load().reshape(-1)[self.start : self.start + self.count]

    def chunks(
        self, buffers: Iterator[torch.Tensor], sums: StorageSums | None = None
    ) -> Iterator[torch.Tensor]:
        """Yield the run in flat parts, each read into the next of ``buffers`` (uint8, of one size).

        ``sums`` is told of every byte. Unlike a mapping, of which the system reads up to megabytes around
        what is touched, this reads the run and nothing else; past the page cache, if the buffers are of whole
        blocks at a page's start. Raises OSError where the file cannot be read.
        """
        dtype, size = self.source.dtype, self.source.dtype.itemsize
        place = self.source.offset + self.start * size
        stop = place + self.count * size
        if place % size or not _is_contiguous(self.source):
            yield from self.load().split(_COPIED)
            return
        buffer = next(buffers)
        aligned = buffer.data_ptr() % BLOCK == buffer.numel() % BLOCK == 0
        with BlockReader(self.source.path, self.source.buffer, place, stop, direct=aligned) as file:
            while True:
                length = buffer.numel() // size * size
                block = math.gcd(length, BLOCK)
                begin = place // block * block
                end = min(stop - begin, length)
                file.read_blocks(buffer[: -(-end // block) * block].numpy().data, begin, needed=end)
                part = buffer[place - begin : end]
                if sums:
                    sums.take(self.source, place, part.numpy().data)
                yield part.view(dtype)
                place = begin + end
                if place == stop:
                    return
                buffer = next(buffers)


@dataclass(frozen=True)
class FlatVector:
    """Stored vectors read end to end as one."""

    parts: tuple[StoredTensor, ...]

    @property
    def numel(self) -> int:
        """The number of elements of all parts."""
        return sum(part.numel for part in self.parts)

    def spans(self, start: int, count: int) -> tuple[Span, ...]:
        """Return the runs that hold elements ``start`` to ``start + count``."""
        return cut([Span(part, 0, part.numel) for part in self.parts], start, count)


def cut(spans: Iterable[Span], start: int, count: int) -> tuple[Span, ...]:
    """Return the runs that hold elements ``start`` to ``start + count`` of runs read end to end."""
    found = []
    for span in spans:
        first, last = max(start, 0), min(start + count, span.count)
        if first < last:
            found.append(Span(span.source, span.start + first, last - first))
        start -= span.count
    return tuple(found)


def check_keys(state: Mapping[str, Any], path: Path) -> None:
    """Raise UserError where an optimizer shard has a key whose meaning for the layout is not known."""
    unknown = sorted(key for key, value in state.items() if key not in _KNOWN_KEYS and value is not None)
    if unknown:
        raise UserError(
            f"{path}: unknown layout key '{unknown[0]}'; convert the checkpoint with the zero_to_fp32.py "
            "of the DeepSpeed that wrote it"
        )


def stage_of(state: Mapping[str, Any], folder: Path) -> int:
    """Return the ZeRO stage that wrote an optimizer shard."""
    # DeepSpeed's BF16_Optimizer, which serves stage 1 with fp32 gradient accumulation, does not say it.
    stage = state.get("zero_stage", 1)
    if stage not in (1, 2, 3):
        raise UserError(f"{folder}: ZeRO stage {stage!r} is not known; known: 0, 1, 2, 3")
    return int(stage)


def world_size_of(state: Mapping[str, Any], folder: Path) -> int:
    """Return the number of ranks that wrote shards: stage 3 states one count, stages 1 and 2 one a group."""
    counts = state.get("partition_count")
    distinct = set(counts) if isinstance(counts, list) else {counts}
    if len(distinct) != 1 or not (isinstance(count := distinct.pop(), int) and 0 < count < _MAX_RANKS):
        raise UserError(f"{folder}: partition_count={counts!r}: experts or an unknown layout; not supported")
    return count


def check_states(states: Sequence[Mapping[str, Any]], stage: int, world_size: int, folder: Path) -> None:
    """Raise IntegrityError unless all shards are of the same stage, world size and number of groups."""
    expected = (stage, world_size, len(_flat_groups(states[0], stage, folder)))
    for rank, state in enumerate(states):
        groups = _flat_groups(state, stage, folder)
        found = (stage_of(state, folder), world_size_of(state, folder), len(groups))
        if found != expected:
            raise IntegrityError(
                f"{folder}: rank {rank}'s shard is of another checkpoint: (stage, ranks, groups) = {found}, "
                f"rank 0 has {expected}; use another step"
            )


def partitioned_groups(
    shapes: Sequence[Mapping[str, Sequence[int]]], states: Sequence[Mapping[str, Any]], folder: Path
) -> Parameters:
    """Stages 1 and 2: per group, all parameters end to end, cut into one part a rank.

    ``shapes`` lists the parameters of each group in stored order (also under ``round_robin_gradients``,
    which permutes them). Between parameters there may be alignment padding, which is recorded.
    """
    ranks = [_flat_groups(state, 1, folder) for state in states]
    paddings = states[0].get("param_alignment_paddings") or [[0] * len(group) for group in shapes]
    _check_same_length("groups", len(shapes), len(ranks[0]), folder)
    _check_same_length("alignment paddings", len(shapes), len(paddings), folder)
    found: Parameters = {}
    for index, group in enumerate(shapes):
        vector = FlatVector(tuple(rank[index] for rank in ranks))
        _check_same_length("alignment paddings", len(group), len(paddings[index]), folder)
        start = 0
        for (name, shape), padding in zip(group.items(), paddings[index], strict=True):
            count = math.prod(shape)
            found[name] = (tuple(shape), vector.spans(start, count))
            start += count + padding
        _check_used_up(start, vector.numel, _end_padding(states, index), folder)
    return found


def partitioned_parameters(
    shapes: Sequence[Mapping[str, Sequence[int]]], states: Sequence[Mapping[str, Any]], folder: Path
) -> Parameters:
    """Stage 3: each parameter in one equal part a rank; ``shapes`` and flat groups are one a sub-group."""
    vectors = [FlatVector(tuple(_flat_groups(state, 3, folder))) for state in states]
    found: Parameters = {}
    start = 0
    for name, shape in _joined(shapes):
        found[name] = (shape, _across_ranks(vectors, start, math.prod(shape)))
        start += math.ceil(math.prod(shape) / len(states))
    for vector in vectors:
        if start and not vector.numel:
            raise UserError(f"{folder}: its master weights are on NVMe, not in the checkpoint")
        _check_used_up(start, vector.numel, 0, folder)
    return found


def frozen_parameters(
    shapes: Mapping[str, Sequence[int]], fragments: Sequence[Mapping[str, StoredTensor]], folder: Path
) -> Parameters:
    """Stage 3: parameters that do not train, one fragment a rank in the model files."""
    found: Parameters = {}
    for name, shape in shapes.items():
        vectors = [FlatVector((rank[name],)) for rank in fragments]
        part = math.ceil(math.prod(shape) / len(fragments))
        for vector in vectors:
            _check_used_up(part, vector.numel, 0, folder)
        found[name] = (tuple(shape), _across_ranks(vectors, 0, math.prod(shape)))
    return found


def _across_ranks(vectors: Sequence[FlatVector], start: int, count: int) -> tuple[Span, ...]:
    """Join the parts of a parameter of ``count`` elements; the last parts may be padding."""
    part = math.ceil(count / len(vectors))
    spans: list[Span] = []
    for rank, vector in enumerate(vectors):
        spans.extend(vector.spans(start, min(part, count - rank * part)))
    return tuple(spans)


def _flat_groups(state: Mapping[str, Any], stage: int, folder: Path) -> list[StoredTensor]:
    key = "fp32_flat_groups" if stage == 3 else "single_partition_of_fp32_groups"
    groups = state.get(key)
    if not isinstance(groups, list) or not all(_is_vector(group) for group in groups):
        raise UserError(
            f"{folder}: '{key}' is not a list of flat vectors; the checkpoint is of another layout"
        )
    return groups


def _is_contiguous(tensor: StoredTensor) -> bool:
    sizes = [math.prod(tensor.shape[axis + 1 :]) for axis in range(len(tensor.shape))]
    return all(
        n == 1 or step == size for n, step, size in zip(tensor.shape, tensor.stride, sizes, strict=True)
    )


def _is_vector(value: Any) -> bool:
    return isinstance(value, StoredTensor) and len(value.shape) == 1 and value.stride == (1,)


def _end_padding(states: Iterable[Mapping[str, Any]], group: int) -> int:
    """Return the elements by which a group was padded to a multiple of the ranks."""
    return sum(state["group_paddings"][group] for state in states)


def _check_used_up(used: int, available: int, padding: int, folder: Path) -> None:
    # The ZeRO optimizer writes its groups without the padding at the end, BF16_Optimizer with it.
    if available not in (used, used + padding):
        raise IntegrityError(
            f"{folder}: its parameters take {used} elements but its shards hold {available}: "
            "the shards are of another checkpoint or of an unknown layout"
        )


def _check_same_length(what: str, expected: int, found: int, folder: Path) -> None:
    if expected != found:
        raise IntegrityError(
            f"{folder}: {expected} {what} expected, {found} found; the checkpoint is of another layout"
        )


def _joined(shapes: Iterable[Mapping[str, Sequence[int]]]) -> Iterable[tuple[str, Shape]]:
    return ((name, tuple(shape)) for group in shapes for name, shape in group.items())
