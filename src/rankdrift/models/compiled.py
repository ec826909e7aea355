"""Blocks of a model as compiled code (``torch.compile``), the same for rows of any lengths."""

from __future__ import annotations

import torch
from torch import nn
from transformers.modeling_layers import GradientCheckpointingLayer

from rankdrift.errors import UserError


def compile_blocks(model: nn.Module) -> None:
    """Let each of a model's blocks be compiled when it is first run.

    One by one, because blocks are alike: the code of one serves all, and takes seconds instead of minutes.
    With dynamic shapes, so that a batch of another length needs no other code.

    Raises
    ------
    UserError
        If the model has no blocks that transformers marks as such.

    """
    blocks = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not blocks:
        raise UserError(
            f"model.compile: {type(model).__name__} has no blocks to be compiled one by one; leave it off"
        )
    for block in blocks:
        block.compile(dynamic=True)


def require_compiler() -> None:
    """Raise UserError where torch can compile nothing: without a C++ compiler, or Triton on a GPU."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.compile(_twice)(torch.ones(2, device=device))
    except Exception as error:  # of many classes, none of them documented
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UserError(
            f"model.compile: torch cannot compile here ({reason}); install a C++ compiler (Debian: apt-get "
            "install g++), on a GPU also triton, or leave it off"
        ) from error


def _twice(values: torch.Tensor) -> torch.Tensor:
    return values * 2
