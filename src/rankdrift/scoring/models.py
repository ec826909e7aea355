"""The models that are scored: a base, loaded once however many adapters of it there are, and whole ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor
from transformers import PreTrainedModel

from rankdrift import files
from rankdrift.data.dataset import num_labels
from rankdrift.models.base import load_model
from rankdrift.models.exports import load_export
from rankdrift.spec import ModelSpec, Spec

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def precision_of(spec: Spec) -> str:
    """Return the arithmetic that models are scored in here: "fp32" or "bf16"."""
    if spec.scoring.precision != "auto":
        return spec.scoring.precision
    return "bf16" if torch.cuda.is_available() else "fp32"


class Models:
    """Loads one model at a time; the one before must not be used any more.

    Parameters
    ----------
    spec
        Head, and whether adapters are merged.
    base
        The base model's folder.

    """

    def __init__(self, spec: Spec, base: Path) -> None:
        self.spec, self.base, self.dtype = spec, base, DTYPES[precision_of(spec)]
        self._plain: ModelSpec = spec.model.model_copy(update={"gradient_checkpointing": False})
        self._kept: PreTrainedModel | None = None
        self._adapted: PeftModel | None = None
        self._weights: dict[str, Tensor] = {}
        """What merging an adapter changed of the kept base."""

    def load(self, source: Path) -> PreTrainedModel:
        """Return a model in evaluation mode, on the GPU if there is one; bf16 is rounded to at the end."""
        torch.manual_seed(self.spec.seed)  # a base's new classification head is the one training began with
        labels = num_labels(self.spec)
        if source == self.base:
            return self._restored()
        if self.dtype == torch.float32 and _leaves_the_base_as_it_was(source):
            return self._with_adapter(source)
        self._kept, self._adapted, self._weights = None, None, {}  # of whole models one has to fit in memory
        model: Any = load_export(source, self.base, self._plain, labels)
        if self.spec.scoring.merge and isinstance(model, PeftModel):
            model = model.merge_and_unload()
        return _ready(model, self.dtype)

    def _restored(self) -> PreTrainedModel:
        """Return the base as it is stored."""
        if self._adapted is not None:
            kept: Any = self._adapted
            self._kept = kept.unload()
            with torch.no_grad():
                for name, weight in self._weights.items():
                    self._kept.get_parameter(f"{name}.weight").copy_(weight)
            self._adapted, self._weights = None, {}
        if self._kept is None:
            self._kept = _ready(load_model(self.base, self._plain, num_labels(self.spec)), self.dtype)
        return self._kept

    def _with_adapter(self, source: Path) -> PreTrainedModel:
        base = self._restored()
        adapted: Any = PeftModel.from_pretrained(base, str(source))
        self._adapted = adapted
        if not self.spec.scoring.merge:
            return _ready(adapted, self.dtype)
        self._weights = _adapted_weights(adapted)
        adapted.merge_adapter(safe_merge=True)
        return _ready(adapted, self.dtype)


def _leaves_the_base_as_it_was(source: Path) -> bool:
    """Say whether a folder is an adapter that is taken off its base without a trace: plain LoRA."""
    path = source / "adapter_config.json"
    if not path.is_file():
        return False
    config = files.read_json(path)
    plain = config.get("peft_type") == "LORA" and config.get("init_lora_weights") in (True, False)
    more = ("modules_to_save", "trainable_token_indices", "use_dora", "layer_replication")
    return plain and config.get("bias", "none") == "none" and not any(config.get(key) for key in more)


def _adapted_weights(adapted: PeftModel) -> dict[str, Tensor]:
    """Return copies of the base's weights that merging will change, by the names of their modules."""
    base: Any = adapted.get_base_model()
    layers = ((name, module) for name, module in base.named_modules() if isinstance(module, LoraLayer))
    return {name: layer.get_base_layer().weight.detach().clone() for name, layer in layers}  # type: ignore[operator]


def _ready(model: Any, dtype: torch.dtype) -> PreTrainedModel:
    ready: PreTrainedModel = model.eval().to("cuda" if torch.cuda.is_available() else "cpu", dtype)
    return ready
