"""Write safetensors files as a stream: the header first, then each tensor in pieces of a few megabytes.

Memory does not depend on the size of the model or of its largest tensor.
Format: 8 bytes of header length, a JSON header, the tensors' bytes without gaps, all little-endian
(https://huggingface.co/docs/safetensors).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch

from rankdrift.checkpoint.shards import ShardedTensor

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
_CODES = {torch.float32: "F32", torch.bfloat16: "BF16"}
_CHUNK = 4 * 2**20  # elements converted at once: 16 MiB in fp32
_ALIGNMENT = 8  # bytes; readers map tensors of up to 8 bytes an element straight from the file

Progress = Callable[[int], None]  # called with the bytes just written


def size_of(tensor: ShardedTensor, dtype: torch.dtype) -> int:
    """Return the bytes a tensor takes in a file."""
    return math.prod(tensor.shape) * dtype.itemsize


def split(
    tensors: Mapping[str, ShardedTensor], dtype: torch.dtype, limit: int
) -> list[dict[str, ShardedTensor]]:
    """Split tensors, in order, into files of at most ``limit`` bytes (a larger tensor gets its own)."""
    parts: list[dict[str, ShardedTensor]] = [{}]
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
    path: Path, tensors: Mapping[str, ShardedTensor], dtype: torch.dtype, progress: Progress
) -> str:
    """Write tensors under the given names, rounded to ``dtype``; return the SHA-256 of the file."""
    digest = hashlib.sha256()
    with open(path, "wb") as handle:
        _write(handle, digest, _header(tensors, dtype))
        for tensor in tensors.values():
            for chunk in _chunks(tensor):
                progress(_write(handle, digest, chunk.to(dtype).contiguous().view(torch.uint8).numpy().data))
    return digest.hexdigest()


def _header(tensors: Mapping[str, ShardedTensor], dtype: torch.dtype) -> bytes:
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


def _chunks(tensor: ShardedTensor) -> Iterator[torch.Tensor]:
    for piece in tensor.pieces():
        yield from piece.split(_CHUNK)


def _write(handle: BinaryIO, digest: hashlib._Hash, data: bytes | memoryview) -> int:
    digest.update(data)
    return handle.write(data)
