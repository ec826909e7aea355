"""A model's parameters divided over ranks, each rank copying its slice from where the tensor lies.

DeepSpeed divides a model that is there whole: every rank moves all of it to its device first, so a model that
needs stage 3 cannot start. Under ``zero.Init`` with transformers' integration every rank reads the whole
file into its memory. A model that was loaded plainly lies in the mapped safetensors file instead, of which
nothing is read before it is asked for: here only this rank's slices are, each cast on the device it goes to.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def divide(model: nn.Module, init: Any, device: torch.device) -> None:
    """Make every parameter one of DeepSpeed's, of which this rank holds its slice.

    Parameters
    ----------
    model
        Loaded on the CPU, the same on every rank.
    init
        A ``deepspeed.zero.Init``, which says over which ranks, in which dtype and on which device.
    device
        Where the model computes; its buffers are moved there.

    """
    param: Any  # DeepSpeed hangs its own attributes on it
    for param in model.parameters():
        source = param.data
        # never touched beyond the slice that DeepSpeed copies, so it takes no memory to speak of
        param.data = torch.empty(source.shape, dtype=init.dtype)
        init._convert_to_deepspeed_param(param)
        param.partition()
        _fill(param.ds_tensor, source, param.ds_zero_partition_rank)
        param.data = torch.empty(0, dtype=init.dtype, device=device)
    for buffer in model.buffers():
        buffer.data = buffer.data.to(device)


def _fill(part: Tensor, source: Tensor, rank: int) -> None:
    """Copy a rank's slice of a tensor into its part; the last parts end in padding."""
    own = source.reshape(-1)[rank * part.numel() : (rank + 1) * part.numel()]
    part[: own.numel()].copy_(own)
    part[own.numel() :].zero_()
