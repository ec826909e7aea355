"""Read a ``torch.save`` file without loading it: tensors become (file, offset, shape), nothing is executed.

Such a file is a zip archive of uncompressed members: a pickle, and the raw bytes of each storage. The
pickle is read by an unpickler that knows a closed list of names, so it can build containers and tensor
descriptions and nothing else; tensors are mapped from the file when asked for.
Format: the serialization notes of torch's documentation (``notes/serialization``).
"""

from __future__ import annotations

import collections
import io
import math
import mmap
import pickle
import struct
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch

from rankdrift.errors import UserError

_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip member: lengths of its name and extra field

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


class Inert:
    """Stands for an object of no interest (a loss scaler, a random state): takes anything, does nothing."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, value: Any) -> None:
        """Take a list item."""


def read_archive(path: Path) -> Any:
    """Return the object in a ``torch.save`` file, each tensor as a ``StoredTensor``.

    Raises UserError where the file is missing, truncated, of another kind, or names anything but plain
    containers, tensors and DeepSpeed's own classes (which become ``Inert``).
    """
    try:
        with open(path, "rb") as handle, zipfile.ZipFile(handle) as archive:
            return _Archive(path, handle, archive).read()
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; the checkpoint is incomplete, use another step") from None
    except zipfile.BadZipFile as error:
        raise UserError(f"{path}: truncated, or not a torch checkpoint ({error}); use another step") from None


class _Archive:
    """An open archive: where its members lie, and the pickle that refers to them."""

    def __init__(self, path: Path, handle: BinaryIO, archive: zipfile.ZipFile) -> None:
        self.path = path
        # A private mapping: torch wants a writable buffer, and a view of it must never change the file.
        self.buffer = mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_COPY)
        self._archive = archive
        self._members = {name.partition("/")[2]: info for name, info in archive.NameToInfo.items()}

    def read(self) -> Any:
        if "data.pkl" not in self._members:
            raise UserError(f"{self.path}: a zip archive, but not a torch checkpoint (it has no data.pkl)")
        if "byteorder" in self._members and self._bytes("byteorder") != sys.byteorder.encode():
            raise UserError(f"{self.path}: written on a machine of another byte order; convert it there")
        try:
            return _Unpickler(self).load()
        except (UserError, zipfile.BadZipFile):
            raise
        except Exception as error:  # a malformed pickle can raise anything
            raise UserError(f"{self.path}: its pickle is damaged ({error!r}); use another step") from error

    def pickle(self) -> bytes:
        return self._bytes("data.pkl")

    def storage(self, key: str, dtype: torch.dtype | None) -> _Storage:
        info = self._members.get(f"data/{key}")
        if info is None or info.compress_type != zipfile.ZIP_STORED:
            raise UserError(f"{self.path}: storage {key} is missing or compressed; damaged or foreign")
        name_length, extra_length = _LOCAL_HEADER.unpack_from(self.buffer, info.header_offset)
        start = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
        if start + info.file_size > len(self.buffer):
            raise UserError(f"{self.path}: truncated inside storage {key}; use another step")
        return _Storage(self, dtype, start, info.file_size)

    def _bytes(self, member: str) -> bytes:
        return self._archive.read(self._members[member])


@dataclass(frozen=True)
class _Storage:
    archive: _Archive
    dtype: torch.dtype | None
    start: int
    size: int


class _Unpickler(pickle.Unpickler):
    """Builds containers and tensor descriptions; any name outside the closed list is refused."""

    def __init__(self, archive: _Archive) -> None:
        super().__init__(io.BytesIO(archive.pickle()))
        self._archive = archive

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _BUILDERS:
            return _BUILDERS[module, name]
        if module == "torch" and name in _STORAGE_DTYPES:
            return _STORAGE_DTYPES[name]
        if module == "torch" and isinstance(dtype := getattr(torch, name, None), torch.dtype):
            return dtype
        if module.partition(".")[0] == "deepspeed" or (module, name) in _IGNORED:
            return Inert
        raise UserError(
            f"{self._archive.path}: its pickle names {module}.{name}, which no checkpoint needs; "
            "the file is foreign and nothing of it was run"
        )

    def persistent_load(self, identity: Any) -> _Storage:
        kind, dtype, key, *_ = identity
        if kind != "storage":
            raise UserError(f"{self._archive.path}: unknown kind of stored object {kind!r}")
        return self._archive.storage(key, dtype if isinstance(dtype, torch.dtype) else None)


def _tensor(
    storage: _Storage, start: int, shape: Sequence[int], stride: Sequence[int], *rest: Any
) -> StoredTensor:
    """Describe a tensor; ``rest`` is (requires_grad, hooks) and, for an untyped storage, its dtype."""
    dtype = storage.dtype or rest[2]
    tensor = StoredTensor(
        path=storage.archive.path,
        dtype=dtype,
        shape=tuple(shape),
        stride=tuple(stride),
        offset=storage.start + start * dtype.itemsize,
        buffer=storage.archive.buffer,
    )
    needed = (start + _extent(tensor.shape, tensor.stride)) * dtype.itemsize
    if start < 0 or min((*tensor.shape, *tensor.stride), default=0) < 0 or needed > storage.size:
        raise UserError(
            f"{tensor.path}: a tensor of shape {tensor.shape} exceeds its storage; the file is damaged"
        )
    return tensor


def _extent(shape: Sequence[int], stride: Sequence[int]) -> int:
    """Return the elements from the first to the last one that a strided tensor covers."""
    if not math.prod(shape):
        return 0
    return 1 + sum((size - 1) * step for size, step in zip(shape, stride, strict=True))


def _parameter(data: StoredTensor, *rest: Any) -> StoredTensor:
    return data


def _from_type(build: Any, kind: Any, arguments: tuple[Any, ...], state: Any) -> Any:
    """Describe a tensor that carries Python attributes (ZeRO-3 marks its flat groups), without them."""
    return build(*arguments)


_BUILDERS: dict[tuple[str, str], Any] = {
    ("collections", "OrderedDict"): collections.OrderedDict,
    ("torch", "Size"): tuple,
    ("torch._utils", "_rebuild_tensor_v2"): _tensor,
    ("torch._utils", "_rebuild_tensor_v3"): _tensor,
    ("torch._utils", "_rebuild_parameter"): _parameter,
    ("torch._utils", "_rebuild_parameter_with_state"): _parameter,
    ("torch._tensor", "_rebuild_from_type_v2"): _from_type,
    ("deepspeed.runtime.zero.config", "ZeroStageEnum"): int,
}

_IGNORED = {
    ("torch", "Tensor"),
    ("torch", "device"),
    ("torch.nn.parameter", "Parameter"),
    ("torch.storage", "UntypedStorage"),
    ("_codecs", "encode"),
    ("copy_reg", "_reconstructor"),
    ("copyreg", "_reconstructor"),
    ("__builtin__", "object"),
    ("builtins", "object"),
    ("numpy", "dtype"),
    ("numpy", "ndarray"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
}
