"""Write safetensors files as a stream: the header first, then each tensor a few megabytes at a time.

Memory does not depend on the size of the model or of its largest tensor.
Format: 8 bytes of header length, a JSON header, the tensors' bytes without gaps, all little-endian
(https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import itertools
import json
import math
import mmap
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import torch

from rankdrift.zero_checkpoint.checksums import ChecksummingWriter, StoredFile
from rankdrift.zero_checkpoint.direct_io import DirectFile
from rankdrift.zero_checkpoint.storage_sums import StorageSums

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
_CODES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}
_CHUNK = 8 * 2**20  # bytes read at once
_ALIGNMENT = 8  # bytes; readers map tensors of up to 8 bytes an element straight from the file

Progress = Callable[[int], None]  # called with the bytes just written


class Weight(Protocol):
    """A tensor that is made, or read, a piece at a time."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""

    def chunks(
        self, buffers: Iterator[torch.Tensor], sums: StorageSums | None = None
    ) -> Iterator[torch.Tensor]:
        """Yield its elements in row-major order, in flat tensors of about the size of ``buffers`` (uint8).

        Each may lie in the next of them, and be valid until that comes again. What is read from shards is
        told to ``sums``.
        """


def size_of(tensor: Weight, dtype: torch.dtype) -> int:
    """Return the bytes a tensor takes in a file."""
    return math.prod(tensor.shape) * dtype.itemsize


def split(tensors: Mapping[str, Weight], dtype: torch.dtype, limit: int) -> list[dict[str, Weight]]:
    """Split tensors, in order, into files of at most ``limit`` bytes (a larger tensor gets its own)."""
    parts: list[dict[str, Weight]] = [{}]
    filled = 0
    for name, tensor in tensors.items():
        size = size_of(tensor, dtype)
        if parts[-1] and filled + size > limit:
            parts.append({})
            filled = 0
        parts[-1][name] = tensor
        filled += size
    return parts


def write_safetensors(
    path: Path,
    tensors: Mapping[str, Weight],
    dtype: torch.dtype,
    progress: Progress,
    sums: StorageSums | None = None,
) -> StoredFile:
    """Write tensors under the given names, rounded to ``dtype``; return the file's size and checksum."""
    with DirectFile(path) as handle:
        file = ChecksummingWriter(handle)
        file.write(_header(tensors, dtype))
        for chunk in _one_ahead(_rounded(tensors, dtype, sums)):
            progress(file.write(chunk.view(torch.uint8).numpy().data))
    return file.stored()


def _rounded(
    tensors: Mapping[str, Weight], dtype: torch.dtype, sums: StorageSums | None
) -> Iterator[torch.Tensor]:
    """Yield all elements of all tensors; each part is valid until the one after the next is asked for."""
    # two: one is filled while the other is written; they lie at a page's start
    buffers = itertools.cycle([torch.frombuffer(mmap.mmap(-1, _CHUNK), dtype=torch.uint8) for _ in range(2)])
    for tensor in tensors.values():
        for chunk in tensor.chunks(buffers, sums):
            yield chunk.to(dtype).contiguous()


def _one_ahead(parts: Iterator[torch.Tensor]) -> Iterator[torch.Tensor]:
    """Yield parts while another thread makes the next one."""
    with ThreadPoolExecutor(1) as thread:
        following = thread.submit(next, parts, None)
        while (part := following.result()) is not None:
            following = thread.submit(next, parts, None)
            yield part


def _header(tensors: Mapping[str, Weight], dtype: torch.dtype) -> bytes:
    entries: dict[str, object] = {"__metadata__": {"format": "pt"}}
    start = 0
    for name, tensor in tensors.items():
        end = start + size_of(tensor, dtype)
        shape = list(tensor.shape)
        entries[name] = {"dtype": _CODES[dtype], "shape": shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text
