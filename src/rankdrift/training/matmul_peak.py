"""What the hardware gives at most: the speed of a large product of matrices, measured."""

from __future__ import annotations

import statistics
import time

import torch

SIZES = {"cpu": 512, "cuda": 8192}
REPEATS = 5


def matmul_flops_per_second(device: torch.device, dtype: torch.dtype) -> float:
    """Return the floating-point operations a second of square products of random numbers: a median.

    On a GPU it takes some 20 ms and 400 MB, on a core 30 ms. Ranks that share cores call it together, as they
    train together.
    """
    size = SIZES[device.type]
    one, other = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    one @ other  # the first product sets the library up
    seconds = [_seconds(one, other) for _ in range(REPEATS)]
    return 2 * size**3 / statistics.median(seconds)


def _seconds(one: torch.Tensor, other: torch.Tensor) -> float:
    if one.device.type == "cpu":
        began = time.perf_counter()
        one @ other
        return time.perf_counter() - began
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    one @ other
    last.record()
    last.synchronize()
    return first.elapsed_time(last) / 1000
