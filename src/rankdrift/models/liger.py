"""Norms and gated MLPs of a model as Liger's fused kernels, for GPUs (arXiv 2410.10989)."""

from __future__ import annotations

import importlib.util
import os
import sys

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from rankdrift.errors import UserError, did_you_mean

REMEDY = "leave model.liger off"
OURS = {"cross_entropy": False, "fused_linear_cross_entropy": False, "rope": False}
"""Not taken: the loss is ``training/cross_entropy.py``'s, made at targets alone; of positions Liger replaces
what all models of a family in this process compute."""


def require_liger(config: PreTrainedConfig) -> None:
    """Raise UserError where Liger's kernels cannot be used: without the package, a GPU, or for the family."""
    if importlib.util.find_spec("liger_kernel") is None:
        raise UserError(
            f"model.liger: the package liger-kernel is missing; pip install 'rankdrift[liger]', or {REMEDY}"
        )
    if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
        raise UserError(f"model.liger: its kernels are Triton's, for GPUs, and there is none here; {REMEDY}")
    from liger_kernel.transformers.monkey_patch import MODEL_TYPE_TO_APPLY_LIGER_FN as FAMILIES

    if config.model_type not in FAMILIES:
        hint = did_you_mean(config.model_type, FAMILIES)
        raise UserError(
            f"model.liger: there are no kernels for models of type '{config.model_type}' ({hint}); {REMEDY}"
        )


def use_liger(model: PreTrainedModel) -> None:
    """Replace the norms and MLPs of this model alone; results differ by rounding."""
    from liger_kernel.transformers.monkey_patch import _apply_liger_kernel_to_instance

    family = sys.modules[type(model).__module__]
    before = dict(vars(family))
    _apply_liger_kernel_to_instance(model, **OURS)
    vars(family).update(before)  # it replaces the classes of models to come as well
