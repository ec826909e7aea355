"""PEFT's names: from a parameter of a PEFT model to the same tensor in ``adapter_model.safetensors``.

On disk the adapter's name is left out, a module trained whole carries its plain name, and DoRA's
magnitudes have no ``.weight`` (read from PEFT 0.21's ``get_peft_model_state_dict``).
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rankdrift.errors import UserError
from rankdrift.zero_checkpoint.shards import ShardedTensor

ADAPTER = "default"
EXPORTED = ("LORA", "ADALORA")

_UNSUPPORTED: dict[str, tuple[Any, ...]] = {"bias": ("none", None)}
_WHOLE = ("modules_to_save", "trainable_tokens_delta")
"""What trains beside the factors: modules, and rows of tokens."""


def check_config(config: Mapping[str, Any], path: Path) -> None:
    """Raise UserError where an adapter trains something whose name on disk this module does not know."""
    if config.get("peft_type") not in EXPORTED:
        kinds = " and ".join(EXPORTED)
        raise UserError(f"{path}: peft_type={config.get('peft_type')!r}; only {kinds} adapters are exported")
    for key, known in _UNSUPPORTED.items():
        if config.get(key) not in known:
            raise UserError(f"{path}: {key}={config[key]!r} is not exported; train with {key}={known[0]!r}")


def adapter_tensors(tensors: Mapping[str, ShardedTensor], folder: Path) -> dict[str, ShardedTensor]:
    """Return the adapter's tensors by their names on disk; the rest belongs to the base model."""
    found = {disk_name(name): tensor for name, tensor in tensors.items() if _is_adapter(name)}
    if not found:
        names = ", ".join(list(tensors)[:3])
        raise UserError(f"{folder}: it holds no LoRA adapter named '{ADAPTER}' (but: {names} ...)")
    return found


def disk_name(name: str) -> str:
    """Return a parameter's name on disk.

    >>> disk_name("base_model.model.q_proj.lora_A.default.weight")
    'base_model.model.q_proj.lora_A.weight'
    >>> disk_name("base_model.model.score.modules_to_save.default.weight")
    'base_model.model.score.weight'
    """
    name = name.replace(f".modules_to_save.{ADAPTER}.", ".")
    if name.endswith(f".lora_magnitude_vector.{ADAPTER}.weight"):
        name = name.removesuffix(".weight")
    head, separator, tail = name.rpartition(f".{ADAPTER}")
    return head + tail if separator and tail in ("", ".weight", ".bias") else name


def _is_adapter(name: str) -> bool:
    parts = name.split(".")
    kinds = [kind for kind, adapter in itertools.pairwise(parts) if adapter == ADAPTER]
    return any(kind in _WHOLE or kind.startswith("lora_") for kind in kinds)
