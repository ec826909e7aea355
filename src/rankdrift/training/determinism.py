"""The same bits from the same seed, on a GPU too."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import torch

from rankdrift.errors import UserError

MISSING = "does not have a deterministic implementation"


@contextlib.contextmanager
def deterministic(on: bool) -> Iterator[None]:
    """Let torch take none but deterministic algorithms inside the block; UserError where there is none.

    On a CPU those that training takes are so anyway.
    """
    if not on:
        yield
        return
    # cuBLAS reads it when its first handle is made: products on several streams share a workspace otherwise
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    before = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True)
    try:
        yield
    except RuntimeError as error:
        if MISSING not in str(error):
            raise
        raise UserError(
            f"training.deterministic: {str(error).splitlines()[0]}; leave it off, or leave out what needs it "
            "(model.liger, model.attention, training.packing)"
        ) from error
    finally:
        torch.use_deterministic_algorithms(before)
