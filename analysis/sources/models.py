"""Models of transformers in evaluation mode, weights in fp32, filled with the tensors that all analyses read.

A LoRA adapter is the base model with W0 + dW merged in fp32.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from rankdrift.analysis.sources.folders import config_folder, is_adapter, model_tensors
from rankdrift.analysis.sources.weights import open_weights
from rankdrift.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

Precision = Literal["fp32", "bf16"]
POOLER = "pooler."
"""Encoders saved with a masked LM head have none: it is built on the last state, which it does not change."""


def load_backbone(folder: Path) -> PreTrainedModel:
    """Return the transformer of a model, without its head, fp32, in evaluation mode.

    The folder is a model's, or a sharded checkpoint of a whole model, whose run has its configuration.

    Raises
    ------
    UserError
        If the folder cannot be loaded, or lacks weights that states depend on, which would be drawn at
        random.

    """
    from transformers import MODEL_MAPPING, AutoConfig

    tensors, settings = model_tensors(folder), config_folder(folder)
    weights = {name: tensors.tensor(name) for name in tensors.names}
    try:
        config = AutoConfig.from_pretrained(settings)
        model, info = filled(MODEL_MAPPING[type(config)], config, weights)
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise UserError(f"{folder}: cannot be loaded ({error}); is it a complete model folder?") from None
    if missing := sorted(name for name in info["missing_keys"] if not name.startswith(POOLER)):
        some = ", ".join(missing[:3])
        raise UserError(f"{folder}: weights are missing ({some}, ...); export the checkpoint again")
    model.name_or_path = str(folder)  # for messages
    return model.eval()


def filled(
    architecture: Any, config: PreTrainedConfig, weights: dict[str, Tensor]
) -> tuple[PreTrainedModel, Mapping[str, set[str]]]:
    """Return a model with these weights in fp32, and its ``missing_keys`` and ``unexpected_keys``.

    What is missing is for the caller to judge: transformers' own report of it is not printed.
    """
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        model, info = architecture.from_pretrained(
            None, config=config, state_dict=weights, dtype=torch.float32, output_loading_info=True
        )
    finally:
        logging.set_verbosity(verbosity)
    return model, info


def load_tuned(base: Path, tuned: Path, initial: Path | None = None) -> PreTrainedModel:
    """Return a tuned model's transformer as ``load_backbone`` does, also where the folder holds an adapter.

    ``initial`` is the adapter before training, as ``open_weights`` takes it.

    Raises
    ------
    UserError
        If a folder cannot be loaded, or the adapter does not fit the base model.

    """
    if not is_adapter(tuned):
        return load_backbone(tuned)
    model = load_backbone(base)
    prefix = f"{model.base_model_prefix}."
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for name, weight in open_weights(base, tuned, initial).merged():
            parameter = parameters.get(name.removeprefix(prefix))
            if parameter is not None:
                parameter.copy_(weight)
            elif name.startswith(prefix):  # anything else belongs to the head, which no state depends on
                raise UserError(
                    f"{tuned}: changes {name}, which {type(model).__name__} in {base} does not have"
                )
    return model


def blocks(model: PreTrainedModel) -> nn.ModuleList:
    """Return a model's list of blocks; raise UserError where there is none."""
    count = model.config.num_hidden_layers
    for module in model.modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise UserError(f"{model.name_or_path}: {type(model).__name__} has no list of {count} blocks to measure")


def arithmetic(precision: Precision) -> AbstractContextManager[Any]:
    """Return where models compute so: in bf16 their products, while sums, norms and gradients stay fp32."""
    return torch.autocast(device().type, torch.bfloat16, enabled=precision == "bf16")


def device() -> torch.device:
    """Return where models run: the GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
