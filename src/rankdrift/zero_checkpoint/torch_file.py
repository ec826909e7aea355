"""Read a ``torch.save`` file without loading it: tensors become (file, offset, shape), nothing is executed.

Such a file is a zip archive of uncompressed members (``zip_members``): a pickle, and the raw bytes of each
storage. ``torch.load`` reads the pickle with its unpickler for weights, which knows plain containers and
tensors, into tensors without memory that know their place in the file; the few classes that DeepSpeed 0.19.8
writes beside them are replaced by stand-ins. Tensors are mapped when asked for.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import mmap
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import torch

from rankdrift.errors import IntegrityError, UserError
from rankdrift.zero_checkpoint.zip_members import Member, content, members

_Source = TypeVar("_Source")
_Result = TypeVar("_Result")

_MAX_DEPTH = 64  # containers in containers
_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype)


class Inert:
    """Stands for an object of no interest, such as a loss scaler."""

    def __init__(self, *arguments: Any) -> None:
        pass


_STAGES = {"disabled": 0, "optimizer_states": 1, "gradients": 2, "weights": 3}


def _stage(of: type, name: str) -> int:
    """Return a ZeRO stage by its name: Python 3.11.0 to 3.11.3 pickle members of enumerations with getattr.

    It stands for nothing else that getattr could get.
    """
    if of is not int or name not in _STAGES:
        raise ValueError(f"it asks for {name!r} of {of!r}")
    return _STAGES[name]


_STAND_INS: list[Any] = [
    (int, "deepspeed.runtime.zero.config.ZeroStageEnum"),
    (_stage, "builtins.getattr"),
    (Inert, "deepspeed.runtime.fp16.loss_scaler.LossScaler"),
    (Inert, "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler"),
    (Inert, "deepspeed.utils.tensor_fragment.fragment_address"),
]


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
        if "byteorder" in found and content(buffer, found["byteorder"]) != sys.byteorder.encode():
            raise ValueError("written on a machine of another byte order")
        if "data.pkl" not in found:
            raise ValueError("a zip archive without data.pkl")
        content(buffer, found["data.pkl"])  # whose CRC-32 torch does not look at
        storages = {member.start: member for name, member in found.items() if name.startswith("data/")}
        try:
            tree = _Described(path, buffer, storages).value(_unpickled(handle, _on_meta), 0)
        except _NoPlaceError:
            tree = _Described(path, buffer, storages).value(_unpickled(handle, _as_fakes), 0)
    buffer.madvise(mmap.MADV_NORMAL)
    return tree


class _NoPlaceError(Exception):
    """Tensors do not know where they lie in the file."""


def _on_meta(handle: BinaryIO) -> Any:
    return torch.load(handle, map_location="meta", weights_only=True)


def _as_fakes(handle: BinaryIO) -> Any:
    """Do the same with an older torch (2.11), which needs a mode for it that takes a second to import."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        return torch.load(handle, map_location="cpu", weights_only=True)


def _unpickled(handle: BinaryIO, load: Callable[[BinaryIO], Any]) -> Any:
    """Return the object with tensors that have no memory; nothing but plain containers is made."""
    handle.seek(0)
    try:
        with _silent(), torch.serialization.safe_globals(_STAND_INS):
            return load(handle)
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged or hostile pickle makes it raise anything
        said = (str(error).strip() or type(error).__name__).splitlines()
        reason = next((line.strip() for line in said if "nsupported" in line or "GLOBAL" in line), said[0])
        raise ValueError(f"torch.load refuses it, nothing was run: {reason}") from error


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Keep torch from logging what it then raises."""
    log = logging.getLogger("torch._subclasses.fake_tensor")
    before, log.disabled = log.disabled, True
    try:
        yield
    finally:
        log.disabled = before


@dataclass(frozen=True)
class _Described:
    """Turns what was unpickled into plain containers with tensors as ``StoredTensor``."""

    path: Path
    buffer: mmap.mmap
    storages: dict[int, Member]
    """By the place in the file at which they begin."""
    known: dict[int, Any] = field(default_factory=dict)
    """Containers by their identity: what is met twice is described once, and cannot be met for ever."""

    def value(self, value: Any, depth: int) -> Any:
        """Return the value described; raise ValueError for one that no checkpoint has."""
        if isinstance(value, torch.Tensor):
            return self._tensor(value)
        if not isinstance(value, dict | list | tuple):
            return value if isinstance(value, _PLAIN) else Inert()
        if depth > _MAX_DEPTH:
            raise ValueError(f"its values go deeper than {_MAX_DEPTH} containers")
        if id(value) not in self.known:
            self.known[id(value)] = self._container(value, depth + 1)
        return self.known[id(value)]

    def _container(self, value: Any, depth: int) -> Any:
        if isinstance(value, dict):
            return {_key(key): self.value(child, depth) for key, child in value.items()}
        children = [self.value(child, depth) for child in value]
        return tuple(children) if isinstance(value, tuple) else children

    def _tensor(self, tensor: torch.Tensor) -> StoredTensor:
        shape, stride, size = tuple(tensor.shape), tensor.stride(), tensor.dtype.itemsize
        storage: Any = tensor.untyped_storage()
        if getattr(storage, "_checkpoint_offset", None) is None:
            raise _NoPlaceError
        start, first = int(storage._checkpoint_offset), int(tensor.storage_offset())
        member = self.storages.get(start)
        if member is None:
            raise ValueError("a tensor lies where the archive has no storage")
        if (first + _extent(shape, stride)) * size > member.size:
            raise ValueError(f"a tensor of shape {shape} exceeds its storage")
        if _overlaps(shape, stride):
            raise ValueError(f"a tensor of shape {shape} and strides {stride} overlaps itself")
        return StoredTensor(
            path=self.path,
            dtype=tensor.dtype,
            shape=shape,
            stride=stride,
            offset=start + first * size,
            buffer=self.buffer,
            member=member,
        )


def _key(key: Any) -> str | int:
    """Return a dictionary's key; raise ValueError for one that messages could not print."""
    if not isinstance(key, str | int) or (isinstance(key, str) and not key.isprintable()):
        raise ValueError("it has a key of a kind that no checkpoint has")
    return key


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
