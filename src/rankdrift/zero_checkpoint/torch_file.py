"""Read a ``torch.save`` file without loading it: tensors become (file, offset, shape), nothing is executed.

Such a file is a zip archive of uncompressed members (``members``): a pickle, and the raw bytes of each
storage. The pickle is read as data (``pickled``) with a closed list of names, those that checkpoints of
DeepSpeed 0.19.8 contain; tensors are mapped from the file when asked for.
Format: the serialization notes of torch's documentation (``notes/serialization``).
"""

from __future__ import annotations

import functools
import math
import mmap
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch

from rankdrift.errors import IntegrityError, UserError
from rankdrift.zero_checkpoint.pickled import Constructor, Inert, Names, construct, read_pickle
from rankdrift.zero_checkpoint.zip_members import Member, content, members

_Source = TypeVar("_Source")
_Result = TypeVar("_Result")

_MAX_ELEMENTS = 2**62

_STORAGE_DTYPES = {
    "DoubleStorage": torch.float64,
    "FloatStorage": torch.float32,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor that lies in a file: ``load`` maps it, touching only the pages that are then read."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    """Bytes from the start of the file."""
    buffer: mmap.mmap = field(repr=False, compare=False)
    member: Member = field(repr=False, compare=False)
    """The storage that it is a view of."""

    @property
    def numel(self) -> int:
        """The number of elements."""
        return math.prod(self.shape)

    def load(self) -> torch.Tensor:
        """Return a view of the mapped file, in the stored dtype and shape; writes never reach the file."""
        if not self.numel:
            return torch.empty(self.shape, dtype=self.dtype)
        extent = _extent(self.shape, self.stride)
        flat = torch.frombuffer(self.buffer, dtype=self.dtype, count=extent, offset=self.offset)
        return flat.as_strided(self.shape, self.stride)


def read_archive(path: Path) -> Any:
    """Return the object in a ``torch.save`` file, each tensor as a ``StoredTensor``.

    Raises IntegrityError where the file is missing, truncated, of another kind, or names anything but plain
    containers, tensors and the classes of DeepSpeed that its checkpoints hold (which become ``Inert``);
    UserError where it may not be read.
    """
    try:
        return _read(path)
    except ValueError as error:
        raise IntegrityError(
            f"{path}: damaged, or not a torch checkpoint ({error}); use another step, or copy the file again"
        ) from None
    except FileNotFoundError:
        raise IntegrityError(
            f"{path}: no such file; the checkpoint is incomplete, use another step"
        ) from None
    except PermissionError:
        raise UserError(f"{path}: may not be read by this user; change its permissions") from None
    except OSError as error:
        raise IntegrityError(f"{path}: cannot be read ({error.strerror}); use another step") from None


def refusing_malformed(read: Callable[[_Source], _Result]) -> Callable[[_Source], _Result]:
    """Make a function that interprets archives raise IntegrityError where they hold values of a wrong kind.

    A file that is whole has the keys and types that DeepSpeed writes. One that was forged can have any in any
    place, and to test for that wherever a value is used would hide the layouts behind the tests.
    """

    @functools.wraps(read)
    def reading(source: _Source) -> _Result:
        try:
            return read(source)
        except UserError:
            raise
        except (TypeError, ValueError, LookupError, AttributeError, ArithmeticError) as error:
            folder = getattr(source, "folder", source)
            raise IntegrityError(
                f"{folder}: a shard holds values of a wrong kind ({error!r}); use another step"
            ) from error

    return reading


def _read(path: Path) -> Any:
    """Return the object; raise ValueError with what is wrong, or OSError."""
    with open(path, "rb") as handle:
        # A private mapping: torch wants a writable buffer, and a view of it must never change the file.
        buffer = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
        # The index lies in a few bytes at many places: without this, megabytes are read around each of them.
        buffer.madvise(mmap.MADV_RANDOM)
        found = members(handle, buffer)
    if "data.pkl" not in found:
        raise ValueError("a zip archive without data.pkl")
    if "byteorder" in found and content(buffer, found["byteorder"]) != sys.byteorder.encode():
        raise ValueError("written on a machine of another byte order")
    storages = _Storages(path, buffer, found)
    tree = read_pickle(content(buffer, found["data.pkl"]), _NAMES, storages.storage)
    buffer.madvise(mmap.MADV_NORMAL)
    return tree


@dataclass(frozen=True)
class _Storage:
    """The raw bytes that tensors are views of."""

    path: Path
    buffer: mmap.mmap
    dtype: torch.dtype
    member: Member


@dataclass(frozen=True)
class _Storages:
    """The storages of one archive."""

    path: Path
    buffer: mmap.mmap
    members: dict[str, Member]

    def storage(self, identity: Any) -> _Storage:
        """Return what a pickle's ("storage", dtype, key, device, elements) refers to."""
        match identity:
            case ("storage", torch.dtype() as dtype, str(key), str(), int()):
                if (member := self.members.get(f"data/{key}")) is None:
                    raise ValueError(f"storage {key} is missing")
                return _Storage(self.path, self.buffer, dtype, member)
        raise ValueError("it refers to an object of an unknown kind")


def _tensor(storage: Any, start: Any, shape: Any, stride: Any, *rest: Any) -> StoredTensor:
    """Describe a tensor; ``rest`` is (requires_grad, hooks) and optional metadata."""
    if not isinstance(storage, _Storage) or not _are_counts((start,)):
        raise ValueError("a tensor of no storage")
    if not (_are_counts(shape) and _are_counts(stride) and len(shape) == len(stride)):
        raise ValueError("a tensor's shape or strides are not sizes")
    if (start + _extent(shape, stride)) * storage.dtype.itemsize > storage.member.size:
        raise ValueError(f"a tensor of shape {shape} exceeds its storage")
    if _overlaps(shape, stride):
        raise ValueError(f"a tensor of shape {shape} and strides {stride} overlaps itself")
    return StoredTensor(
        path=storage.path,
        dtype=storage.dtype,
        shape=shape,
        stride=stride,
        offset=storage.member.start + start * storage.dtype.itemsize,
        buffer=storage.buffer,
        member=storage.member,
    )


def _extent(shape: Sequence[int], stride: Sequence[int]) -> int:
    """Return the elements from the first to the last one that a strided tensor covers."""
    if not math.prod(shape):
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def _overlaps(shape: Sequence[int], stride: Sequence[int]) -> bool:
    """Return whether two elements may share a place: a few bytes must not stand for a tensor of any size."""
    covered = 1
    for step, size in sorted(zip(stride, shape, strict=True)):
        if size > 1:
            if step < covered:
                return True
            covered += (size - 1) * step
    return False


def _are_counts(values: Any) -> bool:
    if not isinstance(values, tuple) or not all(type(value) is int and value >= 0 for value in values):
        return False
    return math.prod(max(value, 1) for value in values) < _MAX_ELEMENTS


def _size(dimensions: Any) -> tuple[int, ...]:
    if not _are_counts(dimensions):
        raise ValueError("a shape is not a tuple of sizes")
    return tuple(dimensions)


def _stage(number: Any) -> int:
    if type(number) is not int:
        raise ValueError("a ZeRO stage is not a number")
    return number


def _from_type(build: Any, kind: Any, arguments: Any, state: Any) -> Any:
    """Describe a tensor that carries Python attributes (ZeRO-3 marks its flat groups), without them."""
    return construct(build, arguments)


_NAMES: Names = {
    **{("torch", name): dtype for name, dtype in _STORAGE_DTYPES.items()},
    ("collections", "OrderedDict"): Constructor(lambda: {}),
    ("torch", "Size"): Constructor(_size),
    ("torch", "Tensor"): Inert(),  # what kind of tensor _rebuild_from_type_v2 makes
    ("torch._utils", "_rebuild_tensor_v2"): Constructor(_tensor),
    ("torch._tensor", "_rebuild_from_type_v2"): Constructor(_from_type),
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"): Constructor(_stage),
    ("deepspeed.runtime.fp16.loss_scaler", "LossScaler"): Constructor(Inert),
    ("deepspeed.runtime.fp16.loss_scaler", "DynamicLossScaler"): Constructor(Inert),  # of fp16
    ("deepspeed.utils.tensor_fragment", "fragment_address"): Constructor(Inert),
}
